package spool_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"probity/evidence/spool"
	"probity/evidence/tlog"
	"probity/evidence/verify"
)

func reader(t testing.TB, n *node, consumer string) *spool.Reader {
	t.Helper()
	r, err := spool.NewReader(n.cfg.Dir, consumer)
	must(t, err)
	return r
}

func pending(t testing.TB, r *spool.Reader) []spool.Item {
	t.Helper()
	items, err := r.Pending(t.Context())
	must(t, err)
	return items
}

// A consumer gets every chunk once, in order, across a log that was lost, and
// again until it has acknowledged it; another consumer is not concerned.
func TestReader(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	for i := range 3 {
		n.publish(t, s, i+1, true)
	}
	must(t, s.Close())
	r, other := reader(t, n, "otel"), reader(t, n, "rsyslog-2")
	items := pending(t, r)
	if len(items) != 3 || len(pending(t, other)) != 3 {
		t.Fatalf("%d chunks wait", len(items))
	}
	b, err := r.Read(items[0])
	if err != nil || len(b) != int(items[0].Bytes) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	a, err := r.Ack(t.Context(), items[1])
	must(t, err)
	if k := n.logs(t)[0]; a.Origin != k.tree.Origin || uint64(a.Size) != uint64(items[1].Leaf)+1 {
		t.Errorf("acknowledged %+v", a)
	}
	if again := pending(t, r); len(again) != 1 || again[0] != items[2] || len(pending(t, other)) != 3 {
		t.Errorf("after the acknowledgement: %+v", again)
	}
	if _, err := r.Ack(t.Context(), items[0]); err == nil {
		t.Error("acknowledged backwards")
	}
	// Another log begins.
	spoilFile(t, filepath.Join(n.cfg.Dir, spool.LogDir, tlog.CheckpointFile), func(b []byte) []byte { b[len(b)-20] ^= 1; return b })
	s = n.open(t)
	n.publish(t, s, 4, true)
	must(t, s.Close())
	spoilFile(t, onlyRetired(t, n), func(b []byte) []byte { b[len(b)-20] ^= 1; return b })
	left := pending(t, r)
	if len(left) != 2 || left[0] != items[2] || left[1].Origin == items[2].Origin {
		t.Fatalf("over two logs: %+v", left)
	}
	if _, err := r.Ack(t.Context(), left[1]); err != nil {
		t.Error(err)
	}
	if left := pending(t, r); len(left) != 0 {
		t.Errorf("after all: %+v", left)
	}
	if _, err := r.Ack(t.Context(), items[2]); err == nil {
		t.Error("acknowledged backwards, in an earlier log")
	}
	root, err := os.OpenRoot(n.cfg.Dir)
	must(t, err)
	defer root.Close()
	acks, bad, err := verify.Acks(root)
	if err != nil || len(bad) != 0 || len(acks) != 1 || acks[0].Consumer != "otel" {
		t.Errorf("acknowledgements: %+v, %v", acks, err)
	}
}

func onlyRetired(t testing.TB, n *node) string {
	t.Helper()
	old, err := filepath.Glob(filepath.Join(n.cfg.Dir, "retired", "*", tlog.CheckpointFile))
	if err != nil || len(old) != 1 {
		t.Fatalf("retired: %v, %v", old, err)
	}
	return old[0]
}

func TestReaderRefuses(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	n.publish(t, s, 1, true)
	must(t, s.Close())
	for _, bad := range []string{"", ".", "..", "a/b", "A", "-a", strings.Repeat("a", 65)} {
		if _, err := spool.NewReader(n.cfg.Dir, bad); err == nil {
			t.Errorf("a consumer %q", bad)
		}
	}
	r := reader(t, n, "c")
	it := pending(t, r)[0]
	spoilFile(t, it.Path, func(b []byte) []byte { b[2000] ^= 1; return b })
	if _, err := r.Read(it); err == nil {
		t.Error("read a chunk that is not what its leaf says")
	}
	must(t, os.Remove(it.Path))
	if _, err := r.Read(it); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	wrong := it
	wrong.Leaf++
	if _, err := r.Ack(t.Context(), wrong); err == nil {
		t.Error("acknowledged a leaf that is no chunk")
	}
	for why, text := range map[string]string{
		"another history": fmt.Sprintf(`{"consumer":"c","origin":%q,"size":"1","root":%q,"at":"2026-01-02T03:04:05.000000000Z"}`, it.Origin, tlog.Empty),
		"more than there": fmt.Sprintf(`{"consumer":"c","origin":%q,"size":"99","root":%q,"at":"2026-01-02T03:04:05.000000000Z"}`, it.Origin, tlog.Empty),
		"another log":     fmt.Sprintf(`{"consumer":"c","origin":"x","size":"1","root":%q,"at":"2026-01-02T03:04:05.000000000Z"}`, tlog.Empty),
		"another's":       fmt.Sprintf(`{"consumer":"d","origin":%q,"size":"1","root":%q,"at":"2026-01-02T03:04:05.000000000Z"}`, it.Origin, tlog.Empty),
		"no JSON":         "x",
		"two":             "{}{}",
		"nothing":         "",
	} {
		must(t, os.MkdirAll(filepath.Join(n.cfg.Dir, verify.AckDir), 0o755))
		must(t, os.WriteFile(filepath.Join(n.cfg.Dir, verify.AckDir, "c.json"), []byte(text), 0o600))
		if items, err := r.Pending(t.Context()); err == nil {
			t.Errorf("%s: %+v", why, items)
		}
	}
}

// Whoever may acknowledge may also put names without end next to the others': that
// costs the agent neither memory nor its log, and nothing counts as acknowledged.
func TestManyNamesBesideAcks(t *testing.T) {
	n := newNode(t)
	var log bytes.Buffer
	n.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	s := n.open(t)
	n.publish(t, s, 1, true)
	one := reader(t, n, "one")
	_, err := one.Ack(t.Context(), pending(t, one)[0])
	must(t, err)
	dir := filepath.Join(n.cfg.Dir, verify.AckDir)
	for made, names := range []int{20, 3000} {
		for i := range names {
			must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d-%d.json", strings.Repeat("n", 200), made, i)), []byte("x"), 0o600))
		}
		log.Reset()
		if got, err := s.Collect(t.Context()); got != 0 || err != nil {
			t.Errorf("collected %d, %v", got, err)
		}
		if log.Len() == 0 || log.Len() > 2000 {
			t.Errorf("%d names: the agent's log got %d bytes: %.300s", names, log.Len(), &log)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = s.Collect(t.Context())
	must(t, err)
	runtime.ReadMemStats(&after)
	allocated := after.TotalAlloc - before.TotalAlloc
	if allocated > 1<<20 {
		t.Errorf("looking at 3,020 names took %d bytes", allocated)
	}
	left, err := filepath.Glob(filepath.Join(dir, "nnn*"))
	must(t, err)
	for _, f := range left {
		must(t, os.Remove(f))
	}
	if got, err := s.Collect(t.Context()); got != 1 || err != nil {
		t.Errorf("collected %d, %v", got, err)
	}
}

// In a sticky directory one consumer cannot keep another from acknowledging by taking
// the name that its acknowledgement has on its way.
func TestAckOnItsWay(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	n.publish(t, s, 1, true)
	one := reader(t, n, "one")
	dir := filepath.Join(n.cfg.Dir, verify.AckDir)
	must(t, os.MkdirAll(filepath.Join(dir, ".one.new", "x"), 0o755)) // root cannot remove it with one call either
	if _, err := one.Ack(t.Context(), pending(t, one)[0]); err != nil {
		t.Error(err)
	}
	names, err := os.ReadDir(dir)
	must(t, err)
	if len(names) != 2 || names[1].Name() != "one.json" {
		t.Errorf("in ack/: %v", names)
	}
}

// What has been acknowledged is looked at every minute while a container has half its
// share: that does not read the whole log, which may be of years.
func TestAcknowledgedOfALongLog(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	n.publish(t, s, 1, true)
	one := reader(t, n, "one")
	_, err := one.Ack(t.Context(), pending(t, one)[0])
	must(t, err)
	spool.FillLog(t, s, 20_000)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got, err := s.Collect(t.Context())
	runtime.ReadMemStats(&after)
	if got != 1 || err != nil {
		t.Errorf("collected %d, %v", got, err)
	}
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 4<<20 {
		t.Errorf("looking at one acknowledgement took %d bytes", allocated)
	}
}
