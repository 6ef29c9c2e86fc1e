package verify_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"probity/evidence"
	"probity/evidence/spool"
	"probity/evidence/tlog"
	"probity/evidence/verify"
)

// collected is a life of the agent that removes what its only consumer has.
func (n *theNode) collected(t testing.TB) {
	t.Helper()
	r, err := spool.NewReader(n.dir, "shipper")
	must(t, err)
	items, err := r.Pending(t.Context())
	must(t, err)
	_, err = r.Ack(t.Context(), items[0])
	must(t, err)
	s, err := spool.Open(spool.Config{Dir: n.dir, State: n.state, Node: "node-a", BootID: "boot", Agent: "probity test", Signer: n.signer, Clock: n.clock})
	must(t, err)
	removed, err := s.Collect(t.Context())
	if err != nil || removed != 1 {
		t.Fatalf("%d removed, %v", removed, err)
	}
	must(t, s.Close())
}

// threeLogs is a node whose state was lost twice: its second log says that it removed a
// chunk of the first, and both were put aside.
func threeLogs(t testing.TB) *theNode {
	t.Helper()
	n := nodeAt(t, t.TempDir())
	n.life(t, 1, 2, 3)
	must(t, os.RemoveAll(n.state))
	n.life(t, 4)
	n.collected(t)
	must(t, errors.Join(os.RemoveAll(n.state), os.RemoveAll(filepath.Join(n.dir, verify.AckDir))))
	n.life(t, 5)
	n.old = n.dir
	return n
}

// retired are the logs that were put aside, the older first.
func (n *theNode) retired(t testing.TB) [2]string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(n.dir, "retired", "*"))
	must(t, err)
	if len(dirs) != 2 {
		t.Fatal(dirs)
	}
	for i, d := range dirs {
		if strings.Contains(string(read(t, onlyEntry(t, d))), `"after"`) {
			return [2]string{dirs[1-i], d}
		}
	}
	t.Fatal("none follows the other")
	return [2]string{}
}

func onlyEntry(t testing.TB, log string) string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(log, "tile", "entries", "000.p", "*"))
	must(t, err)
	if len(list) != 1 {
		t.Fatal(list)
	}
	return list[0]
}

// A log says that the node removed a chunk of another, whichever of the two is read
// first: their directories are named by chance.
func TestTombstonesOfOtherLogs(t *testing.T) {
	base := threeLogs(t)
	for _, names := range [][2]string{{"a", "b"}, {"b", "a"}} {
		n := base.copied(t)
		for i, d := range n.retired(t) {
			must(t, os.Rename(d, filepath.Join(n.dir, "retired", names[i])))
		}
		rep, err := check(t, n.signer.Public(), n.dir)
		if err != nil || !rep.Sound() || rep.Log != verify.LogSound || len(rep.Logs) != 3 || rep.Chunks != 4 {
			t.Errorf("the older log is %s: %v, %v, %d logs, %d chunks", names[0], rep.Findings, err, len(rep.Logs), rep.Chunks)
		}
	}
}

// A log that nobody signed says nothing of what the node removed.
func TestForgedTombstone(t *testing.T) {
	n := threeLogs(t)
	older := n.retired(t)[0]
	note := read(t, filepath.Join(older, tlog.CheckpointFile))
	tree, err := tlog.Claim(note)
	must(t, err)
	var epoch []byte
	must(t, tlog.NewReader(os.DirFS(older)).Scan(t.Context(), tree, func(i uint64, e []byte) error {
		if i == 0 {
			epoch = append(epoch, e...)
		}
		return nil
	}))
	at := slices.IndexFunc(n.chunks(t), func(p string) bool {
		return strings.HasSuffix(p, tree.Origin[strings.LastIndexByte(tree.Origin, '/')+1:]+".ndjson")
	})
	gone := n.chunks(t)[at]
	must(t, os.Remove(gone))
	// The node's own first leaf, a tombstone, and a checkpoint by nobody's key.
	key, err := tlog.NewKey(tree.Origin)
	must(t, err)
	log, err := tlog.Open(filepath.Join(n.dir, "retired", "0"), tree.Origin)
	must(t, err)
	tomb, err := evidence.EncodeLeaf(&evidence.TombstoneLeaf{Chunk: strings.TrimSuffix(filepath.Base(gone), ".ndjson"), Of: 0, Reason: evidence.TombstoneQuota}, 1, n.clock().Wall)
	must(t, err)
	for _, e := range [][]byte{epoch, tomb} {
		_, err := log.Append(e)
		must(t, err)
	}
	must(t, log.Commit(key.Sign))
	rep, err := check(t, n.signer.Public(), n.dir)
	must(t, err)
	if got, want := fmt.Sprint(namesOf(rep.Findings)), fmt.Sprint(kinds(verify.LogDamaged, verify.Removed)); got != want {
		t.Errorf("found %s, want %s: %v", got, want, rep.Findings)
	}
}
