package shippers

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"probity/tests/need"
)

// rsyslog, as packaging/shippers configures it, near and far: the near one is killed
// at random moments, the far one at every third of them, and chunks go on coming.
// What a killed near side had on its way may be lost: then the chunk is partial, verify
// says that it is missing, and what docs/shipping.md has for it brings it.
func TestRsyslog(t *testing.T) {
	rsyslogd := need.Command(t, "rsyslogd")[0]
	need.File(t, "rsyslog's RELP", module("omrelp.so"))
	total, kills := chunks(t, 240), 6
	if total > 1000 {
		kills = 30
	}
	n, port, work, far := newNode(t), freePort(t), t.TempDir(), t.TempDir()
	received, together := filepath.Join(far, "lines.ndjson"), filepath.Join(far, "joined")
	receiver := newProgram(t, "receiver", rsyslogd, "-n", "-i", filepath.Join(far, "pid"), "-f",
		configuration(t, "rsyslog-receive.conf", map[string]string{"/var/spool/probity-received": far, "2514": port}))
	sender := newProgram(t, "sender", rsyslogd, "-n", "-i", filepath.Join(work, "pid"), "-f",
		configuration(t, "rsyslog.conf", map[string]string{"/var/lib/probity-rsyslog": work, "collector.example": "127.0.0.1", "2514": port, "/var/lib/probity/spool": n.dir}))
	began := time.Now()
	n.grow(t, total/10)
	receiver.start(t)
	sender.start(t)
	for k := range kills {
		n.grow(t, (total-n.made)/(kills-k))
		from, more := sizeOf(received), rand.Int64N(int64(total/kills)*3000)
		until(t, "more is delivered", 3*time.Minute, func() bool { return sizeOf(received) > from+more || n.read(t, work) })
		sender.kill(t)
		if k%3 == 2 {
			receiver.kill(t)
			receiver.start(t)
		}
		sender.start(t)
	}
	until(t, "rsyslog has read all", 10*time.Minute, func() bool { return n.read(t, work) })
	sender.stop(t)
	took := time.Since(began)
	receiver.stop(t)
	must(t, n.s.Close())

	r := joined(t, together, received)
	lost := total - len(r.Chunks)
	t.Logf("%d chunks, %d kills, %.1f s: %d lines arrived, %d of them twice; %d chunks not whole, %d of these partial",
		total, kills, took.Seconds(), r.Lines, r.Duplicates, lost, len(r.Partial))
	// A line that the far side was writing when it was killed is torn, and comes again.
	if len(r.Findings) > kills/3 {
		t.Errorf("findings: %v", r.Findings)
	}
	if lost > 0 {
		if said := n.missing(t, together); said != lost {
			t.Errorf("%d chunks are missing, verify names %d", lost, said)
		}
		// As documented: begin anew.
		must(t, os.RemoveAll(work))
		must(t, os.Mkdir(work, 0o700))
		receiver.start(t)
		sender.start(t)
		until(t, "rsyslog has read all once more", 10*time.Minute, func() bool { return n.read(t, work) })
		sender.stop(t)
		receiver.stop(t)
		r = joined(t, together, received)
	}
	if len(r.Partial) != 0 {
		t.Errorf("partial: %v", r.Partial)
	}
	n.arrived(t, together)
}

// module looks for one of rsyslog's, which Debian has in a package of its own.
func module(name string) error {
	for _, pattern := range []string{"/usr/lib*/rsyslog/", "/usr/lib/*/rsyslog/"} {
		if found, err := filepath.Glob(pattern + name); err != nil || len(found) > 0 {
			return err
		}
	}
	return fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

// read reports whether rsyslog has noted of every chunk that it is at its end.
func (n *node) read(t *testing.T, work string) bool {
	t.Helper()
	states, err := filepath.Glob(filepath.Join(work, "imfile-state:*"))
	must(t, err)
	if len(states) < n.made {
		return false
	}
	for _, s := range states {
		var state struct {
			Filename string `json:"filename"`
			Offset   int64  `json:"curr_offs"`
		}
		b, err := os.ReadFile(s)
		if err != nil || json.Unmarshal(b, &state) != nil || state.Offset != sizeOf(state.Filename) {
			return false
		}
	}
	return true
}
