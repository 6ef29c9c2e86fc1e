package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/kernel"
	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/tests/kernels/guest"
)

// promise is something that must be so on every kernel, or is said not to be.
type promise struct {
	name string
	// probe is what it is about.
	probe policy.Probe
	keep  func(*scene) error
}

var uprobed = policy.Probe{Type: policy.Uprobe, File: file, Symbols: []string{"hello"}}

// with returns p with options.
func with(p policy.Probe, set func(*policy.Probe)) policy.Probe {
	set(&p)
	return p
}

var promises = []promise{
	{"set " + policy.SetExec, policy.Probe{Set: policy.SetExec}, entries("again", map[string]uint64{"/bin/target /bin/target": 1, "/bin/target /proc/self/exe": 3},
		map[string]uint64{"/bin/target ": 1, "/proc/self/exe ": 3})},
	{"set " + policy.SetLibraries, policy.Probe{Set: policy.SetLibraries}, entries("share", map[string]uint64{"private /bin/target": 0, "shared /bin/target": 3}, nil)},
	{"set " + policy.SetSyscalls, policy.Probe{Set: policy.SetSyscalls}, systemCalls},
	{"set " + policy.SetNetwork, policy.Probe{Set: policy.SetNetwork}, entries("speak", map[string]uint64{
		"bind tcp 127.0.0.1 7778": 3, "connect tcp 127.0.0.1 7778": 3, "accept tcp 127.0.0.1 7778": 3,
		"dns udp 127.0.0.1 53": 3, "connect udp 127.0.0.1 5353": 3,
	}, map[string]uint64{
		"bind other 127.0.0.1 7778": 3, "connect tcp 127.0.0.1 7778": 3, "dns other 127.0.0.1 53": 3, "connect other 127.0.0.1 5353": 3,
	})},
	{"set " + policy.SetFiles, policy.Probe{Set: policy.SetFiles}, entries("files", map[string]uint64{
		"exec /bin/target": 1, "read /dev/null": 3, "write /tmp/conformance.out": 3,
	}, nil)},
	{"stack of a uprobe", with(uprobed, func(p *policy.Probe) { p.Symbols, p.Stack = []string{"inner"}, true }), stack("inner", "middle", "outer", "act", "main")},
	// The function of the C library that makes the call keeps no frame.
	{"user stack of a kprobe", policy.Probe{Type: policy.Kprobe, Functions: umask, Stack: true}, stack("syscall", "middle", "outer", "act", "main")},
	{"duration of a uprobe", with(uprobed, func(p *policy.Probe) { p.Duration = true }), durations("hello")},
	{"duration of a kprobe", policy.Probe{Type: policy.Kprobe, Functions: umask, Duration: true}, durations("umask")},
	{"duration of a fentry", policy.Probe{Type: policy.Fentry, Functions: umask, Duration: true}, durations("umask")},
	{"stopAfter", with(uprobed, func(p *policy.Probe) { p.StopAfter = 5 }), stopAfter},
	{"maxRate", with(uprobed, func(p *policy.Probe) { p.MaxRate = 50 }), maxRate},
	{"exec session", uprobed, sessions},
	{"nested cgroup", uprobed, nested},
	{"leaving the cgroup", uprobed, leaving},
}

// scene is a promise's probe, armed for a container.
type scene struct {
	e *engine
	b *box
	h *probe.Handle
	r *ringbuf.Reader
}

// errMissing is wrapped by a site's reason for not being armed.
var errMissing = errors.New("not armed")

func (p promise) check(l *lab) guest.Check {
	c := guest.Check{Name: p.name}
	err := p.try(l, &c)
	if c.Works = err == nil; err != nil {
		c.Reason = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	if p.probe.Set != "" {
		l.compare(p.probe.Set, &c)
	}
	return c
}

// compare wants that `probity kernel` says the same of the set.
func (l *lab) compare(set string, c *guest.Check) {
	facts, err := looked()
	if err != nil || errors.Is(l.refused, bpf.ErrUnsupported) {
		return // no engine to compare with
	}
	said := facts.WithBTF(l.source).Set(set)
	how := map[string][]kernel.Mechanism{
		"fentry": {kernel.Trampoline}, "fexit": {kernel.Trampoline}, "rawTracepoint": {kernel.RawTracepoint},
		"kprobe": {kernel.PerfLink, kernel.PerfEvent}, "kretprobe": {kernel.PerfLink, kernel.PerfEvent},
		"tracepoint": {kernel.PerfLink, kernel.PerfEvent},
	}[c.Used]
	if said.Supported != (c.Used != "") || said.Supported && !slices.Contains(how, said.Mechanism) {
		c.Works = false
		c.Reason = fmt.Sprintf("seen by %q, and `probity kernel` says %+v; %s", c.Used, said, c.Reason)
	}
}

func (p promise) try(l *lab, c *guest.Check) (err error) {
	e, err := l.shared()
	if errors.Is(err, bpf.ErrUnsupported) {
		return fmt.Errorf("%s: %w", evidence.KernelUnsupported, err)
	} else if err != nil {
		return err
	}
	b, err := newBox(l.dir, l.lower)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	r, err := e.obj.Reader()
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := drain(r); err != nil { // of those before
		return err
	}
	h, err := b.arm(e, b.plan(p.probe))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	if len(h.Sites) != 1 {
		return fmt.Errorf("the plan has %d sites for it", len(h.Sites))
	}
	site := h.Sites[0]
	if !site.Armed {
		return fmt.Errorf("%s: %w: %s", site.Reason, errMissing, site.Detail)
	}
	c.Used = string(site.Type)
	return p.keep(&scene{e, b, h, r})
}

// drain reads what the ring has.
func drain(r *ringbuf.Reader) (told []bpf.Event, err error) {
	r.SetDeadline(time.Unix(1, 0))
	for {
		rec, err := r.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return told, nil
		} else if err != nil {
			return nil, err
		}
		if bpf.IsSetEvent(rec.RawSample) {
			continue
		}
		e, err := bpf.Decode(rec.RawSample)
		if err != nil {
			return nil, err
		}
		told = append(told, e)
	}
}

// await reads the ring until an event of the kind comes.
func (s *scene) await(kind bpf.EventKind) (e bpf.Event, err error) {
	s.r.SetDeadline(time.Now().Add(20 * time.Second))
	for {
		rec, err := s.r.Read()
		if err != nil {
			return e, fmt.Errorf("wait for an event: %w", err)
		}
		if e, err = bpf.Decode(rec.RawSample); err != nil || e.Kind == kind {
			return e, err
		}
	}
}

func (s *scene) counted(want uint64) error {
	c, err := s.h.Counter(s.h.Sites[0])
	if err == nil && c.Count != want {
		err = fmt.Errorf("it happened %d times and was counted %d times", want, c.Count)
	}
	return err
}

// process is a target that waits for its input before it ends.
type process struct {
	cmd *exec.Cmd
	in  io.Closer
}

func (s *scene) start(dir string, args ...string) (p process, err error) {
	cmd, entered, err := s.b.command(dir, args...)
	if err != nil {
		return p, err
	}
	defer entered.Close()
	in, err := cmd.StdinPipe()
	if err != nil {
		return p, err
	}
	return process{cmd, in}, cmd.Start()
}

func (p process) end() error { return errors.Join(p.in.Close(), p.cmd.Wait()) }

// entries has the target do something three times, and wants exactly these
// entries with exactly these counts; 0 is any, where the ways to see it differ
// in how often they are told of one execve. Paths are those in the container.
// The records of tracepoints tell less: bare is what they do, if it is not the same.
func entries(does string, want, bare map[string]uint64) func(*scene) error {
	return func(s *scene) error {
		want, lost := want, uint64(0)
		if s.h.Sites[0].Type == evidence.Tracepoint && bare != nil {
			want = bare
			if does == "speak" {
				lost = 3 // accept, of which no record has the address
			}
		}
		if err := s.b.run(does, "3"); err != nil {
			return err
		}
		have := map[string]uint64{}
		err := s.h.Entries(func(e *bpf.SetEntry) bool {
			what := ""
			switch e.Set {
			case bpf.SetExec:
				what = e.Path() + " " + e.Argument()
			case bpf.SetLibraries:
				what = e.Mapping() + " " + e.Path()
			case bpf.SetFiles:
				what = e.Access() + " " + e.Path()
			case bpf.SetNetwork:
				what = fmt.Sprintf("%s %s %s %d", e.Operation(), e.Protocol(), e.Address(), e.Port())
			}
			have[strings.ReplaceAll(what, s.b.merged, "")] += e.Count
			return true
		})
		if err != nil {
			return err
		}
		if !maps.EqualFunc(have, want, func(n, want uint64) bool { return n == want || want == 0 }) {
			return fmt.Errorf("entries %v, want %v", have, want)
		}
		return s.lost(lost)
	}
}

// lost wants that so many events are said to be lost, and nothing else is.
func (s *scene) lost(want uint64) error {
	counts, err := s.h.SetCounts()
	if err != nil {
		return err
	}
	for set, c := range counts {
		if c.Lost != want || c.Full != 0 || c.Around != 0 {
			return fmt.Errorf("set %s: %+v", set, c)
		}
	}
	return nil
}

// systemCalls wants that one more system call is one more bit, and that there
// is none of what a runtime does before.
func systemCalls(s *scene) error {
	numbers := func(does string) ([]int, error) {
		if err := s.b.run(does, "1"); err != nil {
			return nil, err
		}
		calls, err := s.h.SystemCalls()
		if err != nil {
			return nil, err
		}
		if len(calls) != 1 || calls[0].Beyond || calls[0].IOUring() {
			return nil, fmt.Errorf("%+v", calls)
		}
		return calls[0].Numbers, nil
	}
	before, err := numbers("again")
	if err != nil {
		return err
	}
	after, err := numbers("umask")
	if err != nil {
		return err
	}
	has := func(n int) bool { return slices.Contains(before, n) }
	if !has(unix.SYS_EXECVE) || !has(unix.SYS_EXIT_GROUP) || has(unix.SYS_PIVOT_ROOT) {
		return fmt.Errorf("calls %v", before)
	}
	more := slices.DeleteFunc(slices.Clone(after), has)
	if !slices.Equal(more, []int{unix.SYS_UMASK}) || len(after) != len(before)+1 {
		return fmt.Errorf("calls %v, and then %v: want umask, which is %d, besides", before, after, unix.SYS_UMASK)
	}
	return s.lost(0)
}

// stack wants the names of the innermost frames, each with its place in the
// file.
func stack(names ...string) func(*scene) error {
	return func(s *scene) (err error) {
		p, err := s.start(s.b.cgroup, "outer", "1", "await", "1")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.end()) }()
		e, err := s.await(bpf.EventStack)
		if err != nil {
			return err
		}
		st := s.h.Stack(e)
		var got []string
		for i, f := range st.Frames {
			got = append(got, f.Symbol)
			if i < len(names) && (f.BuildID == "" || f.Offset == nil) {
				return fmt.Errorf("frame %d: %+v", i, f)
			}
		}
		if len(got) < len(names) || !slices.Equal(got[:len(names)], names) {
			return fmt.Errorf("frames %q (%s), want %q", got, st.Reason, names)
		}
		return nil
	}
}

// durations wants as many pairs as calls.
func durations(does string) func(*scene) error {
	return func(s *scene) error {
		if err := s.b.run(does, "1000"); err != nil {
			return err
		}
		d, err := s.h.Duration(s.h.Sites[0])
		if err != nil {
			return err
		}
		if d == nil || d.Count != 1000 || d.Unmatched != 0 || d.SumNs == 0 {
			return fmt.Errorf("1000 calls: %+v %s", d, s.h.Sites[0].Detail)
		}
		return s.counted(1000)
	}
}

// patched reports whether whoever maps the site's instruction now gets another
// one than is in the file.
func (s *scene) patched() (bool, error) {
	f, err := os.Open(filepath.Join(s.b.lower, file))
	if err != nil {
		return false, err
	}
	defer f.Close()
	page := int64(os.Getpagesize())
	at := int64(s.h.Sites[0].Offset)
	m, err := unix.Mmap(int(f.Fd()), at/page*page, int(page), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	if err != nil {
		return false, fmt.Errorf("map the target: %w", err)
	}
	was := make([]byte, 1) // x86: int3; arm64: the first byte of brk
	_, err = f.ReadAt(was, at)
	now := m[at%page]
	return now != was[0], errors.Join(err, unix.Munmap(m))
}

// keeping runs the engine's own work while f runs.
func (s *scene) keeping(f func() error) error {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.e.Run(ctx) }()
	err := f()
	stop()
	return errors.Join(err, <-done)
}

func until(what string, ok func() (bool, error)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(60 * time.Second); ; {
		if done, err := ok(); done || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-end:
			return errors.New("it does not come: " + what)
		}
	}
}

// stopAfter wants that the hits after the answer are not counted, and that the
// program is the unprobed one again.
func stopAfter(s *scene) error {
	if before, err := s.patched(); err != nil || !before {
		return fmt.Errorf("armed, and patched: %v, %v", before, err)
	}
	if err := s.b.run("hello", "1000"); err != nil {
		return err
	}
	if err := s.counted(5); err != nil {
		return err
	}
	err := s.keeping(func() error {
		return until("the unprobed program", func() (bool, error) {
			still, err := s.patched()
			return !still, err
		})
	})
	if err != nil {
		return err
	}
	if st := s.h.Stood(); len(st) != 1 || st[0].Reason != evidence.GapStoodDown || st[0].To != 0 {
		return fmt.Errorf("told: %+v", st)
	}
	if trouble := s.h.Check(); len(trouble) != 0 {
		return fmt.Errorf("to stand down is no trouble: %v", trouble)
	}
	return nil
}

// maxRate wants that what comes too often stands down, with all that had come.
func maxRate(s *scene) error {
	if err := s.b.run("hello", "40000"); err != nil {
		return err
	}
	c, err := s.h.Counter(s.h.Sites[0])
	if err != nil {
		return err
	}
	if c.Count < 50 || c.Count >= 40000 || c.Standing != bpf.StandingTooOften {
		return fmt.Errorf("40000 times: %+v", c)
	}
	if st := s.h.Stood(); len(st) != 1 || st[0].Reason != evidence.GapBudgetDisarm || st[0].From != c.StoodNs {
		return fmt.Errorf("told: %+v, counter %+v", st, c)
	}
	return nil
}

// sessions wants that the first process is the container's own and one that is
// put beside it an exec session's, in its execve and its first hit.
func sessions(s *scene) (err error) {
	first, err := s.start(s.b.cgroup, "await", "1")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, first.end()) }()
	if e, err := s.await(bpf.EventExec); err != nil || e.Session != bpf.SessionInit {
		return fmt.Errorf("the first execve: %+v, %v", e, err)
	}
	second, err := s.start(s.b.cgroup, "hello", "3")
	if err != nil {
		return err
	}
	if e, err := s.await(bpf.EventExec); err != nil || e.Session != bpf.SessionExec || e.Pid != second.cmd.Process.Pid {
		return errors.Join(fmt.Errorf("the second execve: %+v, %v", e, err), second.end())
	}
	if e, err := s.await(bpf.EventHit); err != nil || e.Session != bpf.SessionExec {
		return errors.Join(fmt.Errorf("its hit: %+v, %v", e, err), second.end())
	}
	return errors.Join(second.end(), s.counted(3))
}

// nested wants that what a container does in a cgroup of its own below its
// cgroup is counted, and what its neighbour does is not.
func nested(s *scene) (err error) {
	below, beside := filepath.Join(s.b.cgroup, "below"), s.b.cgroup+"-beside"
	if err := errors.Join(os.Mkdir(below, 0o755), os.Mkdir(beside, 0o755)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(below), os.Remove(beside)) }()
	return errors.Join(s.b.runIn(below, "hello", "7"), s.b.runIn(beside, "hello", "100"), s.b.run("hello", "4"), s.counted(11))
}

// leaving wants that a process that is moved out of the container is told and
// not counted any more.
func leaving(s *scene) error {
	if err := s.e.Moves(); err != nil {
		return fmt.Errorf("%s: %w", evidence.KernelUnsupported, err)
	}
	p, err := s.start(s.b.cgroup, "hello", "2", "await", "1", "hello", "10")
	if err != nil {
		return err
	}
	if _, err := s.await(bpf.EventHit); err != nil {
		return errors.Join(err, p.end())
	}
	// The second hit comes before it waits: it has been counted when it leaves.
	err = until("the second hit", func() (bool, error) {
		c, err := s.h.Counter(s.h.Sites[0])
		return c.Count == 2, err
	})
	pid := p.cmd.Process.Pid
	err = errors.Join(err, os.WriteFile(filepath.Join(filepath.Dir(s.b.cgroup), "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
	if err != nil {
		return errors.Join(err, p.end())
	}
	e, err := s.await(bpf.EventLost)
	if err == nil && e.Pid != pid {
		err = fmt.Errorf("%+v, want process %d", e, pid)
	}
	run, runErr := s.h.Run()
	if err = errors.Join(err, runErr, p.end()); err != nil || run.Left != 1 {
		return fmt.Errorf("%d have left, want 1: %v", run.Left, err)
	}
	return s.counted(2)
}
