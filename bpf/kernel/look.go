package kernel

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// The trials, by number. The first nine are Types.
const (
	tryUprobe = iota
	tryUretprobe
	tryUSDT
	tryKprobe
	tryKretprobe
	tryFentry
	tryFexit
	tryTracepoint
	tryRaw
	trySysEnter
	trySysExit
)

// setWay is one way to see a set: the kernel's places that it needs, and the
// trials that stand for probes there, the telling one first.
type setWay struct {
	hooks  []string
	trials []int
	bare   bool // needs no kernel types
}

// setWays are the ways of package bpf, best first. That they are the same is
// seen in real kernels (tests/kernels).
var setWays = map[string][]setWay{
	"exec": {
		{hooks: []string{"sched_process_exec"}, trials: []int{tryRaw}},
		{hooks: []string{"sched:sched_process_exec"}, trials: []int{tryTracepoint}, bare: true},
	},
	"libraries": {
		{hooks: []string{"perf_event_mmap", "sched_process_exec"}, trials: []int{tryFentry, tryRaw}},
		{hooks: []string{"perf_event_mmap", "sched_process_exec"}, trials: []int{tryKprobe, tryRaw}},
		{hooks: []string{"sys_exit", "sched_process_exec"}, trials: []int{trySysExit, tryRaw}},
	},
	"syscalls": {
		{hooks: []string{"sys_enter"}, trials: []int{trySysEnter}},
		{hooks: []string{"raw_syscalls:sys_enter"}, trials: []int{tryTracepoint}, bare: true},
	},
	"network": {
		{hooks: []string{"security_socket_connect", "security_socket_bind", "security_socket_sendmsg", "security_sock_graft"}, trials: []int{tryFentry}},
		{hooks: []string{"security_socket_connect", "security_socket_bind", "security_socket_sendmsg", "security_sock_graft"}, trials: []int{tryKprobe}},
		{hooks: []string{"sys_enter", "sys_exit", "inet_sock_set_state"}, trials: []int{trySysEnter, trySysExit, tryRaw}},
		{hooks: []string{"sock:inet_sock_set_state", "raw_syscalls:sys_enter", "raw_syscalls:sys_exit"}, trials: []int{tryTracepoint}, bare: true},
	},
	"files": {
		{hooks: []string{"do_filp_open", "sched_process_exec"}, trials: []int{tryFexit, tryRaw}},
		{hooks: []string{"do_filp_open", "sched_process_exec"}, trials: []int{tryKretprobe, tryRaw}},
		{hooks: []string{"sys_enter", "sys_exit", "sched_process_exec"}, trials: []int{trySysEnter, trySysExit, tryRaw}},
		{hooks: []string{"raw_syscalls:sys_enter", "raw_syscalls:sys_exit", "sched:sched_process_exec"}, trials: []int{tryTracepoint}, bare: true},
	},
}

// set takes the first way of which all is there.
func set(name string, results []ProbeType) Set {
	var why string // no better way
	for _, w := range setWays[name] {
		s := Set{Set: name, Supported: true, CountsMisses: true, Mechanism: results[w.trials[0]].Mechanism, Hooks: w.hooks}
		for _, i := range w.trials {
			r := results[i]
			s.Supported = s.Supported && r.Supported
			s.CountsMisses = s.CountsMisses && r.CountsMisses
			s.MissesReason = join(s.MissesReason, r.MissesReason)
			if !r.Supported {
				why = join(why, r.ProbeType+": "+r.Reason)
			}
		}
		if s.Supported {
			s.Reason = why
			return s
		}
	}
	return Set{Set: name, Reason: why, MissesReason: "not supported"}
}

// WithBTF returns the facts with that source of kernel types. Without any a set
// is seen by the records of tracepoints, or not at all: every other way reads
// the kernel's structures. Before 5.15 (attach cookies came with it) those do
// not tell whose process it is.
func (f Facts) WithBTF(s BTFSource) Facts {
	f.BTF = s
	if s.Source != noBTF {
		return f
	}
	const why = "needs kernel types (BTF)"
	sets, events := f.Sets, f.Type("tracepoint")
	f.Sets = nil
	for _, had := range sets {
		ways := setWays[had.Set]
		switch bare := slices.IndexFunc(ways, func(w setWay) bool { return w.bare }); {
		case !had.Supported:
		case bare < 0 || !events.Supported || !f.AttachCookie.Yes:
			had = Set{Set: had.Set, Reason: why, MissesReason: "not supported"}
		default:
			had = Set{
				Set: had.Set, Supported: true, Mechanism: events.Mechanism, Hooks: ways[bare].hooks, Reason: "every better way " + why,
				CountsMisses: events.CountsMisses, MissesReason: events.MissesReason,
			}
		}
		f.Sets = append(f.Sets, had)
	}
	return f
}

// Set returns the facts of one set.
func (f Facts) Set(name string) Set {
	for _, s := range f.Sets {
		if s.Set == name {
			return s
		}
	}
	return Set{Set: name, Reason: "it was not looked for"}
}

// allowed says why this process may not try, or "".
func allowed() string {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Sprintf("capget: %v", err)
	}
	has := func(c uint) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	if has(unix.CAP_SYS_ADMIN) || has(unix.CAP_BPF) && has(unix.CAP_PERFMON) {
		return ""
	}
	return "needs root, or CAP_BPF and CAP_PERFMON (CAP_SYS_ADMIN before Linux 5.8)"
}

// try fills in what only trying tells.
func (f *Facts) try() (err error) {
	if why := allowed(); why != "" {
		f.refuse("not tried: " + why)
		f.NotTried = why
		return fmt.Errorf("%w: %s", ErrNotTried, why)
	}
	f.Tried = true
	if err := rlimit.RemoveMemlock(); err != nil { // a no-op from 5.11 on
		return fmt.Errorf("raise the memory lock limit: %w", err)
	}
	features := make(chan struct{})
	go func() { // beside the trials: they wait for the kernel most of the time
		defer close(features)
		f.features()
	}()
	defer func() { <-features }()

	ts := &trials{}
	if ts.tally, err = newTally(); err != nil {
		<-features // it writes what is refused here
		f.refuse(text(err))
		return nil // a kernel that refuses eBPF is a fact, not an error
	}
	defer func() { err = errors.Join(err, ts.tally.close()) }()
	if ts.subject, err = newSubject(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ts.subject.close()) }()
	ts.all = []*trial{
		tryUprobe:     ts.user("uprobe", offFunction, false, 0),
		tryUretprobe:  ts.user("uretprobe", offReturning, true, 0),
		tryUSDT:       ts.user("usdt", offMarker, false, offSemaphore),
		tryKprobe:     ts.kernelProbe("kprobe", false),
		tryKretprobe:  ts.kernelProbe("kretprobe", true),
		tryFentry:     ts.trampoline("fentry", ebpf.AttachTraceFEntry),
		tryFexit:      ts.trampoline("fexit", ebpf.AttachTraceFExit),
		tryTracepoint: ts.tracepoint(),
		tryRaw:        ts.raw("rawTracepoint", hookEvent),
		trySysEnter:   ts.raw("sys_enter", "sys_enter"),
		trySysExit:    ts.raw("sys_exit", "sys_exit"),
	}
	ts.climb()
	closed := false
	end := func() error {
		if closed {
			return nil
		}
		closed = true
		return ts.close()
	}
	defer func() { err = errors.Join(err, end()) }()

	plain, runErr := ts.subject.run(0)
	hookErr := ts.callHook()
	<-features // what is concluded goes by its answers, too
	if err := f.conclude(ts, plain, runErr, hookErr); err != nil {
		return err
	}
	f.uretprobeSyscall(ts)
	return end()
}

// refuse answers every probe type and set with no.
func (f *Facts) refuse(why string) {
	f.Types, f.Sets = nil, nil
	for _, name := range Types {
		f.Types = append(f.Types, ProbeType{ProbeType: name, Reason: why, Cookie: Answer{Reason: why}, MissesReason: why})
	}
	for _, name := range Sets {
		f.Sets = append(f.Sets, Set{Set: name, Reason: why, MissesReason: why})
	}
	no := Answer{Reason: why}
	for _, a := range []*Answer{
		&f.UprobeMulti, &f.AttachCookie, &f.Semaphores, &f.RingBuffer, &f.TaskStorage, &f.FetchAtomics, &f.FuncIP, &f.StackBuildID, &f.CountsMisses,
	} {
		*a = no
	}
	f.UretprobeSyscall, f.UretprobeReason = SyscallUnknown, why
}

// conclude reads the counts and says what they mean.
func (f *Facts) conclude(ts *trials, plain outcome, runErr, hookErr error) error {
	f.Types, f.Sets = nil, nil
	results := make([]ProbeType, len(ts.all))
	counts := make([]seen, len(ts.all))
	for i, t := range ts.all {
		var err error
		if counts[i], err = ts.tally.read(uint32(i)); err != nil {
			return err
		}
		fireErr := runErr
		if t.fires != nil {
			fireErr = hookErr
		}
		results[i] = t.conclude(f.Release, counts[i], fireErr)
	}
	f.Types = results[:len(Types)]
	for _, name := range Sets {
		f.Sets = append(f.Sets, set(name, results))
	}

	up, usdt, tp := f.Type("uprobe"), f.Type("usdt"), f.Type("tracepoint")
	f.UprobeMulti = Answer{Yes: up.Mechanism == UprobeMulti}
	if f.UprobeMulti.Yes {
		f.MaxSites = SitesMulti
	} else {
		f.UprobeMulti.Reason = up.Reason
	}
	f.CountsMisses = Answer{Yes: up.CountsMisses && (tp.CountsMisses || !tp.Supported)}
	if !f.CountsMisses.Yes {
		f.CountsMisses.Reason = join(up.MissesReason, tp.MissesReason)
	}
	switch {
	case !usdt.Supported:
		f.Semaphores = Answer{Reason: usdt.Reason}
	case runErr != nil:
		f.Semaphores = Answer{Reason: text(runErr)}
	case plain.exit != 1: // the subject exits with what it read there
		f.Semaphores = Answer{Reason: "the probed program did not find its semaphore raised: " + plain.String()}
	default:
		f.Semaphores = Answer{Yes: true}
	}
	switch c := counts[tryUprobe]; {
	case !up.Fired:
		f.StackBuildID = Answer{Reason: join("no uprobe was seen to run", up.Reason)}
	case c.stack < 0:
		f.StackBuildID = Answer{Reason: "bpf_get_stack: " + text(unix.Errno(-c.stack))}
	case !c.buildID:
		f.StackBuildID = Answer{Reason: "bpf_get_stack gave an address for a frame whose file has a build-id"}
	default:
		f.StackBuildID = Answer{Yes: true}
	}
	return nil
}

// conclude says what became of one trial.
func (t *trial) conclude(release string, c seen, fireErr error) ProbeType {
	p := ProbeType{ProbeType: t.name, Reason: t.worse()}
	if t.taken < 0 {
		p.Cookie, p.MissesReason = Answer{Reason: "not supported"}, "not supported"
		return p
	}
	taken := t.rungs[t.taken]
	switch {
	case c.count > 0:
		p.Supported, p.Fired = true, true
	case fireErr != nil: // it is attached, and nothing could make it run
		p.Supported, p.Reason = true, join(p.Reason, "attached, not seen to run: "+text(fireErr))
	default:
		p.Reason = join(p.Reason, taken.mechanism.title()+": attached, and its program did not run")
		p.Cookie, p.MissesReason = Answer{Reason: "not supported"}, "not supported"
		return p
	}
	p.Mechanism = taken.mechanism
	p.CountsMisses, p.MissesReason = misses(release, t.name, taken.mechanism)
	switch {
	case taken.cookie && p.Fired && c.cookie != cookieOf:
		p.Cookie = Answer{Reason: fmt.Sprintf("the program saw the cookie %#x, and not its own", c.cookie)}
	case taken.cookie:
		p.Cookie = Answer{Yes: true}
	default:
		p.Cookie = Answer{Reason: "one program per event has no use for it"}
		for i := range t.taken {
			if t.rungs[i].cookie && t.rungs[i].mechanism == taken.mechanism {
				p.Cookie.Reason = text(t.errs[i])
			}
		}
		if t.taken > 0 && t.rungs[t.taken-1].cookie {
			p.Cookie.Reason = text(t.errs[t.taken-1])
		}
	}
	return p
}

// uretprobeSyscall runs the subject under a filter, with its return probed.
func (f *Facts) uretprobeSyscall(ts *trials) {
	f.UretprobeSyscall = SyscallUnknown
	ret := f.Type("uretprobe")
	if !ret.Supported {
		f.UretprobeReason = "no uretprobe: " + ret.Reason
		return
	}
	var wg sync.WaitGroup
	var asked, filtered outcome
	var askErr, filterErr error
	wg.Go(func() { asked, askErr = ts.subject.run(2) })
	wg.Go(func() { filtered, filterErr = ts.subject.run(1) })
	wg.Wait()
	switch {
	case askErr != nil || filterErr != nil:
		f.UretprobeReason = text(errors.Join(askErr, filterErr))
	case filtered.exit < 0 && filtered.signal == unix.SIGSYS:
		f.UretprobeSyscall, f.UretprobeReason = SyscallKilled, "a process whose profile does not list it is killed at the first probed return"
	case filtered.exit != 0 && filtered.exit != 1:
		f.UretprobeReason = "the subject ran under a filter with its return probed: " + filtered.String()
	case asked.exit == 0:
		f.UretprobeSyscall = SyscallNotUsed
	default:
		f.UretprobeSyscall = SyscallPasses
	}
}

func join(a, b string) string {
	switch {
	case a == "" || a == b:
		return b
	case b == "":
		return a
	}
	return a + "; " + b
}
