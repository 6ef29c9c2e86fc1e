package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf/probe"
	"probity/evidence"
	"probity/runtime/cgroup"
	"probity/runtime/process"
	"probity/tests/need"
)

// exec has a box that serves run a program with an argument, and waits for its end.
func (b *box) exec(path, arg string) {
	b.t.Helper()
	_, err := fmt.Fprintf(b.in, "%s %s\n", path, arg)
	must(b.t, err)
	line, err := b.out.ReadString('\n')
	must(b.t, err)
	if line != path+" 0\n" {
		b.t.Fatalf("%s %s: %q", path, arg, line)
	}
}

const latePolicy = `name: late
probes:
  - id: late
    type: uprobe
    file: /{bin,opt}/*
    symbols: [hello]
`

// What appears in a container that runs is armed as soon as it is seen; the
// first execution was not seen, and the gap says so; the second is counted.
func TestWhatAppears(t *testing.T) {
	for name, c := range map[string]struct {
		path   string
		origin string
		gap    evidence.GapReason
		make   func(t *testing.T, b *box, path string)
	}{
		"a downloaded program": {"/opt/tool", "upper", evidence.GapUnarmedMapping, func(t *testing.T, b *box, path string) {
			b.copyTo(path)
		}},
		"a program touched": {"/bin/target", "upper", evidence.GapFileChanged, func(t *testing.T, b *box, path string) {
			must(t, os.Chtimes(b.dir+"/merged"+path, time.Now(), time.Now()))
		}},
		"a program replaced": {"/bin/target", "upper", evidence.GapFileChanged, func(t *testing.T, b *box, path string) {
			b.copyTo("/tmp/new") // where no probe is for it
			must(t, os.Rename(b.dir+"/merged/tmp/new", b.dir+"/merged"+path))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNodeWith(t, Config{Health: 50 * time.Millisecond}, latePolicy)
			b := newBox(t, 1, "serve")
			must(t, os.Mkdir(filepath.Join(b.dir, "merged/opt"), 0o755))
			n.notify(context.Background(), b.notice("c1"), yes)
			b.run()
			c.make(t, b, c.path)
			// It runs unseen until it is armed. With the first execution the
			// agent learns of what nobody has told it.
			for end := time.Now().Add(failsafe); !n.armed(c.path, c.origin); {
				if time.Now().After(end) {
					t.Fatalf("%s was not armed", c.path)
				}
				b.exec(c.path, "hello")
			}
			before := n.hits(c.path, c.origin)
			b.exec(c.path, "hello")
			b.exec(c.path, "hello")
			if got := n.hits(c.path, c.origin) - before; got != 2 {
				t.Errorf("counted %d of two executions", got)
			}
			b.end()
			must(t, n.waitIdle(context.Background()))
			var late *evidence.Observation
			all, gaps := n.allLines("c1")
			for _, o := range all {
				if o.Path == c.path && o.Origin == c.origin {
					late = o
				}
			}
			if late == nil || late.State != evidence.Hit || late.Complete {
				t.Fatalf("%+v", late)
			}
			// Who executed it first may have ended before it was looked at: then there
			// is a gap of that, too.
			if !slices.ContainsFunc(late.Gaps, func(g evidence.SiteGap) bool { return g.Reason == c.gap && g.DurationNs > 0 }) {
				t.Errorf("gaps %+v", late.Gaps)
			}
			found := false
			for _, g := range gaps {
				found = found || g.Reason == c.gap && !g.To.IsZero()
			}
			if !found {
				t.Errorf("no gap %s that ended among %d", c.gap, len(gaps))
			}
		})
	}
}

// Whoever looks at what a container executes may find a changed file before the
// health check does: it has changed all the same, since that last found it well.
func TestChangedIsFoundByItsExecution(t *testing.T) {
	n := newNodeWith(t, Config{Health: time.Hour}, latePolicy)
	b := newBox(t, 1, "serve")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	b.copyTo("/bin/other")
	must(t, os.Rename(b.dir+"/merged/bin/other", b.dir+"/merged/bin/target"))
	l := n.onlyRun()
	at := cgroup.BootTime()
	if _, done := l.inTurn(failsafe, failsafe, func() {
		n.appeared(appeared{l: l, path: "/bin/target", from: at, why: evidence.GapUnarmedMapping})
	}); !done {
		t.Fatal("not looked at")
	}
	b.end()
	must(t, n.waitIdle(context.Background()))
	all, gaps := n.allLines("c1")
	late := all[len(all)-1]
	for _, o := range all {
		if o.Origin == "upper" {
			late = o
		}
	}
	if late.Origin != "upper" || len(late.Gaps) != 1 || late.Gaps[0].Reason != evidence.GapFileChanged {
		t.Fatalf("%+v", late)
	}
	armed := late.From.Std()
	for _, g := range gaps {
		if g.Reason != evidence.GapFileChanged || g.From.Std().Sub(armed) > time.Second/100 {
			t.Errorf("armed at %v: %+v", armed, g)
		}
	}
}

// A file on a volume that has changed is in trouble until it is armed again, by
// whoever executes it, and not until the next health check.
func TestChangedOnAVolumeIsOver(t *testing.T) {
	n := newNodeWith(t, Config{Health: time.Hour}, latePolicy)
	bin, err := target()
	must(t, err)
	b := newBoxWith(t, map[string][]byte{"bin/target": bin}, func(dir string) { must(t, os.Mkdir(dir+"/lower/opt", 0o755)) }, 1, "serve")
	if out, err := exec.Command("nsenter", "-m", "-t", strconv.Itoa(b.cmd.Process.Pid), "mount", "-t", "tmpfs", "tmpfs", b.dir+"/merged/opt").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	opt := fmt.Sprintf("/proc/%d/root/opt", b.cmd.Process.Pid)
	must(t, os.WriteFile(opt+"/tool", bin, 0o755))
	until(t, func() bool {
		b.exec("/opt/tool", "hello")
		return n.armed("/opt/tool", "tmpfs")
	})
	must(t, os.WriteFile(opt+"/new", bin, 0o755))
	must(t, os.Rename(opt+"/new", opt+"/tool"))
	if !n.check(n.onlyRun(), failsafe, failsafe) {
		t.Fatal("not checked")
	}
	until(t, func() bool {
		b.exec("/opt/tool", "hello")
		return n.sites() == 3 // with the image's, and the one that was there before
	})
	again := time.Now() // whoever armed it has had his turn
	b.end()
	must(t, n.waitIdle(context.Background()))
	_, gaps := n.allLines("c1")
	gaps = slices.DeleteFunc(gaps, func(g *evidence.Gap) bool {
		return g.Reason != evidence.GapFileChanged || g.Scope != evidence.ScopeFile || g.Path != "/opt/tool"
	})
	if len(gaps) == 0 {
		t.Fatal("no gap")
	}
	if g := gaps[len(gaps)-1]; g.To.IsZero() || g.To.Std().After(again) {
		t.Errorf("armed again by %v: %+v", again, g)
	}
}

// sites is how many sites of the only run were armed so far.
func (n *node) sites() int {
	l := n.onlyRun()
	l.checking.Lock()
	defer l.checking.Unlock()
	armed := 0
	for _, s := range l.handle.Sites {
		if s.Armed {
			armed++
		}
	}
	return armed
}

// armed reports whether a site of the only run is, in the file of that path and
// origin.
func (n *node) armed(path, origin string) bool {
	l := n.onlyRun()
	l.checking.Lock()
	defer l.checking.Unlock()
	return slices.ContainsFunc(l.handle.Sites, func(s probe.Site) bool {
		return s.Armed && s.File != nil && s.File.Match.Path == path && s.File.Match.Origin == origin
	})
}

// hits reads the kernel's counters of the files of that path and origin.
func (n *node) hits(path, origin string) uint64 {
	n.t.Helper()
	l := n.onlyRun()
	l.checking.Lock()
	defer l.checking.Unlock()
	var sum uint64
	for _, s := range l.handle.Sites {
		if s.File != nil && s.File.Match.Path == path && s.File.Match.Origin == origin && s.Armed {
			c, err := l.handle.Counter(s)
			must(n.t, err)
			sum += c.Count
		}
	}
	return sum
}

// copyTo puts a copy of the target into the box.
func (b *box) copyTo(path string) {
	b.t.Helper()
	data, err := target()
	must(b.t, err)
	must(b.t, os.WriteFile(b.dir+"/merged"+path, data, 0o755))
}

// One container must not keep the others' last lines waiting: not by what it
// has been given to read, and not if reading does not come back.
func TestIdentifiedIsBounded(t *testing.T) {
	a := &Agent{identifying: make(chan setWork, 1), closing: make(chan struct{})}
	a.identifying <- setWork{} // and nobody takes it
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.identified()
	}()
	select {
	case <-done:
	case <-time.After(failsafe):
		t.Error("it waits for ever")
	}
	now := time.Now()
	for _, c := range []struct {
		age, reading time.Duration
		want         bool
	}{{0, 0, true}, {0, readFor, false}, {time.Hour, 6 * time.Minute, true}, {time.Hour, 7 * time.Minute, false}} {
		if got := (&live{since: now.Add(-c.age)}).share(c.reading, now); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// The link to what a process has mapped leads elsewhere once it has called execve,
// and nowhere that is its own once it has ended.
func TestMappedMeanwhile(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	bin, err := target()
	must(t, err)
	must(t, os.WriteFile(dir+"/target", bin, 0o755))
	cmd := exec.Command(dir + "/target")
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	end := sync.OnceFunc(func() {
		in.Close()
		_ = cmd.Wait()
	})
	defer end()
	p, err := process.Open(cmd.Process.Pid)
	must(t, err)
	defer p.Close()
	// Start returns as soon as execve has closed the descriptors: the program is
	// mapped after that.
	var m process.Mapping
	until(t, func() bool {
		maps, err := p.Executable()
		must(t, err)
		i := slices.IndexFunc(maps, func(m process.Mapping) bool { return m.Path == dir+"/target" })
		if i >= 0 {
			m = maps[i]
		}
		return i >= 0
	})
	f, err := openMapped(p, m)
	must(t, err)
	must(t, f.Close())
	was := m
	was.File.Ino++ // it was another file when the mappings were read
	if _, err := openMapped(p, was); !errors.Is(err, errAnother) {
		t.Errorf("another file: %v", err)
	}
	end()
	if _, err := openMapped(p, m); err == nil {
		t.Error("opened what was of a process that has ended")
	}
}

// A container may put any number of files on a volume that a probe is for and that
// cannot be armed: they cost the agent no descriptor each, and no memory for ever.
func TestRefusedFilesAreLetGo(t *testing.T) {
	n := newNodeWith(t, Config{Health: 50 * time.Millisecond}, latePolicy)
	bin, err := target()
	must(t, err)
	without := bytes.ReplaceAll(bin, []byte("\x00hello\x00"), []byte("\x00other\x00"))
	b := newBoxWith(t, map[string][]byte{"bin/target": bin}, func(dir string) { must(t, os.Mkdir(dir+"/lower/opt", 0o755)) }, 1, "serve")
	if out, err := exec.Command("nsenter", "-m", "-t", strconv.Itoa(b.cmd.Process.Pid), "mount", "-t", "tmpfs", "tmpfs", b.dir+"/merged/opt").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	l := n.onlyRun()
	inside := fmt.Sprintf("/proc/%d/root", b.cmd.Process.Pid)
	for i := range 10 {
		path := fmt.Sprintf("/opt/tool%d", i)
		must(t, os.WriteFile(inside+path, without, 0o755))
		for end := time.Now().Add(failsafe); ; {
			b.exec(path, "hello")
			l.checking.Lock()
			found := slices.ContainsFunc(l.handle.Sites, func(s probe.Site) bool { return s.File != nil && s.File.Match.Path == path && !s.Armed })
			l.checking.Unlock()
			if found {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s was not looked at", path)
			}
		}
	}
	l.checking.Lock()
	defer l.checking.Unlock()
	if len(l.late.mapped) != 0 {
		t.Errorf("%d files are held in which nothing is armed", len(l.late.mapped))
	}
}
