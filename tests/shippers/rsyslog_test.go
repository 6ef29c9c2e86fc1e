package shippers

import (
	"bytes"
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
// says that it is missing, and what docs/shipping.md has for it brings it. Halfway, what
// has arrived is acknowledged and removed.
func TestRsyslog(t *testing.T) {
	rsyslogd := need.Command(t, "rsyslogd")[0]
	need.File(t, "rsyslog's RELP", module("omrelp.so"))
	total, kills := chunks(t, 240), 6
	if total > 1000 {
		kills = 30
	}
	n, port, work, far := newNode(t), freePort(t), t.TempDir(), t.TempDir()
	c := carried{node: n, work: work, received: filepath.Join(far, "lines.ndjson"), together: filepath.Join(far, "joined")}
	c.receiver = newProgram(t, "receiver", rsyslogd, "-n", "-i", filepath.Join(far, "pid"), "-f",
		configuration(t, "rsyslog-receive.conf", map[string]string{"/var/spool/probity-received": far, "2514": port}))
	c.sender = newProgram(t, "sender", rsyslogd, "-n", "-i", filepath.Join(work, "pid"), "-f",
		configuration(t, "rsyslog.conf", map[string]string{"/var/lib/probity-rsyslog": work, "collector.example": "127.0.0.1", "2514": port, "/var/lib/probity/spool": n.dir}))
	began := time.Now()
	n.grow(t, total/10)
	c.receiver.start(t)
	c.sender.start(t)
	for k := range kills {
		n.grow(t, (total-n.made)/(kills-k))
		from, more := sizeOf(c.received), rand.Int64N(int64(total/kills)*3000)
		until(t, "more is delivered", 3*time.Minute, c.sender, func() bool { return sizeOf(c.received) > from+more || allRead(t, n.dir, work) })
		c.sender.kill(t)
		if k%3 == 2 {
			c.receiver.kill(t)
			c.tear(t)
			c.receiver.start(t)
		}
		c.sender.start(t)
		if k == kills/2 {
			c.settle(t)
			n.acknowledge(t, c.together)
			c.receiver.start(t)
			c.sender.start(t)
		}
	}
	c.settle(t)
	took := time.Since(began)
	must(t, n.s.Close())
	t.Logf("%d chunks, %d kills, %.1f s: %d lines were torn, %d chunks had to be carried once more", total, kills, took.Seconds(), c.torn, c.lost)
	n.arrived(t, c.together)
	// What came after a torn line is on a line of its own.
	b, err := os.ReadFile(c.received)
	must(t, err)
	if alone := bytes.Count(append(b, '\n'), []byte(half+"\n")); c.torn == 0 || alone != c.torn {
		t.Errorf("%d lines were torn, %d of them have nothing behind them", c.torn, alone)
	}
}

// half is the end of a line that was being written.
const half = `{"file":"/half`

// tear leaves the file as a far side does that is killed while it writes a line.
func (c *carried) tear(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(c.received, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteString(half)
	must(t, err)
	c.torn++
}

// carried is the hand-off between two rsyslogs.
type carried struct {
	node                     *node
	sender, receiver         *program
	work, received, together string
	torn                     int // lines that the far side had begun to write when it was killed
	lost                     int // chunks that had to be carried once more
}

// settle waits until all is read, stops both, and puts together what arrived. If
// anything is missing, it begins anew as docs/shipping.md says.
func (c *carried) settle(t *testing.T) {
	t.Helper()
	for again := range 2 {
		until(t, "rsyslog has read all", 10*time.Minute, c.sender, func() bool { return allRead(t, c.node.dir, c.work) })
		c.sender.stop(t)
		c.receiver.stop(t)
		r := joined(t, c.together, c.received)
		whole := len(all(t, filepath.Join(c.together, c.node.instance(t))))
		t.Logf("delivered %d lines, of them %d twice; %d of %d chunks are whole, %d partial", r.Lines, r.Duplicates, whole, c.node.made, len(r.Partial))
		// Nothing that is carried is changed on the way.
		if len(r.Findings) != c.torn || r.More != 0 || r.Others != 0 {
			t.Errorf("%d lines are torn, %d records of other files; findings: %v", c.torn, r.Others, r.Findings)
		}
		if whole == c.node.made && len(r.Partial) == 0 {
			return
		}
		if again > 0 {
			t.Fatalf("still missing after all was carried once more; partial: %v", r.Partial)
		}
		c.lost += c.node.made - whole
		if said := c.node.missing(t, c.together); said != c.node.made-whole {
			t.Errorf("%d chunks are missing, verify names %d", c.node.made-whole, said)
		}
		must(t, os.RemoveAll(c.work))
		must(t, os.Mkdir(c.work, 0o700))
		c.receiver.start(t)
		c.sender.start(t)
	}
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

// allRead reports whether rsyslog has noted of every chunk that is there that it is at
// its end.
func allRead(t *testing.T, spool, work string) bool {
	t.Helper()
	states, err := filepath.Glob(filepath.Join(work, "imfile-state:*"))
	must(t, err)
	here, err := filepath.Glob(filepath.Join(spool, "ready", "*", "*.ndjson"))
	must(t, err)
	if len(states) < len(here) {
		return false
	}
	at := map[string]int64{}
	for _, s := range states {
		var state struct {
			Filename string `json:"filename"`
			Offset   int64  `json:"curr_offs"`
		}
		b, err := os.ReadFile(s)
		if err != nil || json.Unmarshal(b, &state) != nil {
			return false
		}
		at[state.Filename] = state.Offset
	}
	for _, name := range here {
		if at[name] != sizeOf(name) {
			return false
		}
	}
	return true
}
