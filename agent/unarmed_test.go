package agent

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"probity/bpf"
	"probity/evidence"
	"probity/tests/need"
)

// copies is a policy for every file that is a copy of the target, wherever it is.
func copies(t *testing.T) string {
	t.Helper()
	bin, err := target()
	must(t, err)
	f, err := elf.NewFile(bytes.NewReader(bin))
	must(t, err)
	note, err := f.Section(".note.gnu.build-id").Data()
	must(t, err)
	return fmt.Sprintf("name: copies\nprobes:\n  - id: copy\n    type: uprobe\n    buildId: %s\n    symbols: [hello]\n", hex.EncodeToString(note[16:]))
}

// newCopies starts a box that serves, with a directory for more programs, and a
// node that looks for copies of the target.
func newCopies(t *testing.T, cfg Config) (*node, *box) {
	t.Helper()
	n := newNodeWith(t, cfg, copies(t))
	b := newBox(t, 1, "serve")
	must(t, os.Mkdir(filepath.Join(b.dir, "merged/opt"), 0o755))
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	return n, b
}

// wantsNoDenial ends a run in which a copy of the target was executed: no site of
// the probe may say that it was not, unless another says that it was or may have
// been.
func wantsNoDenial(t *testing.T, n *node, b *box) (gaps []*evidence.Gap) {
	t.Helper()
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, gaps := n.allLines("c1")
	denied := true
	for _, o := range obs {
		denied = denied && (!o.Final || o.State == evidence.ArmedNoHit)
	}
	if denied {
		t.Errorf("a copy ran, and the probe is armedNoHit; gaps: %d", len(gaps))
	}
	return gaps
}

// What was not looked at has no site, and is a gap of the probes all the same.
func TestNotLookedAt(t *testing.T) {
	n, b := newCopies(t, Config{})
	l := n.onlyRun()
	l.checking.Lock() // there is no time for it
	n.unseen(appeared{l: l, path: "/opt/tool", from: l.handle.ArmedAt + 1, why: evidence.GapUnarmedMapping})
	l.checking.Unlock()
	if gaps := wantsNoDenial(t, n, b); len(gaps) == 0 || gaps[0].ProbeID != "copy" || gaps[0].Reason != evidence.GapUnarmedMapping {
		t.Errorf("%+v", gaps)
	}
}

// What is at a path that was executed before is another file by now.
func TestAnotherFileAtThePath(t *testing.T) {
	n, b := newCopies(t, Config{Health: time.Hour})
	must(t, os.WriteFile(b.dir+"/merged/opt/tool", other(t), 0o755))
	b.exec("/opt/tool", "x")
	until(t, n.nothingPending)
	b.copyTo("/opt/new")
	must(t, os.Rename(b.dir+"/merged/opt/new", b.dir+"/merged/opt/tool"))
	sites := n.sites()
	for end := time.Now().Add(failsafe); n.sites() == sites; {
		if time.Now().After(end) {
			t.Fatal("it was not armed")
		}
		b.exec("/opt/tool", "hello")
	}
	wantsNoDenial(t, n, b)
}

// A program on a volume or tmpfs runs by whatever path leads to it. Where none is
// found, since the process and its directory are gone, it is a gap.
func TestPathsOfAProgram(t *testing.T) {
	need.Command(t, "nsenter")
	bin, err := target()
	must(t, err)
	for name, path := range map[string]string{
		"clean": "/tmp/tool", "relative": "tmp/tool", "not clean": "/tmp/../tmp/tool", "by a symlink": "/link/tool", "by a script": "/script", "removed": "/tmp/tool",
	} {
		t.Run(name, func(t *testing.T) {
			found := name != "removed"
			n := newNodeWith(t, Config{Health: time.Hour}, copies(t))
			b := newBox(t, 1, "serve")
			must(t, os.Symlink("tmp", b.dir+"/merged/link"))
			must(t, os.WriteFile(b.dir+"/merged/script", []byte("#!/tmp/tool now\n"), 0o755))
			if out, err := exec.Command("nsenter", "-m", "-t", strconv.Itoa(b.cmd.Process.Pid), "mount", "-t", "tmpfs", "tmpfs", b.dir+"/merged/tmp").CombinedOutput(); err != nil {
				t.Fatal(string(out))
			}
			n.notify(context.Background(), b.notice("c1"), yes)
			b.run()
			must(t, os.WriteFile(fmt.Sprintf("/proc/%d/root/tmp/tool", b.cmd.Process.Pid), bin, 0o755))
			l := n.onlyRun()
			for end := time.Now().Add(failsafe); n.sites() == 1; {
				l.checking.Lock() // the process is gone before anybody looks
				b.exec(path, "hello")
				if !found {
					must(t, os.Remove(fmt.Sprintf("/proc/%d/root/tmp/tool", b.cmd.Process.Pid)))
				}
				l.checking.Unlock()
				if until(t, n.nothingPending); !found {
					break
				}
				if time.Now().After(end) {
					t.Fatal("it was not armed")
				}
			}
			if gaps := wantsNoDenial(t, n, b); !found && (len(gaps) == 0 || gaps[0].Reason != evidence.GapUnarmedMapping) {
				t.Errorf("%+v", gaps)
			}
		})
	}
}

// A file of the writable layer has no name any more when it is looked at, and its
// process runs on.
func TestDeletedProgram(t *testing.T) {
	for _, health := range []time.Duration{time.Hour, 20 * time.Millisecond} {
		n, b := newCopies(t, Config{Health: health})
		l := n.onlyRun()
		b.copyTo("/opt/tool")
		l.checking.Lock()
		c := exec.Command("/opt/tool", "hello")
		c.Dir = "/"
		cg, err := os.Open(b.cgroup)
		must(t, err)
		defer cg.Close()
		c.SysProcAttr = &syscall.SysProcAttr{Chroot: b.dir + "/merged", UseCgroupFD: true, CgroupFD: int(cg.Fd())}
		in, err := c.StdinPipe()
		must(t, err)
		must(t, c.Start())
		must(t, os.Remove(b.dir+"/merged/opt/tool"))
		l.checking.Unlock()
		until(t, func() bool { return strings.Contains(strings.Join(n.witness.Live()[0].Gaps, " "), "unarmedMapping") })
		_, err = in.Write([]byte("."))
		must(t, err)
		in.Close()
		_ = c.Wait()
		wantsNoDenial(t, n, b)
	}
}

// A container that executes more programs than are remembered has them judged
// again.
func TestManyPrograms(t *testing.T) {
	n, b := newCopies(t, Config{Health: time.Hour})
	l := n.onlyRun()
	n.mu.Lock()
	l.late.execs = map[program]bool{}
	for i := range maxExecs {
		l.late.execs[program{path: fmt.Sprint(i)}] = true
	}
	n.mu.Unlock()
	b.copyTo("/opt/tool")
	for end := time.Now().Add(failsafe); n.sites() == 1; {
		if time.Now().After(end) {
			t.Fatal("it was not armed")
		}
		b.exec("/opt/tool", "hello")
	}
	n.mu.Lock()
	if len(l.late.execs) > 10 {
		t.Errorf("%d programs are remembered", len(l.late.execs))
	}
	n.mu.Unlock()
	wantsNoDenial(t, n, b)
}

// A program that no probe is for costs nobody anything: no gap, and no look at it
// when it runs again.
func TestProgramOfNoProbe(t *testing.T) {
	n, b := newCopies(t, Config{Health: time.Hour})
	must(t, os.WriteFile(b.dir+"/merged/opt/tool", other(t), 0o755))
	l := n.onlyRun()
	known := func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		for p := range l.late.execs {
			if p.Inode != 0 && len(l.late.pending) == 0 {
				return true
			}
		}
		return false
	}
	until(t, func() bool { // its change is long past then
		b.exec("/opt/tool", "x")
		until(t, n.nothingPending)
		return known()
	})
	b.exec("/opt/tool", "x")
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, gaps := n.allLines("c1")
	if o := obs[len(obs)-1]; o.State != evidence.ArmedNoHit || !o.Complete || len(gaps) > 0 {
		t.Errorf("%+v", o)
		for _, g := range gaps {
			t.Logf("%+v", g)
		}
	}
}

// other is a program that is not the target.
var otherProgram = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "probity-other")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(dir+"/c.c", []byte("int main(void) { return 0; }\n"), 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.Command("gcc", "-O2", "-static", "-o", dir+"/c", dir+"/c.c").CombinedOutput(); err != nil {
		return nil, errors.New(string(out))
	}
	return os.ReadFile(dir + "/c")
})

func other(t *testing.T) []byte {
	t.Helper()
	b, err := otherProgram()
	must(t, err)
	return b
}

// nothingPending reports whether all that was executed so far was looked at.
func (n *node) nothingPending() bool {
	l := n.onlyRun()
	n.ring.drain()
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(l.late.pending) == 0
}

// A program of the image was searched before the start, whatever leads to it and
// however short it lives.
func TestProgramOfTheImage(t *testing.T) {
	bin, err := target()
	must(t, err)
	n := newNodeWith(t, Config{Health: time.Hour}, copies(t))
	b := newBoxOf(t, map[string][]byte{"bin/target": bin, "bin/other": other(t), "bin/script": []byte("#!/bin/other\n")}, 1, "serve")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	for _, path := range []string{"/bin/other", "/bin/script", "bin/other", "/bin/../bin/target"} {
		l := n.onlyRun()
		l.checking.Lock()
		b.exec(path, "x")
		l.checking.Unlock()
		until(t, n.nothingPending)
	}
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, gaps := n.allLines("c1")
	if o := obs[len(obs)-1]; o.State != evidence.ArmedNoHit || !o.Complete || len(gaps) > 0 {
		t.Errorf("%+v", o)
		for _, g := range gaps {
			t.Logf("%+v", g)
		}
	}
}

// The news of an execve finds no room in the ring, and what was executed is not
// armed.
func TestExecsLost(t *testing.T) {
	n, b := newCopies(t, Config{Health: time.Hour, BPF: bpf.Options{RingBytes: 4096}})
	must(t, os.WriteFile(b.dir+"/merged/opt/benign", other(t), 0o755))
	b.copyTo("/opt/tool")
	n.mu.Lock() // the reader of the ring has no time just now
	for range 40 {
		b.exec("/opt/benign", "x")
	}
	b.exec("/opt/tool", "hello")
	n.mu.Unlock()
	until(t, n.nothingPending) // of what was told
	gaps := wantsNoDenial(t, n, b)
	if !slices.ContainsFunc(gaps, func(g *evidence.Gap) bool { return g.ProbeID == "copy" && g.Reason == evidence.GapUnarmedMapping }) {
		t.Errorf("%d gaps, none of the probe", len(gaps))
	}
}

// Where the kernel's events are not read any more, or one of them cannot be, it is
// not known what any container executes.
func TestDeafToTheKernel(t *testing.T) {
	for name, deaf := range map[string]func(*node){
		"the reader ends":              func(n *node) { n.deafToKernel(errors.New("a test")) },
		"a record that cannot be read": func(n *node) { n.ring.bad(errors.New("a test")) },
	} {
		n, b := newCopies(t, Config{Health: time.Hour})
		deaf(n)
		if gaps := wantsNoDenial(t, n, b); len(gaps) == 0 || gaps[0].Reason != evidence.GapUnarmedMapping || gaps[0].Scope != evidence.ScopeRun {
			t.Errorf("%s: %+v", name, gaps)
		}
	}
	n := newNodeWith(t, Config{Health: time.Hour}, copies(t))
	n.deafToKernel(errors.New("a test"))
	b := newBox(t, 1, "serve")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	if gaps := wantsNoDenial(t, n, b); len(gaps) == 0 || gaps[0].Reason != evidence.GapUnarmedMapping {
		t.Errorf("a run that began later: %+v", gaps)
	}
}

// The news of the last thing that is executed is still in the ring when the
// container ends.
func TestLastNews(t *testing.T) {
	n, b := newCopies(t, Config{Health: time.Hour})
	l := n.onlyRun()
	b.copyTo("/opt/tool")
	n.mu.Lock() // the reader of the ring has no time just now
	for range 100 {
		b.exec("/bin/target", "x")
	}
	b.exec("/opt/tool", "hello")
	must(t, os.Remove(b.dir+"/merged/opt/tool"))
	done, before := make(chan struct{}), l.checked.Load()
	go func() {
		defer close(done)
		n.lastCheck(l)
	}()
	until(t, func() bool { // it waits for the reader, or has looked already
		n.ring.mu.Lock()
		defer n.ring.mu.Unlock()
		return len(n.ring.waiting) > 0 || l.checked.Load() != before
	})
	n.mu.Unlock()
	<-done
	if !strings.Contains(strings.Join(n.witness.Live()[0].Gaps, " "), "unarmedMapping") {
		t.Errorf("gaps: %q", n.witness.Live()[0].Gaps)
	}
	wantsNoDenial(t, n, b)
}
