package verify_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/evidence/tlog"
	"probity/evidence/verify"
)

// theNode is a spool as an agent leaves it: three lives, the second killed (which is
// to say that it never closed), nine chunks.
type theNode struct {
	dir    string // the spool
	state  string
	signer *sign.Signer
	clock  func() evidence.Clock
	// kept is the checkpoint that a shipper saw before the last three chunks, old
	// the whole spool at that time, last the last checkpoint.
	kept, last []byte
	old        string
}

// copied is the same node once more, to be cheated on.
func (n *theNode) copied(t testing.TB) *theNode {
	t.Helper()
	c, root := *n, t.TempDir()
	c.dir, c.state, c.old = filepath.Join(root, "spool"), filepath.Join(root, "state"), filepath.Join(root, "old")
	for to, from := range map[string]string{c.dir: n.dir, c.state: n.state, c.old: n.old} {
		must(t, os.CopyFS(to, os.DirFS(from)))
	}
	return &c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func nodeAt(t testing.TB, dir string) *theNode {
	t.Helper()
	s, err := sign.LoadOrCreate(dir)
	must(t, err)
	n := &theNode{dir: filepath.Join(dir, "spool"), state: filepath.Join(dir, "state"), signer: s}
	var mu sync.Mutex
	boot := int64(1e12)
	n.clock = func() evidence.Clock {
		mu.Lock()
		defer mu.Unlock()
		boot += 1e6
		return evidence.Clock{BootNs: evidence.Uint64(boot), Wall: evidence.TimeOf(time.Unix(1_700_000_000, boot))}
	}
	return n
}

func (n *theNode) life(t testing.TB, runs ...int) {
	t.Helper()
	s, err := spool.Open(spool.Config{Dir: n.dir, State: n.state, Node: "node-a", BootID: "boot", Agent: "probity test", Signer: n.signer, Clock: n.clock})
	must(t, err)
	for _, run := range runs {
		must(t, errors.Join(s.Append(fmt.Sprintf("%032x", run), func(c evidence.Clock) []redact.Line { return noRules.Lines(aRun(run)(c)...) }), s.Flush(t.Context())))
	}
	must(t, s.Close())
}

// noRules redacts nothing.
var noRules *redact.Redactor

// write appends lines of one run, as a life of the agent of its own.
func (n *theNode) write(t testing.TB, run int, each ...func(evidence.Clock) []evidence.Line) {
	t.Helper()
	s, err := spool.Open(spool.Config{Dir: n.dir, State: n.state, Node: "node-a", BootID: "boot", Agent: "probity test", Signer: n.signer, Clock: n.clock})
	must(t, err)
	for _, lines := range each {
		must(t, errors.Join(s.Append(fmt.Sprintf("%032x", run), func(c evidence.Clock) []redact.Line { return noRules.Lines(lines(c)...) }), s.Flush(t.Context())))
	}
	must(t, s.Close())
}

// aHit is aRun whose site was executed.
func aHit(run int) func(evidence.Clock) []evidence.Line {
	return func(c evidence.Clock) []evidence.Line {
		lines, n, at := aRun(run)(c), evidence.Uint64(3), c.Time(int64(c.BootNs))
		o := lines[1].(*evidence.Observation)
		o.State, o.Count, o.FirstAt, o.LastAt = evidence.Hit, &n, at, at
		return lines
	}
}

// notArmed is aRun whose site was never armed, as it says.
func notArmed(run int) func(evidence.Clock) []evidence.Line {
	return func(c evidence.Clock) []evidence.Line {
		lines := aRun(run)(c)
		o := lines[1].(*evidence.Observation)
		o.State, o.Reason, o.Count, o.Complete, o.Confidence.Value = evidence.NotArmed, evidence.AttachFailed, nil, false, 0
		return lines
	}
}

func aRun(run int) func(evidence.Clock) []evidence.Line {
	return func(c evidence.Clock) []evidence.Line {
		at, id, zero, off := c.Time(int64(c.BootNs)), fmt.Sprintf("%032x", run), evidence.Uint64(0), evidence.Uint64(4096)
		return []evidence.Line{
			&evidence.Coverage{
				RunID: id, ContainerID: "container", Runtime: "podman", ImageDigestReason: "no image", BootID: "boot", CgroupID: 7, Attribution: "cgroup",
				Source: "hook", From: at, To: at, Final: true,
			},
			&evidence.Observation{
				State: evidence.ArmedNoHit, ProbeType: evidence.Uprobe, RequestedProbeType: evidence.Uprobe, RunID: id, ContainerID: "container", Runtime: "podman",
				ImageDigestReason: "no image", ProbeID: "p", Symbol: "f", SymbolKind: "func", Offset: &off, Path: "/bin/f", Detail: "no digest in this test", Count: &zero,
				Confidence: evidence.Confidence{Version: "test", Inputs: evidence.Inputs{ProbeType: "uprobe", Attribution: "cgroup", Symbol: "func", Losses: "none"}},
				Complete:   true, Final: true, From: at, To: at,
			},
		}
	}
}

func newTheNode(t testing.TB) *theNode {
	t.Helper()
	root := t.TempDir()
	n := nodeAt(t, root)
	n.life(t, 1, 2, 3)
	n.life(t, 4, 5, 6)
	var err error
	n.kept, err = os.ReadFile(filepath.Join(n.dir, "log", "checkpoint"))
	must(t, err)
	n.old = filepath.Join(root, "old")
	must(t, os.CopyFS(n.old, os.DirFS(n.dir)))
	n.life(t, 7, 8, 9)
	n.last, err = os.ReadFile(filepath.Join(n.dir, "log", "checkpoint"))
	must(t, err)
	return n
}

// chunks lists the chunk files, oldest first.
func (n *theNode) chunks(t testing.TB) (out []string) {
	t.Helper()
	must(t, filepath.WalkDir(filepath.Join(n.dir, "ready"), func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			out = append(out, p)
		}
		return err
	}))
	return out
}

func edit(t testing.TB, path string, how func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, how(b), 0o600))
}

func replaced(t testing.TB, b []byte, from, to string) []byte {
	t.Helper()
	out := bytes.Replace(b, []byte(from), []byte(to), 1)
	if bytes.Equal(out, b) {
		t.Fatalf("nothing was changed: %q is not there", from)
	}
	return out
}

// resign signs a chunk's lines anew.
func resign(t testing.TB, b []byte, s *sign.Signer, edit func(string) string) []byte {
	t.Helper()
	lines := strings.SplitAfter(string(b), "\n")
	h, err := evidence.DecodeHeader(strings.TrimSuffix(lines[0], "\n"))
	must(t, err)
	var list []evidence.Line
	for _, l := range lines[1 : len(lines)-2] {
		d, err := evidence.Decode(strings.TrimSuffix(edit(l), "\n"))
		must(t, err)
		list = append(list, d)
	}
	return sealedAs(t, h, s, list)
}

// sealedAs is a chunk with this very header.
func sealedAs(t testing.TB, h evidence.Header, s *sign.Signer, list []evidence.Line) []byte {
	t.Helper()
	h.KeyID = s.KeyID()
	line, err := evidence.EncodeHeader(h)
	must(t, err)
	body := append(line, '\n')
	var tally evidence.Tally
	for _, l := range list {
		b, err := evidence.Encode(l)
		must(t, err)
		body = append(append(body, b...), '\n')
		tally.Add(l)
	}
	payload, err := evidence.EncodeStatement(tally.Statement(h, fmt.Sprintf("%x", sha256.Sum256(body))))
	must(t, err)
	envelope, err := s.Envelope(payload)
	must(t, err)
	return append(append(body, envelope...), '\n')
}

// rebuilt writes a log with other entries over the one that is there. The key is
// the one that signs the checkpoint.
func (n *theNode) rebuilt(t testing.TB, key *tlog.Key, change func([][]byte) [][]byte) {
	t.Helper()
	dir := filepath.Join(n.dir, "log")
	list := n.entries(t)
	origin := tlog.OriginOf(n.last)
	must(t, os.RemoveAll(dir))
	l, err := tlog.Open(dir, origin)
	must(t, err)
	for _, e := range change(list) {
		_, err := l.Append(e)
		must(t, err)
	}
	must(t, l.Commit(key.Sign))
}

func (n *theNode) entries(t testing.TB) (list [][]byte) {
	t.Helper()
	dir := filepath.Join(n.dir, "log")
	l, err := tlog.Open(dir, tlog.OriginOf(n.last))
	must(t, err)
	must(t, tlog.NewReader(os.DirFS(dir)).Scan(context.Background(), l.Tree(), func(_ uint64, e []byte) error {
		list = append(list, bytes.Clone(e))
		return nil
	}))
	return list
}

// insider builds a log as only the node itself could: it holds the node's key.
func (n *theNode) insider(t testing.TB, leaves func(add func(evidence.Leaf))) {
	t.Helper()
	key, err := tlog.NewKey(tlog.OriginOf(n.last))
	must(t, err)
	at := n.clock().Wall
	var list [][]byte
	add := func(l evidence.Leaf) {
		b, err := evidence.EncodeLeaf(l, uint64(len(list)), at)
		must(t, err)
		list = append(list, b)
	}
	own := n.signer.Public()
	e := &evidence.EpochLeaf{
		At: at, Format: evidence.LogFormat, Start: evidence.StartFirst, Origin: tlog.OriginOf(n.last), Node: "node-a", BootID: "boot", Agent: "probity test",
		KeyID: own.KeyID(), PublicKey: base64.StdEncoding.EncodeToString(own.DER()), CheckpointKey: key.Verifier(),
	}
	unsigned, err := e.Unsigned()
	must(t, err)
	sig, err := n.signer.Sign(evidence.EpochType, unsigned)
	must(t, err)
	e.Signature = base64.StdEncoding.EncodeToString(sig)
	add(e)
	leaves(add)
	n.rebuilt(t, key, func([][]byte) [][]byte { return list })
}

func checkpointKey(t testing.TB, n *theNode) *tlog.Key {
	t.Helper()
	k, err := tlog.NewKey(tlog.OriginOf(n.last))
	must(t, err)
	return k
}

// attack is one way to cheat, and under which names it has to be found. Nothing is
// named where it cannot be found at all.
type attack struct {
	class, way string
	do         func(t *testing.T, n *theNode)
	want       []verify.Kind
	// anchored: the verifier has the checkpoint that a shipper saw last.
	anchored bool
}

func attacks() []attack {
	other := func(t *testing.T) *sign.Signer {
		s, err := sign.LoadOrCreate(t.TempDir())
		must(t, err)
		return s
	}
	same := func(s string) string { return s }
	hide := func(s string) string {
		return strings.Replace(s, `"symbol":"f"`, `"symbol":"g"`, 1)
	}
	k := func(kinds ...verify.Kind) []verify.Kind { return kinds }
	return []attack{
		{"modify", "one byte of a line", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte { return replaced(t, b, `"symbol":"f"`, `"symbol":"g"`) })
		}, k(verify.Modified), false},
		{"modify", "a line, not in canonical form", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte { return replaced(t, b, `,"symbol"`, `, "symbol"`) })
		}, k(verify.Malformed, verify.Modified), false},
		{"modify", "the header's clock", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte { return replaced(t, b, `"wall":"2023-11-14T22`, `"wall":"2023-11-14T23`) })
		}, k(verify.Modified), false},
		{"modify", "a line left out", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte {
				lines := bytes.SplitAfter(b, []byte("\n"))
				return bytes.Join(slices.Delete(lines, 2, 3), nil)
			})
		}, k(verify.Modified), false},
		{"modify", "two lines exchanged", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte {
				lines := bytes.SplitAfter(b, []byte("\n"))
				lines[1], lines[2] = lines[2], lines[1]
				return bytes.Join(lines, nil)
			})
		}, k(verify.Modified), false},
		{"modify", "a line twice", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte {
				lines := bytes.SplitAfter(b, []byte("\n"))
				return bytes.Join(slices.Insert(lines, 2, lines[2]), nil)
			})
		}, k(verify.Modified), false},
		{"modify", "signed anew by the node's own key", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte { return resign(t, b, n.signer, hide) })
		}, k(verify.Modified), false},
		{"modify", "the same lines, signed once more by the node's own key", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte { return resign(t, b, n.signer, same) })
		}, k(verify.Modified), false},
		{"modify", "a leaf with another length of its chunk, by the node itself", func(t *testing.T, n *theNode) {
			n.insider(t, func(add func(evidence.Leaf)) {
				for _, e := range n.entries(t)[1:4] { // behind the epoch
					l, err := evidence.DecodeLeaf(string(e))
					must(t, err)
					l.(*evidence.ChunkLeaf).Bytes++
					add(l)
				}
			})
			for _, c := range n.chunks(t)[3:] {
				must(t, os.Remove(c))
			}
		}, k(verify.Modified), false},

		{"forge", "signed with another key", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte { return resign(t, b, other(t), hide) })
		}, k(verify.KeyUnknown), false},
		{"forge", "signed with another key under the node's name", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte {
				o := other(t)
				return bytes.ReplaceAll(resign(t, b, o, hide), []byte(o.KeyID()), []byte(n.signer.KeyID()))
			})
		}, k(verify.Forged), false},
		{"forge", "another chunk's envelope", func(t *testing.T, n *theNode) {
			c := n.chunks(t)
			from, err := os.ReadFile(c[1])
			must(t, err)
			edit(t, c[0], func(b []byte) []byte {
				end, own := bytes.LastIndexByte(from[:len(from)-1], '\n'), bytes.LastIndexByte(b[:len(b)-1], '\n')
				return append(bytes.Clone(b[:own+1]), from[end+1:]...)
			})
		}, k(verify.Modified), false},
		{"forge", "another chunk's signature", func(t *testing.T, n *theNode) {
			c := n.chunks(t)
			from, err := os.ReadFile(c[1])
			must(t, err)
			sig := from[bytes.LastIndex(from, []byte(`"sig":"`)):]
			edit(t, c[0], func(b []byte) []byte {
				return append(bytes.Clone(b[:bytes.LastIndex(b, []byte(`"sig":"`))]), sig...)
			})
		}, k(verify.Forged), false},
		{"forge", "a chunk that was never there, by another key", func(t *testing.T, n *theNode) {
			b, err := os.ReadFile(n.chunks(t)[0])
			must(t, err)
			_, instance, _ := evidence.ParseChunkName(strings.TrimSuffix(filepath.Base(n.chunks(t)[0]), ".ndjson"))
			h, err := evidence.DecodeHeader(string(b[:bytes.IndexByte(b, '\n')]))
			must(t, err)
			h.Seq, h.Chunk = 77, evidence.ChunkName(77, instance)
			put(t, n.dir, h.Chunk, sealedAs(t, h, other(t), aRun(5)(n.clock())))
		}, k(verify.KeyUnknown), false},

		{"insert", "a chunk by the node's own key, in no log", func(t *testing.T, n *theNode) {
			n.insert(t, "")
		}, k(verify.NotInLog), false},
		{"insert", "a chunk by the node's own key, that says that it is in the log", func(t *testing.T, n *theNode) {
			n.insert(t, tlog.OriginOf(n.last))
		}, k(verify.NotInLog), false},
		{"insert", "a chunk of another log of the same node", func(t *testing.T, n *theNode) {
			n.insert(t, "node-a/probity/0123456789abcdef")
		}, k(verify.LogMissing), false},
		{"insert", "a link to a chunk", func(t *testing.T, n *theNode) {
			c := n.chunks(t)
			must(t, errors.Join(os.Rename(c[0], filepath.Join(n.dir, "x")), os.Symlink(filepath.Join(n.dir, "x"), c[0])))
		}, k(verify.Misplaced, verify.Removed), false},

		{"remove", "the oldest chunk", func(t *testing.T, n *theNode) { must(t, os.Remove(n.chunks(t)[0])) }, k(verify.Removed), false},
		{"remove", "one in the middle", func(t *testing.T, n *theNode) { must(t, os.Remove(n.chunks(t)[4])) }, k(verify.Removed), false},
		{"remove", "the newest chunk", func(t *testing.T, n *theNode) { must(t, os.Remove(n.chunks(t)[8])) }, k(verify.Removed), false},
		{"remove", "a chunk, and something of its name in tmp/", func(t *testing.T, n *theNode) {
			c := n.chunks(t)[4]
			must(t, errors.Join(os.Remove(c), os.WriteFile(filepath.Join(n.dir, "tmp", filepath.Base(c)), nil, 0o600)))
		}, k(verify.Removed), false},
		{"remove", "a chunk, and a directory of its name in its place", func(t *testing.T, n *theNode) {
			c := n.chunks(t)[4]
			must(t, errors.Join(os.Remove(c), os.Mkdir(c, 0o700)))
		}, k(verify.Removed), false},
		{"remove", "a chunk, and another one of the node's under its name in tmp/", func(t *testing.T, n *theNode) {
			c := n.chunks(t)
			b, err := os.ReadFile(c[3])
			must(t, err)
			must(t, errors.Join(os.Remove(c[4]), os.WriteFile(filepath.Join(n.dir, "tmp", filepath.Base(c[4])), b, 0o600)))
		}, k(verify.Removed), false},
		{"remove", "the newest chunk and its leaf, under a checkpoint of one's own", func(t *testing.T, n *theNode) {
			must(t, os.Remove(n.chunks(t)[8]))
			n.rebuilt(t, checkpointKey(t, n), func(l [][]byte) [][]byte { return l[:len(l)-2] })
		}, k(verify.LogDamaged, verify.LogMissing), false},
		{"remove", "the log", func(t *testing.T, n *theNode) { must(t, os.RemoveAll(filepath.Join(n.dir, "log"))) }, k(verify.LogMissing), false},
		{"remove", "the checkpoint", func(t *testing.T, n *theNode) { must(t, os.Remove(filepath.Join(n.dir, "log", "checkpoint"))) }, k(verify.LogMissing), false},
		{"remove", "a tile of entries", func(t *testing.T, n *theNode) {
			must(t, os.RemoveAll(filepath.Join(n.dir, "log", "tile", "entries")))
		}, k(verify.LogDamaged, verify.LogMissing), false},

		{"reorder", "two chunks' names exchanged", func(t *testing.T, n *theNode) {
			c := n.chunks(t)
			must(t, errors.Join(os.Rename(c[0], c[0]+"x"), os.Rename(c[1], c[0]), os.Rename(c[0]+"x", c[1])))
		}, k(verify.Misplaced), false},
		{"reorder", "two leaves exchanged, by the node itself", func(t *testing.T, n *theNode) {
			n.insider(t, func(add func(evidence.Leaf)) {
				var all []*evidence.ChunkLeaf
				for _, e := range n.entries(t) {
					if l, err := evidence.DecodeLeaf(string(e)); err == nil {
						if c, ok := l.(*evidence.ChunkLeaf); ok {
							all = append(all, c)
						}
					}
				}
				all[1], all[2] = all[2], all[1]
				for _, c := range all {
					add(c)
				}
			})
		}, k(verify.Reordered), false},

		{"duplicate", "a chunk under another number", func(t *testing.T, n *theNode) {
			b, err := os.ReadFile(n.chunks(t)[0])
			must(t, err)
			_, instance, _ := evidence.ParseChunkName(strings.TrimSuffix(filepath.Base(n.chunks(t)[0]), ".ndjson"))
			put(t, n.dir, evidence.ChunkName(99, instance), b)
		}, k(verify.Misplaced), false},
		{"duplicate", "a chunk in another directory", func(t *testing.T, n *theNode) {
			c := n.chunks(t)[0]
			b, err := os.ReadFile(c)
			must(t, err)
			must(t, os.MkdirAll(filepath.Join(n.dir, "ready", "0000000001"), 0o755))
			must(t, os.WriteFile(filepath.Join(n.dir, "ready", "0000000001", filepath.Base(c)), b, 0o600))
		}, k(verify.Misplaced), false},
		{"duplicate", "one chunk is two leaves, by the node itself", func(t *testing.T, n *theNode) {
			n.insider(t, func(add func(evidence.Leaf)) {
				for _, e := range n.entries(t) {
					if l, err := evidence.DecodeLeaf(string(e)); err == nil {
						if c, ok := l.(*evidence.ChunkLeaf); ok {
							add(c)
						}
					}
				}
				l, err := evidence.DecodeLeaf(string(n.entries(t)[1]))
				must(t, err)
				add(l)
			})
		}, k(verify.Reordered, verify.Duplicated), false},

		{"truncate", "the last byte", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte { return b[:len(b)-1] })
		}, k(verify.Truncated), false},
		{"truncate", "the envelope", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte { return b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1] })
		}, k(verify.Truncated), false},
		{"truncate", "everything", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func([]byte) []byte { return nil })
		}, k(verify.Truncated), false},
		{"truncate", "something behind the envelope", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte { return append(b, '{') })
		}, k(verify.Truncated), false},

		{"roll back", "the log alone", func(t *testing.T, n *theNode) {
			must(t, os.RemoveAll(filepath.Join(n.dir, "log")))
			must(t, os.CopyFS(filepath.Join(n.dir, "log"), os.DirFS(filepath.Join(n.old, "log"))))
		}, k(verify.NotInLog), false},
		{"roll back", "the whole spool, and the verifier has no later checkpoint", func(t *testing.T, n *theNode) {
			must(t, os.RemoveAll(n.dir))
			must(t, os.CopyFS(n.dir, os.DirFS(n.old)))
		}, nil, false},
		{"roll back", "the whole spool, and the verifier has a later checkpoint", func(t *testing.T, n *theNode) {
			must(t, os.RemoveAll(n.dir))
			must(t, os.CopyFS(n.dir, os.DirFS(n.old)))
		}, k(verify.RolledBack), true},
		{"roll back", "another history, written by who has the node's key", func(t *testing.T, n *theNode) {
			n.rewrite(t)
		}, k(verify.RolledBack), true},
		{"roll back", "another history under another name, written by who has the node's key", func(t *testing.T, n *theNode) {
			must(t, os.RemoveAll(n.dir))
			must(t, os.RemoveAll(n.state))
			n.life(t, 1, 2, 3)
		}, k(verify.LogMissing), true},

		{"roll back", "the spool without what a consumer acknowledged", func(t *testing.T, n *theNode) {
			r, err := spool.NewReader(n.dir, "shipper")
			must(t, err)
			items, err := r.Pending(t.Context())
			must(t, err)
			_, err = r.Ack(t.Context(), items[len(items)-1])
			must(t, err)
			must(t, os.CopyFS(filepath.Join(n.old, "ack"), os.DirFS(filepath.Join(n.dir, "ack"))))
			must(t, os.RemoveAll(n.dir))
			must(t, os.CopyFS(n.dir, os.DirFS(n.old)))
		}, k(verify.RolledBack), false},
		{"roll back", "an acknowledgement of another history", func(t *testing.T, n *theNode) {
			must(t, os.MkdirAll(filepath.Join(n.dir, "ack"), 0o755))
			a := fmt.Sprintf(`{"consumer":"shipper","origin":%q,"size":"3","root":%q,"at":"2026-01-02T03:04:05.000000000Z"}`, tlog.OriginOf(n.last), tlog.Empty)
			must(t, os.WriteFile(filepath.Join(n.dir, "ack", "shipper.json"), []byte(a), 0o600))
		}, k(verify.RolledBack), false},
		{"roll back", "an acknowledgement that is none", func(t *testing.T, n *theNode) {
			must(t, os.MkdirAll(filepath.Join(n.dir, "ack"), 0o755))
			must(t, os.WriteFile(filepath.Join(n.dir, "ack", "shipper.json"), []byte("{}"), 0o600))
		}, k(verify.Malformed), false},

		{"log", "an entry changed", func(t *testing.T, n *theNode) {
			n.spoilEntries(t, func(b []byte) []byte { return replaced(t, b, `"leaf":"chunk"`, `"leaf":"chunX"`) })
		}, k(verify.LogDamaged, verify.LogMissing), false},
		{"log", "a tombstone put in, under a checkpoint of one's own", func(t *testing.T, n *theNode) {
			name := strings.TrimSuffix(filepath.Base(n.chunks(t)[8]), ".ndjson")
			must(t, os.Remove(n.chunks(t)[8]))
			n.rebuilt(t, checkpointKey(t, n), func(l [][]byte) [][]byte {
				b, err := evidence.EncodeLeaf(&evidence.TombstoneLeaf{Chunk: name, Of: 1, Reason: evidence.TombstoneQuota}, uint64(len(l)-1), n.clock().Wall)
				must(t, err)
				return append(l[:len(l)-1], b)
			})
		}, k(verify.LogDamaged, verify.LogMissing), false},
		{"log", "an epoch put in that another node's key opened", func(t *testing.T, n *theNode) {
			own := n.signer
			n.signer = other(t)
			n.insider(t, func(func(evidence.Leaf)) {})
			n.signer = own
		}, k(verify.KeyUnknown, verify.LogMissing), false},
		{"log", "the checkpoint's signature changed", func(t *testing.T, n *theNode) {
			edit(t, filepath.Join(n.dir, "log", "checkpoint"), func(b []byte) []byte { b[len(b)-20] ^= 1; return b })
		}, k(verify.LogDamaged, verify.LogMissing), false},
		{"log", "the checkpoint is a FIFO's worth of nothing", func(t *testing.T, n *theNode) {
			edit(t, filepath.Join(n.dir, "log", "checkpoint"), func([]byte) []byte { return nil })
		}, k(verify.LogDamaged, verify.LogMissing), false},

		{"heartbeat", "over other lines, by the node itself", func(t *testing.T, n *theNode) {
			list := n.entries(t)
			n.insider(t, func(add func(evidence.Leaf)) {
				for _, e := range list {
					if l, err := evidence.DecodeLeaf(string(e)); err == nil {
						if c, ok := l.(*evidence.ChunkLeaf); ok {
							h, _, err := chunkHeader(n, c.Chunk)
							must(t, err)
							if uint64(*h.Leaf) != uint64(c.Index) {
								return
							}
							add(c)
							add(&evidence.HeartbeatLeaf{Runs: 1, Root: tlog.Empty.String()})
							return
						}
					}
				}
			})
			for _, c := range n.chunks(t)[1:] {
				must(t, os.Remove(c))
			}
		}, k(verify.Heartbeat), false},

		{"take back", "a hit, by the node itself, that says later that there was none", func(t *testing.T, n *theNode) {
			n.write(t, 50, aRun(50), aHit(50), aRun(50))
		}, k(verify.HitTakenBack), false},
		{"take back", "a hit, by the node itself, that says later that it was never armed", func(t *testing.T, n *theNode) {
			n.write(t, 50, aHit(50), notArmed(50))
		}, k(verify.HitTakenBack), false},
		{"take back", "a hit, by the node itself, before it says that its agent was down", func(t *testing.T, n *theNode) {
			gap := func(ends bool) func(evidence.Clock) []evidence.Line {
				return func(c evidence.Clock) []evidence.Line {
					at := c.Time(int64(c.BootNs))
					g := &evidence.Gap{GapID: "g", Scope: evidence.ScopeRun, Reason: evidence.GapAgentDown, RunID: fmt.Sprintf("%032x", 50), ContainerID: "container", From: at}
					if ends {
						g.To = at
					}
					return []evidence.Line{g}
				}
			}
			n.write(t, 50, gap(false), aHit(50), aRun(50), gap(true))
		}, k(verify.HitTakenBack), false},

		{"version", "a format that is newer", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte { return replaced(t, b, `probity-chunk/3`, `probity-chunk/4`) })
		}, k(verify.NewerFormat), false},
		{"version", "a format that never was", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte { return replaced(t, b, `probity-chunk/3`, `probity-chunk/0`) })
		}, k(verify.Malformed, verify.Modified), false},
		{"version", "the place in the log taken out of a header", func(t *testing.T, n *theNode) {
			edit(t, n.chunks(t)[0], func(b []byte) []byte {
				h, err := evidence.DecodeHeader(string(b[:bytes.IndexByte(b, '\n')]))
				must(t, err)
				h.Log, h.Leaf = "", nil
				line, err := evidence.EncodeHeader(h)
				must(t, err)
				return append(append(line, '\n'), b[bytes.IndexByte(b, '\n')+1:]...)
			})
		}, k(verify.Modified), false},
	}
}

func chunkHeader(n *theNode, name string) (evidence.Header, []byte, error) {
	b, err := os.ReadFile(filepath.Join(n.dir, "ready", filepath.FromSlash(evidence.ChunkPath(name))))
	if err != nil {
		return evidence.Header{}, nil, err
	}
	h, err := evidence.DecodeHeader(string(b[:bytes.IndexByte(b, '\n')]))
	return h, b, err
}

// insert signs a further chunk with the node's key.
func (n *theNode) insert(t testing.TB, log string) {
	t.Helper()
	_, instance, _ := evidence.ParseChunkName(strings.TrimSuffix(filepath.Base(n.chunks(t)[0]), ".ndjson"))
	c := n.clock()
	h := evidence.Header{Format: evidence.Format2, Node: "node-a", BootID: "boot", Seq: 77, Chunk: evidence.ChunkName(77, instance), Clock: c, Agent: "probity test"}
	if log != "" {
		leaf := evidence.Uint64(2)
		h.Log, h.Leaf = log, &leaf
	}
	put(t, n.dir, h.Chunk, sealedAs(t, h, n.signer, aRun(77)(c)))
}

// rewrite gives the log, under its own name, another history.
func (n *theNode) rewrite(t testing.TB) {
	t.Helper()
	for _, c := range n.chunks(t) {
		must(t, os.Remove(c))
	}
	n.insider(t, func(add func(evidence.Leaf)) {
		for range 20 {
			add(&evidence.HeartbeatLeaf{Root: tlog.Empty.String()})
		}
	})
}

func (n *theNode) spoilEntries(t testing.TB, how func([]byte) []byte) {
	t.Helper()
	must(t, filepath.WalkDir(filepath.Join(n.dir, "log", "tile", "entries"), func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			edit(t, p, how)
		}
		return err
	}))
}

// Every way to cheat is found, under its right name, and where it cannot be found
// that is written down here too.
func TestAttacks(t *testing.T) {
	classes := map[string]int{}
	undetected := 0
	base := newTheNode(t)
	for _, a := range attacks() {
		t.Run(a.class+"/"+a.way, func(t *testing.T) {
			n := base.copied(t)
			var opts verify.Options
			if a.anchored {
				for _, b := range [][]byte{n.kept, n.last} {
					k, err := verify.ParseKept("kept", b)
					must(t, err)
					opts.Kept = append(opts.Kept, k)
				}
			}
			if rep, err := verify.Path(t.Context(), []string{n.dir}, n.signer.Public(), opts); err != nil || !rep.Sound() || rep.Log != verify.LogSound || rep.Chunks != 9 {
				t.Fatalf("before: %v, %v", rep.Findings, err)
			}
			a.do(t, n)
			rep, err := verify.Path(t.Context(), []string{n.dir}, n.signer.Public(), opts)
			var got []verify.Kind
			for _, f := range rep.Findings {
				if !slices.Contains(got, f.Kind) {
					got = append(got, f.Kind)
				}
			}
			slices.Sort(got)
			want := slices.Clone(a.want)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("found %v, want %v: %v, %v", got, want, rep.Findings, err)
			}
		})
		classes[a.class]++
		if a.want == nil {
			undetected++
		}
	}
	if len(classes) < 8 || len(attacks())-undetected < 25 {
		t.Errorf("%d classes, %d ways", len(classes), len(attacks())-undetected)
	}
	seen := map[verify.Kind]bool{}
	for _, a := range attacks() {
		for _, k := range a.want {
			seen[k] = true
		}
	}
	for _, m := range mistrusted { // TestTrust
		for _, k := range m.want {
			seen[k] = true
		}
	}
	for _, a := range hostileArchives { // TestHostileArchives
		for _, k := range a.want {
			seen[k] = true
		}
	}
	seen[verify.Unwitnessed], seen[verify.Incomplete] = true, true // TestWitnesses, TestRequireComplete
	for _, k := range verify.Kinds {
		if !seen[k] {
			t.Errorf("no attack is found as %s", k)
		}
	}
}

func FuzzKept(f *testing.F) {
	f.Add([]byte("o\n0\n" + tlog.Empty.String() + "\n\n— o AAAAAA==\n"))
	f.Add([]byte(`{"consumer":"c","origin":"o","size":"1","root":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","at":"2026-01-02T03:04:05.000000000Z"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := verify.ParseKept("x", b); err == nil && k.Origin == "" {
			t.Error("of no log")
		}
	})
}
