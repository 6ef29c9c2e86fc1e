#!/usr/bin/python3
"""Checks evidence with nothing but FORMAT.md and Debian's python3-cryptography.

    verify.py NODE.PUB CHUNK [PROOF EPOCH-PROOF]    one chunk, and that it is in the log
    verify.py NODE.PUB SPOOL [KEPT...]              all chunks of a spool and its logs

KEPT is a checkpoint or an acknowledgement that somebody kept: the log must have grown
out of it. It prints what it found to hold, and exits with 1 and a sentence if anything
does not. The format's rules of lines and the statement's totals are `probity verify`'s.
"""

import base64
import functools
import hashlib
import json
import os
import re
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils

SITE = ("runId", "probeId", "path", "origin", "fileDigest", "symbol", "function", "event", "offset")
IDENTIFYING = ("path", "entry.argument", "entry.device", "entry.inode", "entry.address", "entry.port")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
HALF_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551 // 2


def wrong(what):
    print("NOT SOUND: " + what)
    sys.exit(1)


def read(name, spool=None):
    """A regular file. In a spool no part of its name may be a link."""
    at = name
    while spool and at != spool:
        if os.path.islink(at):
            wrong(at + ": a link, which no spool has")
        at = os.path.dirname(at)
    if not os.path.isfile(name):
        wrong(name + ": not a file")
    with open(name, "rb") as f:
        return f.read()


def names_in(directory):
    return sorted(os.listdir(directory)) if os.path.lexists(directory) else []


def b64(text):
    return base64.b64decode(text, validate=True)


class NodeKeys:
    """The node's keys that are trusted: the one that was given, and those that follow it."""

    def __init__(self, pem):
        self.by_id = {}
        self.add(serialization.load_pem_public_key(pem))

    def add(self, key):
        point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        wire = b"".join(len(s).to_bytes(4, "big") + s for s in (b"ecdsa-sha2-nistp256", b"nistp256", point))
        self.by_id["SHA256:" + base64.b64encode(hashlib.sha256(wire).digest()).decode().rstrip("=")] = key

    def of(self, der):
        encoding = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        return next((key for key in self.by_id.values() if key.public_bytes(*encoding) == der), None)

    def follow(self, successions):
        for s in successions:
            key = self.of(b64(s["publicKey"]))
            if key is not None:
                unsigned = json.dumps({m: s[m] for m in ("at", "publicKey", "next")}, separators=(",", ":")).encode()
                check_signature(key, b"application/vnd.probity.succession+json", unsigned, b64(s["signature"]), "succession")
                self.add(serialization.load_der_public_key(b64(s["next"])))


def check_signature(key, kind, payload, signature, what):
    """By a node's key: over DSSE's pre-authentication encoding, s in the lower half."""
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    try:
        if utils.decode_dss_signature(signature)[1] > HALF_ORDER:
            wrong(what + ": s is in the upper half")
        key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        wrong(what + ": the signature is not the node's")


def check_chunk(keys, data, name="chunk"):
    """The envelope signs a statement, whose first subject is all lines before it."""
    if data.count(b"\n") < 3 or not data.endswith(b"\n"):
        wrong(name + ": it is cut off, or something was added")
    header = json.loads(data[: data.index(b"\n")])
    if header["format"] not in ("probity-chunk/1", "probity-chunk/2", "probity-chunk/3"):
        wrong("%s: %s is made by another version: nothing is said of it" % (name, header["format"]))
    end = data.rindex(b"\n", 0, -1) + 1
    body, envelope = data[:end], json.loads(data[end:])
    same = {"payloadType": envelope["payloadType"], "payload": envelope["payload"], "signatures": [{m: envelope["signatures"][0][m] for m in ("keyid", "sig")}]}
    if json.dumps(same, separators=(",", ":"), ensure_ascii=False).encode() + b"\n" != data[end:]:
        wrong(name + ": the envelope is not spelled as the node does")
    key = keys.by_id.get(envelope["signatures"][0]["keyid"])
    if key is None or header["keyId"] != envelope["signatures"][0]["keyid"]:
        wrong(name + ": signed with a key that is not trusted")
    payload, kind = b64(envelope["payload"]), envelope["payloadType"]
    if kind != "application/vnd.in-toto+json":
        wrong(name + ": payload type " + kind)
    check_signature(key, kind.encode(), payload, b64(envelope["signatures"][0]["sig"]), name)
    subject = json.loads(payload)["subject"][0]
    if subject["name"] != "chunk:" + header["chunk"]:
        wrong("%s: signed as %s" % (name, subject["name"]))
    if subject["digest"]["sha256"] != hashlib.sha256(body).hexdigest():
        wrong(name + ": its lines are not those that were signed")
    return header


def leaf_hash(entry):
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def tree_hash(h):
    """RFC 6962 section 2.1, over hashes of leaves."""
    if len(h) < 2:
        return h[0] if h else hashlib.sha256(b"").digest()
    k = 1 << (len(h) - 1).bit_length() - 1  # the greatest power of two below
    return node_hash(tree_hash(h[:k]), tree_hash(h[k:]))


def root_of(entry, index, size, path):
    """RFC 6962 section 2.1.1, in the words of RFC 9162 section 2.1.3.2."""
    if index >= size:
        wrong("proof: entry %d of %d" % (index, size))
    node, last, h = index, size - 1, leaf_hash(entry)
    for p in path:
        if last == 0:
            wrong("proof: too long")
        if node & 1 or node == last:
            h = node_hash(p, h)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            h = node_hash(h, p)
        node, last = node >> 1, last >> 1
    if last != 0:
        wrong("proof: too short")
    return h


def parse_checkpoint(note):
    text, signatures = note.decode().split("\n\n", 1)
    if not signatures.endswith("\n"):
        wrong("checkpoint: it is cut off")
    origin, size, root = text.split("\n")
    return origin, int(size), b64(root), text + "\n", signatures


def verifier_key(verifier, origin):
    """A checkpoint key: NAME+HASH+base64(1 || KEY). Returns its hash and the key."""
    name, number, key = verifier.split("+", 2)
    hashed = hashlib.sha256(name.encode() + b"\n" + b64(key)).digest()[:4]
    if name != origin or b64(key)[0] != 1 or number != hashed.hex():
        wrong("checkpoint: the epoch's key is not this log's")
    return hashed, ed25519.Ed25519PublicKey.from_public_bytes(b64(key)[1:])


def check_checkpoint(note, verifiers):
    """A signed note: "— NAME base64(HASH || SIGNATURE)", by one of these keys."""
    origin, _, _, text, signatures = parse_checkpoint(note)
    keys, good = [verifier_key(v, origin) for v in verifiers], False
    for line in signatures[:-1].split("\n"):
        dash, who, signature = line.split(" ")
        if dash != "\u2014":
            wrong("checkpoint: not a line of a signature: " + line)
        for hashed, key in keys:
            if who == origin and b64(signature)[:4] == hashed:
                key.verify(b64(signature)[4:], text.encode())
                good = True
    if not good:
        wrong("checkpoint: not signed by the epoch's key")


def check_proof(proof):
    """A C2SP tlog-proof, whose extra data is the entry. Returns what is in the log."""
    head, note = proof.split(b"\n\n", 1)
    lines = head.decode().split("\n")
    if lines[0] != "c2sp.org/tlog-proof@v1" or not lines[1].startswith("extra "):
        wrong("proof: not a proof with its entry")
    entry, index = b64(lines[1][len("extra "):]), int(lines[2][len("index "):])
    origin, size, root, _, _ = parse_checkpoint(note)
    if root_of(entry, index, size, [b64(line) for line in lines[3:]]) != root:
        wrong("proof: entry %d is not in the log %s" % (index, origin))
    leaf = json.loads(entry)
    if leaf["index"] != str(index):
        wrong("proof: entry %d says that it is entry %s" % (index, leaf["index"]))
    return entry, leaf, note


def check_epoch(keys, entry, leaf, before=None):
    """The node's key signs the leaf without its signatures: they are its last members."""
    if leaf["leaf"] != "epoch" or leaf["format"] not in ("probity-log/1", "probity-log/2"):
        wrong("epoch: not one, or made by another version")
    keys.follow(leaf.get("successions", []))
    node = keys.of(b64(leaf["publicKey"]))
    if node is None:
        wrong("epoch: opened with a key that is not trusted")
    unsigned = entry
    for member in ("signature", "announced"):
        if member in leaf:
            unsigned = unsigned[: unsigned.rindex(b',"%s":' % member.encode())] + b"}"
    if before and leaf["start"] == "rotation":
        _, key = verifier_key(before["checkpointKey"], leaf["origin"])
        key.verify(b64(leaf["announced"]), b"probity checkpoint key announcement v1\n" + unsigned)
    check_signature(node, b"application/vnd.probity.epoch+json", unsigned, b64(leaf["signature"]), "epoch")
    return leaf["checkpointKey"]


def log_entries(log, size, spool):
    """Tiles of 256 entries, each after its length in two bytes. One that the log has
    grown past is under a greater width, or full, and has more than is asked for."""
    for n in range((size + 255) // 256):
        want, parts = min(256, size - 256 * n), ["%03d" % (n % 1000)]
        while n >= 1000:
            n //= 1000
            parts.insert(0, "x%03d" % (n % 1000))
        path = os.path.join(log, "tile", "entries", *parts)
        widths = [w for w in range(want, 256) if os.path.isfile("%s.p/%d" % (path, w))]
        if not os.path.isfile(path) and not widths:
            wrong(path + ": entries are missing")
        data, at = read("%s.p/%d" % (path, widths[0]) if widths else path, spool), 0
        for _ in range(want):
            length = int.from_bytes(data[at : at + 2], "big")
            if len(data) < at + 2 + length:
                wrong(path + ": it is cut off")
            yield data[at + 2 : at + 2 + length]
            at += 2 + length


def read_log(keys, log, kept, spool):
    """What the checkpoint counts is what its key signed, and follows from one another."""
    note = read(os.path.join(log, "checkpoint"), spool)
    origin, size, root, _, _ = parse_checkpoint(note)
    entries = list(log_entries(log, size, spool))
    leaf_hashes, leaves, epochs, closed = [leaf_hash(e) for e in entries], [], [], False
    if tree_hash(leaf_hashes) != root:
        wrong("log %s: the entries are not what the checkpoint says" % origin)
    for i, entry in enumerate(entries):
        leaf = json.loads(entry)
        if leaf["leaf"] not in ("epoch", "chunk", "gap", "heartbeat", "tombstone", "close") or leaf["index"] != str(i) or (i == 0 or closed) and leaf["leaf"] != "epoch":
            wrong("log %s: leaf %d is not what can be there" % (origin, i))
        if leaf["leaf"] == "epoch":
            before = epochs[-1] if epochs else None
            if leaf["epoch"] != str(len(epochs)) or leaf["origin"] != origin or (leaf["start"] == "first") != (i == 0) or leaf["start"] != "first" and (leaf["start"] == "clean") != closed:
                wrong("log %s: the epoch of leaf %d does not follow" % (origin, i))
            if before and leaf["publicKey"] != before["publicKey"] and before["publicKey"] not in [s["publicKey"] for s in leaf.get("successions", [])]:
                wrong("log %s: the key of leaf %d does not follow" % (origin, i))
            check_epoch(keys, entry, leaf, before)
            epochs.append(leaf)
        closed = leaf["leaf"] == "close"
        leaves.append(leaf)
    check_checkpoint(note, [epochs[-1]["checkpointKey"]])
    for k in [k for k in kept if k["origin"] == origin]:
        if k["size"] > size or tree_hash(leaf_hashes[: k["size"]]) != k["root"]:
            wrong("log %s: it did not grow out of what somebody kept" % origin)
        if "note" in k:
            check_checkpoint(k["note"], [e["checkpointKey"] for e in epochs])
        k["seen"] = True
    print("log %s: %d leaves in %d epochs, of which %d began unclean" % (origin, size, len(epochs), sum(e["start"] == "unclean" for e in epochs)))
    return origin, leaves


def parse_kept(data):
    if data.lstrip().startswith(b"{"):  # an acknowledgement
        ack = json.loads(data)
        return {"origin": ack["origin"], "size": int(ack["size"]), "root": b64(ack["root"])}
    return dict(zip(("origin", "size", "root"), parse_checkpoint(data)), note=data)


def acknowledged(spool):
    """ack/CONSUMER.json: what each consumer has says how far the log had grown."""
    top = os.path.join(spool, "ack")
    for name in names_in(top):
        if name.endswith(".json") and not name.startswith("."):
            ack = json.loads(read(os.path.join(top, name), spool))
            if set(ack) != {"consumer", "origin", "size", "root", "at"} or ack["consumer"] + ".json" != name or not TIME.fullmatch(ack["at"]):
                wrong(os.path.join(top, name) + ": it is no acknowledgement")
            yield dict(parse_kept(json.dumps(ack).encode()), seen=True)  # of a log that is not here it says nothing


def older_first(one, two):
    """Chunks of one instance by seq; of two, by the clocks of their headers."""
    if one["chunk"][17:] == two["chunk"][17:]:
        pair = [h["chunk"] for h in (one, two)]
    elif one["bootId"] == two["bootId"]:
        pair = [(int(h["clock"]["bootNs"]), h["chunk"][17:]) for h in (one, two)]
    else:
        pair = [(h["clock"]["wall"], h["chunk"][17:]) for h in (one, two)]
    return (pair[0] > pair[1]) - (pair[0] < pair[1])


def check_hits(chunks):
    """What was executed was executed: no later line of the same agent takes it back."""
    hits, taken, since = {}, {}, {}  # since: where another agent took a run up
    order = sorted(chunks.values(), key=functools.cmp_to_key(lambda one, two: older_first(one[0], two[0])))
    for at, line in enumerate(line for _, data in order for line in data.split(b"\n")[1:-2]):
        said = json.loads(line)
        if said["kind"] == "gap" and said["reason"] in ("agentDown", "adopted") and "runId" in said:
            since[said["runId"]] = at
        if said["kind"] != "observation":
            continue
        names = [r for r in said.get("redacted", []) if r["member"] in IDENTIFYING]
        site = json.dumps([said.get(m) for m in SITE] + [names, said.get("entry")])
        if said["state"] == "hit":
            hits[site] = at
        taken.pop(site, None)
        if said["state"] != "hit" and since.get(said["runId"], -1) < hits.get(site, -1):
            taken[site] = at
    if taken:
        wrong("a site that was executed is said not to be: " + min(taken))


def check_spool(keys, spool, kept):
    kept = kept + list(acknowledged(spool))
    retired = os.path.join(spool, "retired")
    logs = [os.path.join(spool, "log")] + [os.path.join(retired, d) for d in names_in(retired)]
    if not os.path.lexists(os.path.join(logs[0], "checkpoint")):
        del logs[0]
    logs = dict(read_log(keys, d, kept, spool) for d in logs)
    removed = {(leaf.get("log", o), leaf["chunk"]) for o in logs for leaf in logs[o] if leaf["leaf"] == "tombstone"}
    chunks = {}
    for top, dirs, names in os.walk(os.path.join(spool, "ready")):
        for name in names + [d for d in dirs if os.path.islink(os.path.join(top, d))]:
            path = os.path.join(top, name)
            data = read(path, spool)
            header = check_chunk(keys, data, path)
            if os.path.relpath(path, spool) != os.path.join("ready", header["chunk"][:10], header["chunk"] + ".ndjson"):
                wrong(path + ": it is the chunk " + header["chunk"])
            if header.get("log", next(iter(logs), "")) not in logs:
                wrong(path + ": the log that it names is not here")
            chunks[header["chunk"]] = header, data
    if not chunks:
        wrong("there is no chunk")
    for leaf in [leaf for o in logs for leaf in logs[o] if leaf["leaf"] == "chunk" and leaf["chunk"] not in chunks]:
        path = os.path.join(spool, "tmp", leaf["chunk"] + ".ndjson")  # on its way, as its agent left it
        if not os.path.islink(path) and os.path.isfile(path) and leaf["digest"] == "sha256:" + hashlib.sha256(read(path)).hexdigest():
            chunks[leaf["chunk"]] = check_chunk(keys, read(path), path), read(path)
    for origin, leaves in logs.items():
        check_leaves(origin, leaves, chunks, removed)
    for name, (header, _) in chunks.items():
        if "log" in header and "seen" not in header or "log" not in header and any(o.endswith("/" + name[-16:]) for o in logs):
            wrong(name + ": it is not in the log")
    if not all("seen" in k for k in kept):
        wrong("the log of which somebody kept a state is not here")
    check_hits(chunks)
    print("%d chunks, each signed by the node and in its log" % len(chunks))


def check_leaves(origin, leaves, chunks, removed):
    """Each chunk leaf has its chunk or a tombstone, each heartbeat stands over them."""
    names, live, whole, beats = set(), {}, True, 0
    for leaf in leaves:
        if leaf["leaf"] == "epoch" and leaf["start"] != "rotation":
            live, whole = {}, True
        elif leaf["leaf"] == "gap":
            print("leaf %s: %s lines were lost: %s" % (leaf["index"], leaf["count"], leaf["reason"]))
        elif leaf["leaf"] == "heartbeat" and whole:
            items = [leaf_hash(("%s %s\n" % (run, live[run])).encode()) for run in sorted(live)]
            if leaf["runs"] != str(len(live)) or b64(leaf["root"]) != tree_hash(items):
                wrong("leaf %s: the heartbeat is over other lines" % leaf["index"])
            beats += 1
        elif leaf["leaf"] == "chunk":
            name = leaf["chunk"]
            if name in names:
                wrong(name + ": it is in the log twice")
            names.add(name)
            if name not in chunks:
                whole = False
                if (origin, name) not in removed:
                    wrong(name + ": it was removed, and not by the node")
                continue
            header, data = chunks[name]
            if (header.get("log"), header.get("leaf")) != (origin, leaf["index"]):
                wrong(name + ": it is not the leaf that it says")
            if leaf["digest"] != "sha256:" + hashlib.sha256(data).hexdigest() or leaf["bytes"] != str(len(data)):
                wrong(name + ": the log has other bytes under this name")
            header["seen"] = True
            for line in data.split(b"\n")[1:-2]:
                said = json.loads(line)
                if said["kind"] == "coverage" and not said["final"]:
                    live[said["runId"]] = hashlib.sha256(line).hexdigest()
                elif said["kind"] == "coverage" or (said["kind"], said.get("scope"), said.get("reason")) == ("gap", "run", "agentDown"):
                    live.pop(said["runId"], None)
    print("log %s: %d chunks, %d heartbeats stand over their lines" % (origin, len(names), beats))


def main(args):
    if len(args) < 2 or len(args) == 3 and not os.path.isdir(args[1]):
        print(__doc__)
        sys.exit(2)
    keys = NodeKeys(read(args[0]))
    if os.path.isdir(args[1]):
        return check_spool(keys, args[1], [parse_kept(read(k)) for k in args[2:]])
    data = read(args[1])
    header = check_chunk(keys, data)
    print("chunk %s: signed by the node, %d lines" % (header["chunk"], data.count(b"\n") - 2))
    if len(args) == 2:
        return
    _, leaf, note = check_proof(read(args[2]))
    if (leaf["leaf"], leaf.get("chunk"), leaf["index"]) != ("chunk", header["chunk"], header["leaf"]):
        wrong("proof: of another entry than the chunk names")
    if leaf["digest"] != "sha256:" + hashlib.sha256(data).hexdigest():
        wrong("proof: the log has other bytes under this name")
    epoch_entry, epoch, epoch_note = check_proof(read(args[3]))
    if epoch_note != note:
        wrong("the two proofs are of two checkpoints")
    check_checkpoint(note, [check_epoch(keys, epoch_entry, epoch)])
    print("leaf %s of %s is this chunk" % (leaf["index"], header["log"]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, InvalidSignature) as e:
        wrong("%s: %s" % (type(e).__name__, e))
