package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

// ExecMechanism names how execs are seen.
type ExecMechanism string

// The two ways, best first.
const (
	ExecRawTracepoint ExecMechanism = "rawTracepoint"
	ExecTracepoint    ExecMechanism = "tracepoint" // which does not tell which file was executed
)

// Session says how a process came into its container.
type Session uint32

// The sessions, as in c/probity.h.
const (
	SessionUnknown = Session(probesSessionSESSION_UNKNOWN) // it has not called execve in there
	SessionInit    = Session(probesSessionSESSION_INIT)    // the first process, or a descendant of it
	SessionExec    = Session(probesSessionSESSION_EXEC)    // of an exec session: put there from outside
)

// Lineage follows which processes are a container's own, and tells of their
// execs. Each part may be missing on its own; the error says why.
type Lineage struct {
	Exec    ExecMechanism // how execs are seen; empty with ExecErr
	ExecErr error
	// ProcessErr: births and ends of processes cannot be seen. Which process
	// is a container's own and which its runtime's is not known then.
	ProcessErr error
	// MoveErr: it cannot be seen that a process leaves its container's cgroup.
	MoveErr error

	links []link.Link
	progs []*ebpf.Program // of the links: what the kernel skipped of them is read there
}

// errOff is why something is not there that Options switched off.
var errOff = errors.New("switched off by option")

// AttachLineage attaches what follows processes. What this kernel does not
// offer is said in the result; there is always one.
func (o *Objects) AttachLineage() *Lineage {
	if o.kept != nil && len(o.kept.lineage) > 0 {
		return o.takeUpLineage()
	}
	l := &Lineage{}
	if o.noExec {
		l.ExecErr, l.ProcessErr, l.MoveErr = errOff, errOff, errOff
		return l
	}
	// Each program asks for the kernel's types, which take a processor 30 ms to
	// read: they are read once for all of them, and not kept.
	from := o.lineage
	from.cache = btf.NewCache()
	// At a tracepoint's record the kernel runs no program while another one, or a
	// change of a map, was preempted on the processor: an execve goes unseen. At a
	// raw tracepoint it does. Through their arguments more can be told, too: which
	// file was executed, whether a child was born into another cgroup, and which
	// of a process's threads is the last.
	byArgs, byRecord := from.rawTracepoint(lineageProgExecRaw, "sched_process_exec"), from.tracepoint(lineageProgExecTracepoint, "sched_process_exec", "")
	if l.ExecErr = l.either(byArgs, byRecord); l.ExecErr == nil {
		l.Exec = ExecRawTracepoint
		if byArgs.err != nil {
			l.Exec = ExecTracepoint
		}
	}
	fork := l.either(from.rawTracepoint(lineageProgForkRaw, "sched_process_fork"), from.tracepoint(lineageProgForkTracepoint, "sched_process_fork", "child_pid"))
	end := l.either(both(from.rawTracepoint(lineageProgFreeRaw, "sched_process_free"), from.rawTracepoint(lineageProgExitRaw, "sched_process_exit")), from.tracepoint(lineageProgFreeTracepoint, "sched_process_free", "pid"))
	l.ProcessErr = errors.Join(fork, end)
	if l.MoveErr = errOff; !o.noMoves {
		l.MoveErr = l.either(from.rawTracepoint(lineageProgMoveRaw, "cgroup_attach_task"))
	}
	return l
}

// Close detaches everything. It is idempotent.
func (l *Lineage) Close() error {
	var errs []error
	for _, k := range l.links {
		errs = append(errs, k.Close())
	}
	for _, p := range l.progs {
		errs = append(errs, p.Close())
	}
	l.links, l.progs = nil, nil
	return errors.Join(errs...)
}

// Misses is how often the kernel says it skipped one of the programs: an event
// that is not known of may hide a process from all that goes by whose it is.
// Whether it counts every miss depends on the kernel.
func (l *Lineage) Misses() (n uint64, err error) { return missesOf(l.progs) }

// missesOf is what the kernel says it skipped of these programs together.
func missesOf(progs []*ebpf.Program) (n uint64, err error) {
	for _, p := range progs {
		st, err := p.Stats()
		if err != nil {
			return n, fmt.Errorf("read program statistics: %w", err)
		}
		n += st.RecursionMisses
	}
	return n, nil
}

// way is one way to see an event. It is tried when it is asked for.
type way struct {
	attach func() (link.Link, []*ebpf.Program, error)
	err    error // of the attempt
}

// either takes the first of the ways that works.
func (l *Lineage) either(ways ...*way) error {
	var errs []error
	for _, w := range ways {
		k, p, err := w.attach()
		if err == nil {
			l.links, l.progs = append(l.links, k), append(l.progs, p...)
			return nil
		}
		w.err = err
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// both is a way that takes two events; neither is attached without the other.
func both(a, b *way) *way {
	return &way{attach: func() (link.Link, []*ebpf.Program, error) {
		first, p, err := a.attach()
		if err != nil {
			return nil, nil, err
		}
		second, q, err := b.attach()
		if err != nil {
			return nil, nil, errors.Join(err, first.Close(), p[0].Close())
		}
		return pair{first, second}, append(p, q...), nil
	}}
}

// pair is two links that are closed together.
type pair struct {
	link.Link
	second link.Link
}

func (p pair) Close() error { return errors.Join(p.Link.Close(), p.second.Close()) }

// tracepoint is the tracepoint of an event of the scheduler. field is the
// member of its record that the program reads at an offset of its own, or "".
func (o object) tracepoint(prog, event, field string) *way {
	return &way{attach: func() (link.Link, []*ebpf.Program, error) {
		var offset uint32
		if field != "" {
			var err error
			if offset, err = recordOffset("sched", event, field); err != nil {
				return nil, nil, fmt.Errorf("attach tracepoint sched:%s: %w", event, err)
			}
		}
		p, err := o.load(prog, func(s *ebpf.CollectionSpec) error { return s.Variables[lineageVarPidOffset].Set(offset) })
		if err != nil {
			return nil, nil, err
		}
		l, err := link.Tracepoint("sched", event, p, nil)
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("attach tracepoint sched:%s: %w", event, err), p.Close())
		}
		return l, []*ebpf.Program{p}, nil
	}}
}

// rawTracepoint is the raw tracepoint of an event.
func (o object) rawTracepoint(prog, event string) *way {
	return &way{attach: func() (link.Link, []*ebpf.Program, error) {
		p, err := o.load(prog, nil)
		if err != nil {
			return nil, nil, err
		}
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: event, Program: p})
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("attach raw tracepoint %s: %w", event, err), p.Close())
		}
		return l, []*ebpf.Program{p}, nil
	}}
}

// AddProcess says that a process is a container's own, although nobody saw it
// call execve there: it ran before the container was armed. level is the depth
// of the container's cgroup, in whose subtree the process is. Whoever is known
// as the container's, or as that of one within it, stays what it is; of a
// container around it, it becomes this one's. Its children are the container's
// from now on.
func (o *Objects) AddProcess(tgid int, cgroup uint64, level int) error {
	m := o.coll.Maps[probesMapProcesses]
	p := probesProcess{Cgroup: cgroup, Level: uint32(level), Session: uint32(SessionInit)}
	err := m.Update(uint32(tgid), p, ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		var known probesProcess
		if err = m.Lookup(uint32(tgid), &known); err == nil && known.Level < p.Level {
			p.Counted, p.Session = known.Counted, known.Session
			err = m.Update(uint32(tgid), p, ebpf.UpdateExist)
		}
		err = ignoreMissing(err) // it has ended
	}
	if err != nil {
		return mapError("add process", err)
	}
	return nil
}
