package agent

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"probity/bpf/probe"
	"probity/evidence"
	"probity/runtime/process"
	"probity/tests/need"
)

// A hook that comes later than ours, or the container itself, mounts another
// file over an armed one before the first instruction: what runs is that one.
func TestMountedOver(t *testing.T) {
	bin, err := target()
	must(t, err)
	for name, health := range map[string]time.Duration{
		"seen by a health check": 20 * time.Millisecond,
		"seen by its execve":     time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			n := newNodeWith(t, Config{Health: health}, latePolicy)
			b := newBoxOf(t, map[string][]byte{"bin/target": bin, "bin/tool": bin}, 1, "serve")
			n.notify(context.Background(), b.notice("c1"), yes)
			other := t.TempDir() + "/tool"
			must(t, os.WriteFile(other, bin, 0o755))
			if out, err := exec.Command("nsenter", "-m", "-t", strconv.Itoa(b.cmd.Process.Pid), "mount", "--bind", other, b.dir+"/merged/bin/tool").CombinedOutput(); err != nil {
				t.Fatal(string(out))
			}
			b.run()
			for end := time.Now().Add(failsafe); !n.armed("/bin/tool", "volume"); {
				if time.Now().After(end) {
					for _, s := range n.onlyRun().handle.Sites {
						t.Logf("%s %s: %v %s %s", s.File.Match.Path, s.File.Match.Origin, s.Armed, s.Reason, s.Detail)
					}
					t.Fatalf("what is mounted there was not armed: %v", n.witness.Live()[0].Gaps)
				}
				b.exec("/bin/tool", "hello")
			}
			before := n.hits("/bin/tool", "volume")
			b.exec("/bin/tool", "hello")
			if got := n.hits("/bin/tool", "volume") - before; got != 1 {
				t.Errorf("counted %d of one execution", got)
			}
			if health < time.Minute {
				until(t, func() bool { return slices.Contains(n.witness.Live()[0].Gaps, "fileChanged /bin/tool") })
			}
			b.end()
			must(t, n.waitIdle(context.Background()))
			all, gaps := n.allLines("c1")
			for _, o := range all {
				if o.Path == "/bin/tool" && o.Origin == "imageLayer" && o.Final && (o.Complete || o.State != evidence.Partial || len(o.Gaps) == 0 || o.Gaps[0].Reason != evidence.GapFileChanged) {
					t.Errorf("the file below the mount: %+v", o)
				}
				if o.Path == "/bin/target" && o.Final && !o.Complete {
					t.Errorf("its neighbour: %+v", o)
					for _, g := range gaps {
						t.Logf("%+v", g)
					}
				}
			}
		})
	}
}

// The mounts of a container are looked at by every few health checks only, and
// what hides a file may have done so since the last look that saw it open.
func TestMountsAreLookedAtSeldom(t *testing.T) {
	n := newNodeWith(t, Config{Health: time.Hour}, wanted)
	b := newBox(t, 1, "serve")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	l := n.onlyRun()
	l.checking.Lock()
	defer l.checking.Unlock()
	if got := n.covered(l); len(got) != 0 {
		t.Fatalf("%+v", got)
	}
	open := l.unhidden
	if out, err := exec.Command("nsenter", "-m", "-t", strconv.Itoa(b.cmd.Process.Pid), "mount", "-t", "tmpfs", "tmpfs", b.dir+"/merged/bin").CombinedOutput(); err != nil {
		t.Fatal(string(out))
	}
	if got := n.covered(l); len(got) != 0 {
		t.Errorf("looked at twice within %v: %+v", mountsEvery*time.Hour, got)
	}
	l.nextMounts = 0
	for range 2 {
		if got := n.covered(l); len(got) != 1 || got[0].Path != "/bin/target" || got[0].Since != open || open == 0 {
			t.Errorf("%+v, want since %d", got, open)
		}
	}
	l.ending.Store(true)
	if out, err := exec.Command("nsenter", "-m", "-t", strconv.Itoa(b.cmd.Process.Pid), "umount", b.dir+"/merged/bin").CombinedOutput(); err != nil {
		t.Fatal(string(out))
	}
	if got := n.covered(l); len(got) != 0 {
		t.Errorf("at the end: %+v", got)
	}
}

// A process's mounts are found by its number, which may be another's by then: one of
// the host, which nothing is hidden from.
func TestMountsOfAnother(t *testing.T) {
	bin, err := target()
	must(t, err)
	n := newNodeWith(t, Config{Health: time.Hour}, wanted)
	b := newBox(t, 1, "serve")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	other := t.TempDir() + "/target"
	must(t, os.WriteFile(other, bin, 0o755))
	pid := b.cmd.Process.Pid
	if out, err := exec.Command("nsenter", "-m", "-t", strconv.Itoa(pid), "mount", "--bind", other, b.dir+"/merged/bin/target").CombinedOutput(); err != nil {
		t.Fatal(string(out))
	}
	l := n.onlyRun()
	p, root, err := n.rootOf(l)
	must(t, err)
	defer p.Close()
	must(t, root.Close())
	hidden := func(p *process.Process) ([]probe.Trouble, error) {
		l.checking.Lock()
		defer l.checking.Unlock()
		return l.handle.Covered(p)
	}
	if tr, err := hidden(p); err != nil || p.Pid != pid || len(tr) != 1 {
		t.Fatalf("process %d of %d: %v, %v", p.Pid, pid, tr, err)
	}
	b.end()
	takeNumber(t, pid)
	if tr, err := hidden(p); !errors.Is(err, process.ErrGone) {
		t.Errorf("the mounts of another are taken for the container's: %v, %v", tr, err)
	}
	if p, err := n.openOwn(l, pid); err == nil {
		t.Errorf("it is opened as one of the container's: %v, %v", p, err)
	}
}

// takeNumber starts a process of that number, which is free, for the rest of the test.
func takeNumber(t *testing.T, pid int) {
	t.Helper()
	for range 1000 { // others start theirs
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			need.Feature(t, "ns_last_pid", err)
		}
		cmd := exec.Command("cat")
		in, err := cmd.StdinPipe()
		must(t, err)
		must(t, cmd.Start())
		end := func() {
			in.Close()
			_ = cmd.Wait()
		}
		if cmd.Process.Pid == pid {
			t.Cleanup(end)
			return
		}
		end()
	}
	t.Fatalf("number %d is taken", pid)
}
