package tlog

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"probity/evidence"
)

// MaxCheckpointBytes bounds a checkpoint with all its signatures. Sixteen
// witnesses of the largest kind that is known fit.
const MaxCheckpointBytes = 128 << 10

// Hash is a node of the tree.
type Hash = tlog.Hash

// Tree is one state of a log: how many leaves it has, and the hash over them.
type Tree struct {
	Origin string
	Size   uint64
	Root   Hash
}

// Named is the tree as leaves and acknowledgements write it.
func (t Tree) Named() evidence.LogTree {
	return evidence.LogTree{Origin: t.Origin, Size: evidence.Uint64(t.Size), Root: t.Root.String()}
}

// TreeOf is the inverse of Named.
func TreeOf(t evidence.LogTree) (Tree, error) {
	h, err := tlog.ParseHash(t.Root)
	if err != nil || h.String() != t.Root {
		return Tree{}, fmt.Errorf("root: %q is not 32 bytes in base64", clip(t.Root))
	}
	return Tree{Origin: t.Origin, Size: uint64(t.Size), Root: h}, nil
}

// Empty is the root of a log without leaves (RFC 6962 section 2.1).
var Empty = mustHash("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")

func mustHash(s string) Hash {
	h, err := tlog.ParseHash(s)
	if err != nil {
		panic(err)
	}
	return h
}

// Text is the body of a checkpoint (C2SP tlog-checkpoint, without extensions).
func (t Tree) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", t.Origin, t.Size, t.Root)
}

// ParseText reads the body of a checkpoint. It takes exactly what Text writes:
// extension lines are not audited by anybody, so there are none.
func ParseText(text string) (Tree, error) {
	l := strings.Split(text, "\n")
	if len(l) != 4 || l[3] != "" {
		return Tree{}, errors.New("checkpoint: not three lines: origin, size, root")
	}
	size, err := strconv.ParseUint(l[1], 10, 62)
	if err != nil || strconv.FormatUint(size, 10) != l[1] {
		return Tree{}, fmt.Errorf("checkpoint: %q is no size", clip(l[1]))
	}
	root, err := tlog.ParseHash(l[2])
	if err != nil || root.String() != l[2] {
		return Tree{}, fmt.Errorf("checkpoint: %q is no root", clip(l[2]))
	}
	if l[0] == "" {
		return Tree{}, errors.New("checkpoint: no origin")
	}
	t := Tree{Origin: l[0], Size: size, Root: root}
	if size == 0 && root != Empty {
		return Tree{}, errors.New("checkpoint: size 0 with leaves")
	}
	return t, nil
}

// Claim is what a checkpoint says, whoever signed it: see OpenCheckpoint.
func Claim(checkpoint []byte) (Tree, error) {
	text, _, ok := strings.Cut(string(checkpoint), "\n\n")
	if !ok {
		return Tree{}, errors.New("checkpoint: not a signed note")
	}
	return ParseText(text + "\n")
}

// Key signs checkpoints for one epoch. It is only ever in memory.
type Key struct {
	signer   note.Signer
	private  ed25519.PrivateKey
	verifier string
}

// NewKey makes a key for the log of this name.
func NewKey(origin string) (*Key, error) {
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return nil, fmt.Errorf("checkpoint key: %w", err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		return nil, fmt.Errorf("checkpoint key for %q: %w", origin, err)
	}
	// PRIVATE+KEY+NAME+HASH+KEY, and the key is the algorithm's byte and the seed.
	seed, err := base64.StdEncoding.DecodeString(strings.SplitN(skey, "+", 5)[4])
	if err != nil || len(seed) != 1+ed25519.SeedSize {
		return nil, errors.New("checkpoint key: not an Ed25519 key")
	}
	return &Key{signer: s, private: ed25519.NewKeyFromSeed(seed[1:]), verifier: vkey}, nil
}

// Verifier is the key's public half, as signed notes write it.
func (k *Key) Verifier() string { return k.verifier }

// Sign returns the checkpoint of a tree.
func (k *Key) Sign(t Tree) ([]byte, error) {
	b, err := note.Sign(&note.Note{Text: t.Text()}, k.signer)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	return b, nil
}

// Announce signs the leaf that announces the next key. What is signed begins
// otherwise than any checkpoint: with what an origin, which has no space in it,
// cannot hold.
func (k *Key) Announce(unsigned []byte) []byte {
	return ed25519.Sign(k.private, announcement(unsigned))
}

func announcement(unsigned []byte) []byte {
	return append([]byte("probity checkpoint key announcement v1\n"), unsigned...)
}

// announced checks the signature of Announce by the key that signed notes write
// as verifier.
func announced(verifier string, unsigned, sig []byte) error {
	_, pub, err := parseVerifier(verifier, algEd25519)
	if err != nil {
		return err
	}
	if !ed25519.Verify(pub, announcement(unsigned), sig) {
		return errors.New("the announcement's signature does not match")
	}
	return nil
}

// Kinds of keys of signed notes.
const (
	algEd25519     = 1
	algCosignature = 4
)

// parseVerifier takes a verifier key apart.
func parseVerifier(vkey string, alg byte) (name string, pub ed25519.PublicKey, err error) {
	name, rest, _ := strings.Cut(vkey, "+")
	hash, data, _ := strings.Cut(rest, "+")
	key, err := base64.StdEncoding.Strict().DecodeString(data)
	if err != nil || len(hash) != 8 || len(key) != 1+ed25519.PublicKeySize || key[0] != alg || name == "" {
		return "", nil, fmt.Errorf("verifier key %q: want NAME+HASH+KEY of kind %d", clip(vkey), alg)
	}
	if want := fmt.Sprintf("%08x", keyHash(name, key)); hash != want {
		return "", nil, fmt.Errorf("verifier key %q: its hash is %s, not %s", clip(vkey), want, clip(hash))
	}
	return name, key[1:], nil
}

// Cosignature is a witness's word on a checkpoint: at this time it had seen no
// other history of this log.
type Cosignature struct {
	Witness string
	Time    uint64 // seconds since the epoch
}

// Witness checks cosignatures of one witness (C2SP tlog-cosignature, Ed25519).
type Witness struct {
	name string
	hash uint32
	pub  ed25519.PublicKey
}

// NewWitness reads a witness's verifier key: kind 4, or kind 1 of a witness that
// gives its plain Ed25519 key.
func NewWitness(vkey string) (*Witness, error) {
	name, pub, err := parseVerifier(vkey, algCosignature)
	if err != nil {
		var plain error
		if name, pub, plain = parseVerifier(vkey, algEd25519); plain != nil {
			return nil, err
		}
	}
	return &Witness{name: name, hash: keyHash(name, append([]byte{algCosignature}, pub...)), pub: pub}, nil
}

// Name implements note.Verifier.
func (w *Witness) Name() string { return w.name }

// KeyHash implements note.Verifier.
func (w *Witness) KeyHash() uint32 { return w.hash }

// Verify implements note.Verifier.
func (w *Witness) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	if at >= 1<<63 {
		return false
	}
	return ed25519.Verify(w.pub, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, msg), sig[8:])
}

// Checkpoint is a signed state of a log.
type Checkpoint struct {
	Tree
	Verifier     string // the key that signed it
	Cosignatures []Cosignature
	Note         []byte
}

// OpenCheckpoint checks a checkpoint: one of the log's keys must have signed it. A
// signature that claims to be by a known key, of the log or of a witness, and is
// not, is an error; those of others are left aside.
func OpenCheckpoint(b []byte, keys []string, witnesses []*Witness) (Checkpoint, error) {
	c := Checkpoint{Note: b}
	if len(b) > MaxCheckpointBytes {
		return c, fmt.Errorf("checkpoint: %d bytes, at most %d are read", len(b), MaxCheckpointBytes)
	}
	var known []note.Verifier
	byHash := map[uint32]string{}
	seen := map[string]bool{}
	for _, k := range keys {
		if seen[k] {
			continue
		}
		seen[k] = true
		v, err := note.NewVerifier(k)
		if err != nil {
			return c, fmt.Errorf("checkpoint key %q: %w", clip(k), err)
		}
		known = append(known, v)
		byHash[v.KeyHash()] = k
	}
	for _, w := range witnesses {
		known = append(known, w)
	}
	n, err := note.Open(b, note.VerifierList(known...))
	if err != nil {
		return c, fmt.Errorf("checkpoint: %w", err)
	}
	if c.Tree, err = ParseText(n.Text); err != nil {
		return c, err
	}
	for _, s := range n.Sigs {
		if k, ok := byHash[s.Hash]; ok && s.Name == c.Origin {
			c.Verifier = k
			continue
		}
		raw, err := base64.StdEncoding.DecodeString(s.Base64)
		if err != nil || len(raw) < 12 {
			continue
		}
		c.Cosignatures = append(c.Cosignatures, Cosignature{Witness: s.Name, Time: binary.BigEndian.Uint64(raw[4:])})
	}
	if c.Verifier == "" {
		return c, fmt.Errorf("checkpoint: not signed by a key of %s", clip(c.Origin))
	}
	return c, nil
}

func clip(s string) string {
	const most = 80
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// keyHash is a key's short name in signed notes: not a control, only an index.
func keyHash(name string, key []byte) uint32 {
	h := sha256.New()
	h.Write([]byte(name + "\n"))
	h.Write(key)
	return binary.BigEndian.Uint32(h.Sum(nil))
}
