package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"probity/evidence"
	"probity/runtime/cgroup"
	"probity/runtime/process"
)

// Looking at one container may never come back: what its files are on is its
// own affair. The others, and the agent, go on; what is not proven any more is
// a gap, and the run has its last lines.
func TestLookThatDoesNotComeBack(t *testing.T) {
	alive := make(chan struct{}, 1)
	n := newNodeWith(t, Config{Health: 20 * time.Millisecond, Alive: func() {
		select {
		case alive <- struct{}{}:
		default:
		}
	}}, wanted)
	hung, other := newBox(t, 1, "never"), newBox(t, 1, "hide", "never")
	n.notify(context.Background(), hung.notice("hung"), yes)
	n.notify(context.Background(), other.notice("other"), yes)
	var l *live
	for _, r := range n.runs() {
		if r.container == "hung" {
			l = r
		}
	}
	back := make(chan struct{})
	defer close(back)
	if begun, done := l.inTurn(turnFor, 0, func() { <-back }); !begun || done {
		t.Fatalf("begun %v, done %v", begun, done)
	}
	hung.run()
	other.run()
	for range 3 {
		<-alive // the agent's own heart beats
	}
	until(t, func() bool { // and the others are looked at
		for _, r := range n.witness.Live() {
			if r.Identity.ID == "other" && slices.Contains(r.Gaps, "unarmedMapping /bin/target") {
				return true
			}
		}
		return false
	})
	l.checking.since.Store(cgroup.BootTime() - int64(2*stuckAfter))
	until(t, func() bool {
		for _, r := range n.witness.Live() {
			if r.Identity.ID == "hung" && slices.Contains(r.Gaps, "unarmedMapping") {
				return true
			}
		}
		return false
	})
	hung.end()
	other.end()
	must(t, n.waitIdle(context.Background()))
	obs, gaps := n.lines("hung")
	for _, id := range []string{"hello", "never"} {
		if o := obs[id]; !o.Final || o.Complete || o.State == evidence.ArmedNoHit {
			t.Errorf("%s: %+v", id, o)
		}
	}
	if len(gaps) == 0 || gaps[0].Reason != evidence.GapUnarmedMapping {
		t.Errorf("%+v", gaps)
	}
}

// A process that cannot be looked at is not one in which nothing was found.
func TestProcessThatCannotBeLookedAt(t *testing.T) {
	n := newNodeWith(t, Config{Health: 20 * time.Millisecond}, wanted)
	b := newBox(t, 1, "maps", "never")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	until(t, func() bool {
		l := n.witness.Live()
		return len(l) == 1 && slices.Contains(l[0].Gaps, "unarmedMapping")
	})
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.lines("c1")
	if o := obs["hello"]; o.State != evidence.Partial || len(o.Gaps) != 1 || o.Gaps[0].Reason != evidence.GapUnarmedMapping {
		t.Errorf("%+v", o)
	}
}

// What appears faster than it can be looked at is a gap, if a probe may be for
// it.
func TestTooMuchAppears(t *testing.T) {
	n := newNodeWith(t, Config{Health: time.Hour}, latePolicy)
	b := newBox(t, 1, "serve")
	must(t, os.Mkdir(filepath.Join(b.dir, "merged/opt"), 0o755))
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	l := n.onlyRun()
	n.mu.Lock()
	l.late.later, l.late.pace.next = make([]appeared, maxLater), time.Now().Add(time.Hour)
	n.mu.Unlock()
	b.copyTo("/opt/tool")
	b.exec("/opt/tool", "hello")
	until(t, func() bool { return strings.Contains(strings.Join(n.witness.Live()[0].Gaps, " "), "unarmedMapping") })
	b.end()
	must(t, n.waitIdle(context.Background()))
	if _, gaps := n.lines("c1"); len(gaps) == 0 || gaps[0].ProbeID != "late" {
		t.Errorf("%+v", gaps)
	}
}

// The last thing that a container executes may be one that nobody has looked at
// when it ends.
func TestLastThingThatAppears(t *testing.T) {
	for path, want := range map[string]bool{"/opt/tool": true, "/bin/target": false, "/bin/other": false} {
		n := newNodeWith(t, Config{Health: time.Hour}, latePolicy)
		data, err := target()
		must(t, err)
		b := newBoxOf(t, map[string][]byte{"bin/target": data, "bin/other": data}, 1, "serve")
		must(t, os.Mkdir(filepath.Join(b.dir, "merged/opt"), 0o755))
		n.notify(context.Background(), b.notice("c1"), yes)
		b.run()
		b.copyTo("/opt/tool")
		l := n.onlyRun()
		n.mu.Lock()
		l.late.pending = map[program]appeared{{path: path}: {l: l, pid: 1, path: path, from: cgroup.BootTime(), why: evidence.GapUnarmedMapping}}
		n.mu.Unlock()
		b.end()
		must(t, n.waitIdle(context.Background()))
		if _, gaps := n.lines("c1"); (len(gaps) > 0) != want || want && (gaps[0].ProbeID != "late" || !strings.HasPrefix(gaps[0].Detail, path)) {
			t.Errorf("%s: %+v", path, gaps)
		}
	}
}

// A file that was looked at is another one when it has been written since.
func TestWrittenSinceItWasLookedAt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lib")
	f := process.File{Dev: 1, Ino: 2}
	must(t, os.WriteFile(path, []byte("nothing"), 0o755))
	before := whichFile(f, path)
	if again := whichFile(f, path); again != before || before.sec == 0 {
		t.Errorf("%+v, %+v", before, again)
	}
	until(t, func() bool { // the clock of file systems goes in steps
		must(t, os.WriteFile(path, []byte("a library"), 0o755))
		return whichFile(f, path) != before
	})
	if got := whichFile(f, path+".none"); got != (otherFile{File: f}) {
		t.Errorf("%+v", got)
	}
}
