package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// setRoomT is a room in which sets are armed.
type setRoomT struct {
	room
	obj *Objects
}

// newSetRoom arms sets as the options say.
func newSetRoom(t testing.TB, o Options, quotas map[Set]uint32) setRoomT {
	t.Helper()
	need.Command(t, "sh")
	obj := load(t, o)
	r := newRoom(t, obj, need.Cgroup2(t))
	must(t, obj.SetLevels(1<<r.level))
	l := obj.AttachLineage()
	t.Cleanup(func() { must(t, l.Close()) })
	must(t, errors.Join(l.ExecErr, l.ProcessErr))
	for s := range quotas {
		_, err := obj.ArmSet(s)
		must(t, err)
	}
	must(t, obj.PutSets(r.id, quotas))
	return setRoomT{r, obj}
}

// lacks says why this kernel cannot show a set in a way; empty if it can, and
// then a refusal is a bug and no reason to skip.
func lacks(way string, s Set) string {
	switch way {
	case "fentry":
		if err := features.HaveProgramType(ebpf.Tracing); err != nil {
			return "it has no trampolines: " + err.Error()
		}
	case "kprobe":
		if _, err := os.Stat("/sys/bus/event_source/devices/kprobe/type"); err != nil {
			return "it has no kprobes: " + err.Error()
		}
	case "rawTracepoint":
		if err := features.HaveProgramHelper(ebpf.RawTracepoint, asm.FnFindVma); err != nil && s == SetLibraries {
			return "a mapping cannot be looked up: " + err.Error()
		}
	}
	return ""
}

func (r setRoomT) entries(t *testing.T, s Set) (out []SetEntry) {
	t.Helper()
	must(t, r.obj.SetEntries(r.id, func(e *SetEntry) bool {
		if e.Set == s {
			out = append(out, *e)
		}
		return true
	}))
	return out
}

// unlost does something again until none of a set's events was lost meanwhile, five
// times at most. What a call has mapped cannot be looked up while another thread
// holds the lock of the address space, and is counted as lost then.
func (r setRoomT) unlost(t testing.TB, s Set, do func()) {
	t.Helper()
	for tries := 1; ; tries++ {
		before := r.counts(t, s)
		do()
		c := r.counts(t, s)
		if c.Full != 0 || c.Lost != before.Lost && tries == 5 {
			t.Errorf("%+v", c)
		}
		if c.Lost == before.Lost || tries == 5 {
			return
		}
		t.Logf("%d were lost, once more", c.Lost-before.Lost)
	}
}

func (r setRoomT) counts(t testing.TB, s Set) SetCounts {
	t.Helper()
	c, err := r.obj.SetCounts(r.id)
	must(t, err)
	return c[s]
}

// eachWay runs a test for each way to see the sets that this kernel has. One
// that it lacks must be refused.
func eachWay(t *testing.T, sets []Set, f func(t *testing.T, o Options)) {
	t.Helper()
	for _, way := range []string{"fentry", "kprobe", "rawTracepoint"} {
		o := Options{ForceSet: way}
		lacking := false
		for _, s := range sets {
			if !slices.ContainsFunc(setForms[s], func(f setForm) bool { return f.rung == way }) {
				lacking = true // nobody has it
				continue
			}
			why := lacks(way, s)
			if why == "" {
				continue
			}
			lacking = true
			if _, err := load(t, o).ArmSet(s); err == nil {
				t.Errorf("%s by %s is armed, although %s", s, way, why)
			}
		}
		if !lacking {
			t.Run(way, func(t *testing.T) { f(t, o) })
		}
	}
}

// brief is an entry in a few words, with how often.
func brief(e *SetEntry) string {
	switch e.Set {
	case SetExec:
		return fmt.Sprintf("%s %s %d", e.Path(), e.Argument(), e.Session)
	case SetLibraries:
		return e.Mapping() + " " + e.Path()
	case SetFiles:
		return e.Access() + " " + e.Path()
	case SetNetwork:
		return fmt.Sprintf("%s %s %s %s %d", e.Operation(), e.Protocol(), e.Family(), e.Address(), e.Port())
	}
	return "?"
}

// want fails unless each of these is an entry, with that count where it is not 0.
func (r setRoomT) want(t *testing.T, s Set, want map[string]uint64) {
	t.Helper()
	have := map[string]uint64{}
	for _, e := range r.entries(t, s) {
		have[brief(&e)] += e.Count
	}
	for w, n := range want {
		if have[w] == 0 || n != 0 && have[w] != n {
			t.Errorf("%q: %d times, want %d (0: any)", w, have[w], n)
		}
	}
	if c := r.counts(t, s); c.Lost != 0 || c.Full != 0 {
		t.Errorf("%+v", c)
	}
	if t.Failed() {
		for _, h := range slices.Sorted(maps.Keys(have)) {
			t.Logf("%d x %s", have[h], h)
		}
	}
}

// real is the path without symbolic links.
func real(t testing.TB, path string) string {
	t.Helper()
	p, err := filepath.EvalSymlinks(path)
	must(t, err)
	return p
}

func self(t *testing.T) string {
	t.Helper()
	p, err := os.Executable()
	must(t, err)
	return p
}

// A ring of io_uring hides operations from those ways that look at system
// calls, which say so.
func TestSetAround(t *testing.T) {
	eachWay(t, []Set{SetFiles, SetNetwork}, func(t *testing.T, o Options) {
		r := newSetRoom(t, o, map[Set]uint32{SetFiles: 0, SetNetwork: 0})
		if strings.Contains(act(t, r.shell(t), "uring"), "refused") {
			need.Feature(t, "io_uring", errors.New("this kernel refuses it"))
		}
		for _, s := range []Set{SetFiles, SetNetwork} {
			if c := r.counts(t, s); (c.Around != 0) != (o.ForceSet == "rawTracepoint") {
				t.Errorf("%s: %+v", s, c)
			}
		}
	})
}

// What a runtime does in the container's cgroup before it becomes the container
// is not the container.
func TestSetsBeginWithExecve(t *testing.T) {
	eachWay(t, []Set{SetFiles, SetNetwork, SetLibraries}, func(t *testing.T, o Options) {
		all := map[Set]uint32{SetFiles: 0, SetNetwork: 0, SetLibraries: 0}
		if o.ForceSet == "rawTracepoint" {
			all[SetExec], all[SetSyscalls] = 0, 0
		}
		r := newSetRoom(t, o, all)
		dir := real(t, t.TempDir())
		for _, f := range []string{"before", "after"} {
			must(t, os.WriteFile(filepath.Join(dir, f), []byte("x\n"), 0o600))
		}
		for _, session := range []Session{SessionInit, SessionExec} {
			imitation := exec.Command(self(t), "-test.run", "^TestAct$")
			imitation.Env = append(os.Environ(), "PROBITY_ACT=runtime\n"+dir)
			in, err := imitation.StdinPipe()
			must(t, err)
			imitation.Stderr = os.Stderr
			out, err := imitation.StdoutPipe()
			must(t, err)
			must(t, imitation.Start())
			// Start returns within the child's execve, before the kernel tells of
			// it: moved now, it would have called it in the container.
			for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "ready"; {
			}
			must(t, os.WriteFile(r.dir+"/cgroup.procs", []byte(fmt.Sprint(imitation.Process.Pid)), 0))
			_, err = in.Write([]byte("go\n"))
			must(t, err)
			must(t, imitation.Wait())
			r.want(t, SetFiles, map[string]uint64{"read " + dir + "/after": uint64(session)})
			for _, s := range []Set{SetFiles, SetNetwork, SetLibraries, SetExec} {
				for _, x := range r.entries(t, s) {
					if strings.Contains(brief(&x), "before") || strings.Contains(x.Path(), ".test") || s == SetNetwork {
						t.Errorf("%s of the runtime: %s", s, brief(&x))
					}
				}
			}
		}
		if _, ok := all[SetSyscalls]; !ok {
			return
		}
		calls, err := r.obj.SystemCalls(r.id)
		must(t, err)
		if len(calls) != 1 || slices.Contains(calls[0].Numbers, unix.SYS_PIVOT_ROOT) || slices.Contains(calls[0].Numbers, unix.SYS_CONNECT) || !slices.Contains(calls[0].Numbers, unix.SYS_EXIT_GROUP) {
			t.Errorf("%+v", calls)
		}
	})
}
