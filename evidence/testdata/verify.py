#!/usr/bin/python3
"""Checks a chunk of evidence and the proof that it is in the node's log.

    verify.py NODE.PUB CHUNK [PROOF EPOCH-PROOF]

It is written from FORMAT.md alone, and shares no code with Probity: Debian's
python3-cryptography is all that it needs. It prints what it found to hold, and
exits with 1 and a sentence if anything does not. It checks signatures, digests and
proofs; that each line obeys the format's rules is left to `probity verify`.
"""

import base64
import hashlib
import json
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519


def wrong(what):
    print("NOT SOUND: " + what)
    sys.exit(1)


def read(name):
    with open(name, "rb") as f:
        return f.read()


def pae(kind, payload):
    """DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def signed_by_node(key, kind, payload, signature, what):
    try:
        key.verify(signature, pae(kind, payload), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        wrong(what + ": the signature is not the node's")


def check_chunk(key, data):
    """The envelope signs a statement, whose first subject is all lines before it."""
    if not data.endswith(b"\n"):
        wrong("chunk: it does not end in a newline")
    end = data.rindex(b"\n", 0, -1) + 1
    body, envelope = data[:end], json.loads(data[end:])
    payload = base64.b64decode(envelope["payload"], validate=True)
    signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
    kind = envelope["payloadType"]
    if kind != "application/vnd.in-toto+json":
        wrong("chunk: payload type " + kind)
    signed_by_node(key, kind.encode(), payload, signature, "chunk")
    header = json.loads(body[: body.index(b"\n")])
    subject = json.loads(payload)["subject"][0]
    if subject["name"] != "chunk:" + header["chunk"]:
        wrong("chunk: signed as " + subject["name"])
    if subject["digest"]["sha256"] != hashlib.sha256(body).hexdigest():
        wrong("chunk: its lines are not those that were signed")
    print("chunk %s: signed by the node, %d lines" % (header["chunk"], body.count(b"\n") - 1))
    return header


def parse_proof(text):
    """C2SP tlog-proof; the extra data is the entry."""
    head, checkpoint = text.split(b"\n\n", 1)
    lines = head.decode().split("\n")
    if lines[0] != "c2sp.org/tlog-proof@v1" or not lines[1].startswith("extra "):
        wrong("proof: not a proof with its entry")
    entry = base64.b64decode(lines[1][len("extra "):], validate=True)
    path = [base64.b64decode(l, validate=True) for l in lines[3:]]
    return entry, int(lines[2][len("index "):]), path, checkpoint


def root_of(entry, index, size, path):
    """RFC 6962 section 2.1.1, in the words of RFC 9162 section 2.1.3.2."""
    if index >= size:
        wrong("proof: entry %d of %d" % (index, size))
    node, last = index, size - 1
    h = hashlib.sha256(b"\x00" + entry).digest()
    for p in path:
        if last == 0:
            wrong("proof: too long")
        if node & 1 or node == last:
            h = hashlib.sha256(b"\x01" + p + h).digest()
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            h = hashlib.sha256(b"\x01" + h + p).digest()
        node, last = node >> 1, last >> 1
    if last != 0:
        wrong("proof: too short")
    return h


def parse_checkpoint(note):
    text, signatures = note.decode().split("\n\n", 1)
    origin, size, root = text.split("\n")
    return origin, int(size), base64.b64decode(root, validate=True), text + "\n", signatures


def check_proof(proof):
    """Returns the entry that is in the log under the proof's checkpoint."""
    entry, index, path, note = parse_proof(proof)
    origin, size, root, _, _ = parse_checkpoint(note)
    if root_of(entry, index, size, path) != root:
        wrong("proof: entry %d is not in the log %s" % (index, origin))
    leaf = json.loads(entry)
    if leaf["index"] != str(index):
        wrong("proof: entry %d says that it is entry %s" % (index, leaf["index"]))
    return entry, leaf, note


def check_epoch(key, entry, leaf):
    """The node's key signs the leaf without its signatures: they are its last members."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if leaf["leaf"] != "epoch" or base64.b64decode(leaf["publicKey"]) != der:
        wrong("epoch: not one that this node's key opened")
    unsigned = entry
    for member in ("signature", "announced"):
        if member in leaf:
            at = unsigned.rindex(b',"%s":' % member.encode())
            unsigned = unsigned[:at] + b"}"
    signature = base64.b64decode(leaf["signature"], validate=True)
    signed_by_node(key, b"application/vnd.probity.epoch+json", unsigned, signature, "epoch")
    return leaf["checkpointKey"]


def check_checkpoint(note, verifier):
    """A signed note: "— NAME base64(HASH || SIGNATURE)", the key NAME+HASH+base64(1 || KEY)."""
    origin, size, _, text, signatures = parse_checkpoint(note)
    name, _, encoded = verifier.split("+", 2)
    public = base64.b64decode(encoded, validate=True)
    if name != origin or public[0] != 1:
        wrong("checkpoint: the epoch's key is not this log's")
    for line in signatures.strip().split("\n"):
        dash, who, signature = line.split(" ")
        if dash != "\u2014" or who != origin:
            continue
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(public[1:]).verify(base64.b64decode(signature)[4:], text.encode())
        except InvalidSignature:
            continue
        print("log %s: a checkpoint over %d leaves, signed by its epoch's key" % (origin, size))
        return
    wrong("checkpoint: not signed by the epoch's key")


def main(args):
    if len(args) not in (2, 4):
        print(__doc__)
        sys.exit(2)
    key = serialization.load_pem_public_key(read(args[0]))
    data = read(args[1])
    header = check_chunk(key, data)
    if len(args) == 2:
        return
    entry, leaf, note = check_proof(read(args[2]))
    if leaf["leaf"] != "chunk" or leaf["chunk"] != header["chunk"] or leaf["index"] != header["leaf"]:
        wrong("proof: of another entry than the chunk names")
    if leaf["digest"] != "sha256:" + hashlib.sha256(data).hexdigest():
        wrong("proof: the log has other bytes under this name")
    epoch_entry, epoch, epoch_note = check_proof(read(args[3]))
    if epoch_note != note:
        wrong("the two proofs are of two checkpoints")
    check_checkpoint(note, check_epoch(key, epoch_entry, epoch))
    print("leaf %s of %s is this chunk" % (leaf["index"], header["log"]))


main(sys.argv[1:])
