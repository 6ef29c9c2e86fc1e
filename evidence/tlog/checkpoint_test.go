package tlog

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"probity/evidence"
	"probity/evidence/sign"
)

var tree = Tree{Origin: origin, Size: 3, Root: mth(0, 3)}

func signed(t testing.TB, k *Key, tr Tree) []byte {
	t.Helper()
	b, err := k.Sign(tr)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// cosign is what a witness adds to a checkpoint.
func cosign(t testing.TB, checkpoint []byte, name string, key ed25519.PrivateKey, at uint64) []byte {
	t.Helper()
	text, _, _ := strings.Cut(string(checkpoint), "\n\n")
	sig := ed25519.Sign(key, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s\n", at, text))
	pub := key.Public().(ed25519.PublicKey)
	b := binary.BigEndian.AppendUint32(nil, keyHash(name, append([]byte{algCosignature}, pub...)))
	b = binary.BigEndian.AppendUint64(b, at)
	return append(checkpoint, "— "+name+" "+base64.StdEncoding.EncodeToString(append(b, sig...))+"\n"...)
}

func vkey(name string, alg byte, pub ed25519.PublicKey) string {
	k := append([]byte{alg}, pub...)
	return fmt.Sprintf("%s+%08x+%s", name, keyHash(name, k), base64.StdEncoding.EncodeToString(k))
}

func TestCheckpoint(t *testing.T) {
	k, other := testKey(t), testKey(t)
	b := signed(t, k, tree)
	c, err := OpenCheckpoint(b, []string{other.Verifier(), k.Verifier(), k.Verifier()}, nil)
	if err != nil || c.Tree != tree || c.Verifier != k.Verifier() || len(c.Cosignatures) != 0 {
		t.Fatalf("%+v, %v", c, err)
	}
	if !strings.HasPrefix(string(b), origin+"\n3\n"+tree.Root.String()+"\n\n— "+origin+" ") {
		t.Errorf("%s", b)
	}
	named, err := TreeOf(tree.Named())
	if err != nil || named != tree {
		t.Errorf("%+v, %v", named, err)
	}
	elsewhere, err := NewKey("other.test/probity/0011223344556677")
	if err != nil {
		t.Fatal(err)
	}
	for why, c := range map[string]struct {
		b    []byte
		keys []string
	}{
		"another key":               {b, []string{other.Verifier()}},
		"no key":                    {b, nil},
		"a key that is none":        {b, []string{"x"}},
		"another size":              {[]byte(strings.Replace(string(b), "\n3\n", "\n4\n", 1)), []string{k.Verifier()}},
		"an extension":              {extended(t, k), []string{k.Verifier()}},
		"a key of another log":      {signed(t, elsewhere, tree), []string{elsewhere.Verifier()}},
		"nothing":                   {nil, []string{k.Verifier()}},
		"huge":                      {make([]byte, MaxCheckpointBytes+1), []string{k.Verifier()}},
		"an empty tree with leaves": {signed(t, k, Tree{Origin: origin, Root: tree.Root}), []string{k.Verifier()}},
	} {
		if got, err := OpenCheckpoint(c.b, c.keys, nil); err == nil {
			t.Errorf("%s: taken: %+v", why, got)
		}
	}
}

func extended(t *testing.T, k *Key) []byte {
	b, err := note.Sign(&note.Note{Text: tree.Text() + "extension\n"}, k.signer)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseText(t *testing.T) {
	for _, bad := range []string{
		"", "\n\n\n", "o\n1\n", "o\n01\n" + Empty.String() + "\n", "o\n-1\n" + Empty.String() + "\n", "o\n1\nabc\n", "\n0\n" + Empty.String() + "\n",
		"o\n0\n" + Empty.String(), "o\n9223372036854775807\n" + Empty.String() + "\n", "o\n1\n" + Empty.String() + "\n\n",
	} {
		if tr, err := ParseText(bad); err == nil {
			t.Errorf("%q is taken: %+v", bad, tr)
		}
	}
	if tr, err := ParseText("o\n0\n" + Empty.String() + "\n"); err != nil || tr.Root != Empty {
		t.Errorf("%+v, %v", tr, err)
	}
}

// Witnesses (C2SP tlog-cosignature): one that is known is checked, one that is
// not is left aside, and one that is known and wrong spoils the checkpoint.
func TestWitness(t *testing.T) {
	k := testKey(t)
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	_, stranger, _ := ed25519.GenerateKey(rand.Reader)
	const name = "witness.test/w1"
	w, err := NewWitness(vkey(name, algCosignature, pub))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := NewWitness(vkey(name, algEd25519, pub))
	if err != nil || plain.KeyHash() != w.KeyHash() {
		t.Fatalf("the same witness by its plain key: %v", err)
	}
	keys := []string{k.Verifier()}
	b := cosign(t, cosign(t, signed(t, k, tree), name, key, 1_700_000_000), "other.test/w", stranger, 5)
	c, err := OpenCheckpoint(b, keys, []*Witness{w})
	if err != nil || len(c.Cosignatures) != 1 || c.Cosignatures[0] != (Cosignature{name, 1_700_000_000}) {
		t.Fatalf("%+v, %v", c.Cosignatures, err)
	}
	if c, err := OpenCheckpoint(b, keys, nil); err != nil || len(c.Cosignatures) != 0 {
		t.Errorf("without witnesses: %+v, %v", c.Cosignatures, err)
	}
	wrong := cosign(t, signed(t, k, tree), name, key, 7)
	wrong[len(wrong)-10] ^= 1
	if _, err := OpenCheckpoint(wrong, keys, []*Witness{w}); err == nil {
		t.Error("a witness's signature that does not match is taken")
	}
	if c, err := OpenCheckpoint(cosign(t, []byte(tree.Text()+"\n"), name, key, 7), keys, []*Witness{w}); err == nil {
		t.Errorf("a witness alone signed it: %+v", c)
	}
	for _, bad := range []string{"", name, name + "+00000000+" + base64.StdEncoding.EncodeToString(append([]byte{4}, pub...)), vkey(name, 2, pub)} {
		if _, err := NewWitness(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// history is a log's first leaves, and what signs them.
type history struct {
	t       testing.TB
	node    *sign.Signer
	keys    []*Key
	entries [][]byte
	at      evidence.Time
}

func newHistory(t testing.TB) *history {
	t.Helper()
	s, err := sign.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at, err := timeOf("2026-01-02T03:04:05.000000000Z")
	if err != nil {
		t.Fatal(err)
	}
	return &history{t: t, node: s, at: at}
}

func timeOf(s string) (t evidence.Time, err error) {
	err = t.UnmarshalText([]byte(s))
	return t, err
}

func (h *history) add(l evidence.Leaf) {
	h.t.Helper()
	b, err := evidence.EncodeLeaf(l, uint64(len(h.entries)), h.at)
	if err != nil {
		h.t.Fatal(err)
	}
	h.entries = append(h.entries, b)
}

// epoch adds one, changed before it is signed and after.
func (h *history) epoch(start string, before, after func(*evidence.EpochLeaf)) {
	h.t.Helper()
	k := testKey(h.t)
	l := &evidence.EpochLeaf{
		Index: evidence.Uint64(len(h.entries)), At: h.at, Format: evidence.LogFormat, Epoch: evidence.Uint64(len(h.keys)), Start: start, Origin: origin,
		Node: "node.test", BootID: "boot", Agent: "probity test", KeyID: h.node.KeyID(),
		PublicKey: base64.StdEncoding.EncodeToString(h.node.Public().DER()), CheckpointKey: k.Verifier(),
	}
	if before != nil {
		before(l)
	}
	unsigned, err := l.Unsigned()
	if err != nil {
		h.t.Fatal(err)
	}
	sig, err := h.node.Sign(evidence.EpochType, unsigned)
	if err != nil {
		h.t.Fatal(err)
	}
	l.Signature = base64.StdEncoding.EncodeToString(sig)
	if start == evidence.StartRotation {
		l.Announced = base64.StdEncoding.EncodeToString(h.keys[len(h.keys)-1].Announce(unsigned))
	}
	if after != nil {
		after(l)
	}
	h.add(l)
	h.keys = append(h.keys, k)
}

func (h *history) follow() (*Epochs, error) {
	e := &Epochs{Origin: origin, NodeKey: func(l *evidence.EpochLeaf, der, unsigned, sig []byte) error {
		p, err := sign.ParsePublic(der)
		if err != nil {
			return err
		}
		if p.KeyID() != h.node.KeyID() || l.KeyID != p.KeyID() {
			return errors.New("not the node's key")
		}
		return p.Verify(evidence.EpochType, unsigned, sig)
	}}
	for i, b := range h.entries {
		if _, err := e.See(uint64(i), b); err != nil {
			return e, err
		}
	}
	return e, nil
}

func TestEpochs(t *testing.T) {
	h := newHistory(t)
	h.epoch(evidence.StartFirst, nil, nil)
	h.add(&evidence.HeartbeatLeaf{Root: Empty.String()})
	h.epoch(evidence.StartRotation, nil, nil)
	h.add(&evidence.CloseLeaf{})
	h.epoch(evidence.StartClean, nil, nil)
	h.epoch(evidence.StartUnclean, nil, nil)
	e, err := h.follow()
	if err != nil {
		t.Fatal(err)
	}
	if len(e.All()) != 4 || e.Closed() {
		t.Errorf("%d epochs, closed %v", len(e.All()), e.Closed())
	}
	for size, want := range map[uint64]int{1: 0, 2: 0, 3: 1, 4: 1, 5: 2, 6: 3, 100: 3} {
		if k, ok := e.KeyAt(size); !ok || k != h.keys[want].Verifier() {
			t.Errorf("size %d: %s", size, k)
		}
	}
	if _, ok := e.KeyAt(0); ok {
		t.Error("a key of an empty log")
	}
}

// Each way in which leaves may not follow from one another.
func TestChain(t *testing.T) {
	first := func(h *history) { h.epoch(evidence.StartFirst, nil, nil) }
	beat := func(h *history) { h.add(&evidence.HeartbeatLeaf{Root: Empty.String()}) }
	for why, c := range map[string]struct {
		err   string
		steps []func(*history)
	}{
		"no epoch":              {"a log begins with an epoch", []func(*history){beat}},
		"a close before all":    {"a log begins with an epoch", []func(*history){func(h *history) { h.add(&evidence.CloseLeaf{}) }}},
		"after a close":         {"after a close", []func(*history){first, func(h *history) { h.add(&evidence.CloseLeaf{}) }, beat}},
		"closed twice":          {"after a close", []func(*history){first, func(h *history) { h.add(&evidence.CloseLeaf{}) }, func(h *history) { h.add(&evidence.CloseLeaf{}) }}},
		"clean without a close": {"starts clean", []func(*history){first, func(h *history) { h.epoch(evidence.StartClean, nil, nil) }}},
		"unclean after a close": {"after a close", []func(*history){first, func(h *history) { h.add(&evidence.CloseLeaf{}) }, func(h *history) { h.epoch(evidence.StartUnclean, nil, nil) }}},
		"an epoch left out":     {"epoch 2 after 1", []func(*history){first, func(h *history) { h.epoch(evidence.StartUnclean, func(l *evidence.EpochLeaf) { l.Epoch = 2 }, nil) }}},
		"another log's epoch": {"in the log", []func(*history){func(h *history) {
			h.epoch(evidence.StartFirst, func(l *evidence.EpochLeaf) { l.Origin = "other" }, nil)
		}}},
		"another log's key":      {"a checkpoint key of", []func(*history){func(h *history) { h.epoch(evidence.StartFirst, otherKey(t), nil) }}},
		"a leaf left out":        {"says that it is entry 2", []func(*history){first, beat, beat, func(h *history) { h.entries = append(h.entries[:1], h.entries[2:]...) }}},
		"changed after signing":  {"signature does not match", []func(*history){func(h *history) { h.epoch(evidence.StartFirst, nil, func(l *evidence.EpochLeaf) { l.Agent = "other" }) }}},
		"announced by nobody":    {"announcement's signature", []func(*history){first, func(h *history) { h.keys[0] = testKey(t) }, func(h *history) { h.epoch(evidence.StartRotation, nil, nil) }}},
		"signed by another node": {"not the node's key", []func(*history){func(h *history) { own := h.node; h.node = newHistory(t).node; first(h); h.node = own }}},
		"another key of the node": {"no succession leads there", []func(*history){first, func(h *history) {
			own := h.node
			h.node = newHistory(t).node
			h.epoch(evidence.StartUnclean, nil, nil)
			h.node = own
		}}},
		"a succession of others": {"no succession leads there", []func(*history){first, func(h *history) {
			own, next := h.node, newHistory(t).node
			link, err := newHistory(t).node.Succeed(next.Public(), h.at)
			if err != nil {
				t.Fatal(err)
			}
			h.node = next
			h.epoch(evidence.StartUnclean, func(l *evidence.EpochLeaf) {
				l.Format, l.Successions = evidence.LogFormat2, []evidence.Succession{link}
			}, nil)
			h.node = own
		}}},
		"no leaf": {"not a JSON object", []func(*history){first, func(h *history) { h.entries = append(h.entries, []byte("x")) }}},
	} {
		h := newHistory(t)
		for _, s := range c.steps {
			s(h)
		}
		if _, err := h.follow(); !errors.Is(err, ErrChain) || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v", why, err)
		}
	}
}

func otherKey(t *testing.T) func(*evidence.EpochLeaf) {
	k, err := NewKey("other.test/probity/0011223344556677")
	if err != nil {
		t.Fatal(err)
	}
	return func(l *evidence.EpochLeaf) { l.CheckpointKey = k.Verifier() }
}

func FuzzCheckpoint(f *testing.F) {
	k := testKey(f)
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	w, err := NewWitness(vkey("w", algCosignature, pub))
	if err != nil {
		f.Fatal(err)
	}
	good := signed(f, k, tree)
	f.Add(good)
	f.Add(cosign(f, good, "w", key, 9))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := OpenCheckpoint(b, []string{k.Verifier()}, []*Witness{w})
		if err == nil && c.Tree != tree {
			t.Errorf("nobody signed %+v", c.Tree)
		}
		if claim, claimErr := Claim(b); err == nil && (claimErr != nil || claim != tree) {
			t.Errorf("it is said to be over %+v, %v", claim, claimErr)
		}
	})
}

func FuzzEpochs(f *testing.F) {
	h := newHistory(f)
	h.epoch(evidence.StartFirst, nil, nil)
	h.epoch(evidence.StartRotation, nil, nil)
	f.Add(h.entries[0], h.entries[1])
	f.Fuzz(func(t *testing.T, first, second []byte) {
		h := &history{t: t, node: h.node, entries: [][]byte{first, second}}
		e, err := h.follow()
		if err == nil && len(e.All()) == 0 {
			t.Error("a log without an epoch")
		}
	})
}
