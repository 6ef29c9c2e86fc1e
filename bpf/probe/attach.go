package probe

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/evidence"
)

// place is where in a file a probe is, and which of its two kinds.
type place struct {
	offset uint64
	ret    bool // by the kernel's own return probe on the function that begins there
	exit   bool // it is where a function returns whose entry is a site: no site of its own
}

// point is a place and the number of the site there.
type point struct {
	place
	semaphore uint64 // file offset of what the kernel counts up while it is probed; 0: none
	at        bpf.At
}

// refusal says why a point was not attached.
type refusal struct {
	reason evidence.NotArmedReason
	detail string
}

// attachment is what attaching a batch of points produced.
type attachment struct {
	links   []link.Link
	progs   []*bpf.Program // that belong to single links
	refused map[place]refusal
	// kept is how many of the links are held by somebody else too, and unkeep ends
	// that: while they are, to close them detaches nothing.
	kept   int
	unkeep func()
}

// attach makes links for the points of one file: one uprobe_multi link where
// the kernel has it and accepts every instruction, several if it refuses some
// or some are return probes, and one perf link per point else. The file is named by its descriptor, so
// that no path can be swapped underneath.
//
// It needs CAP_BPF and CAP_PERFMON; perf links need CAP_SYS_ADMIN on kernels
// with the fix for CVE-2025-38466.
func attach(obj *bpf.Objects, f *os.File, points []point) attachment {
	a := attachment{refused: map[place]refusal{}}
	ex, err := link.OpenExecutable(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		a.refuse(points, refusal{evidence.FileUnreadable, err.Error()})
		return a
	}
	// Each group is a link of its own.
	groups := map[bool][2][]point{} // by whether they are pairs, then whether they are return probes
	for _, p := range points {
		g := groups[p.at.Pair]
		i := 0
		if p.ret {
			i = 1
		}
		g[i] = append(g[i], p)
		groups[p.at.Pair] = g
	}
	if _, err := obj.UprobeMulti(false); err == nil {
		for pair, g := range groups {
			prog, err := obj.UprobeMulti(pair)
			if err != nil {
				a.refuse(slices.Concat(g[0], g[1]), refusal{evidence.KernelUnsupported, err.Error()})
				continue
			}
			a.multi(ex.UprobeMulti, prog, g[0])
			a.multi(ex.UretprobeMulti, prog, g[1])
		}
		return a
	}
	for _, p := range points {
		a.single(ex, obj, p)
	}
	return a
}

func (a *attachment) refuse(points []point, r refusal) {
	for _, p := range points {
		a.refused[p.place] = r
	}
}

type attachMulti func(symbols []string, prog *ebpf.Program, opts *link.UprobeMultiOptions) (link.Link, error)

// multi attaches the points by one link, and halves the batch to find the
// instruction that the kernel refuses: one refused offset fails a whole link.
func (a *attachment) multi(attach attachMulti, prog *ebpf.Program, points []point) {
	if len(points) == 0 {
		return
	}
	opts := &link.UprobeMultiOptions{}
	for _, p := range points {
		opts.Addresses = append(opts.Addresses, p.offset)
		opts.Cookies = append(opts.Cookies, p.at.Cookie())
		opts.RefCtrOffsets = append(opts.RefCtrOffsets, p.semaphore) // 0: none
	}
	l, err := attach(nil, prog, opts)
	switch {
	case err == nil:
		a.links = append(a.links, l)
	case len(points) > 1 && refusesInstruction(err):
		a.multi(attach, prog, points[:len(points)/2])
		a.multi(attach, prog, points[len(points)/2:])
	default:
		a.refuse(points, refused(err))
	}
}

func (a *attachment) single(ex *link.Executable, obj *bpf.Objects, p point) {
	prog, err := obj.UprobeSingle(p.at)
	if err != nil {
		a.refuse([]point{p}, refusal{evidence.KernelUnsupported, err.Error()})
		return
	}
	opts := &link.UprobeOptions{Address: p.offset, RefCtrOffset: p.semaphore}
	if prog.Cookie {
		opts.Cookie = p.at.Cookie()
	}
	attach := ex.Uprobe
	if p.ret {
		attach = ex.Uretprobe
	}
	l, err := attach("", prog.Program, opts)
	if err != nil {
		_ = prog.Close() // it was attached to nothing
		a.refuse([]point{p}, refused(err))
		return
	}
	a.links, a.progs = append(a.links, l), append(a.progs, prog)
}

// enotsupp is the kernel's own ENOTSUPP, which it should not let out but does:
// arch_uprobe_analyze_insn returns it for instructions it cannot single-step.
const enotsupp = unix.Errno(524)

// refusesInstruction reports whether it is for one point that a batch failed.
func refusesInstruction(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, enotsupp) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOEXEC)
}

// refused says why a point was not attached. EINVAL is arm64's word for an
// instruction that it cannot probe; on x86-64 it means something that may pass:
// another probe has the place with another semaphore, or none, and one
// place has one (ref_ctr_mismatch_warn). EIO is a file that could not be read.
func refused(err error) refusal {
	switch {
	case errors.Is(err, unix.EINVAL) && Host().elf == elf.EM_X86_64:
		return refusal{evidence.AttachFailed, err.Error() + ": another probe may have the same place, with another semaphore or none"}
	case errors.Is(err, unix.EIO):
		return refusal{evidence.AttachFailed, err.Error()}
	case refusesInstruction(err):
		return refusal{evidence.UnprobeableInstruction, err.Error()}
	}
	return refusal{evidence.AttachFailed, err.Error()}
}

// closers bounds how many links of one file are closed at the same time, each
// on a thread of ours that waits in the kernel.
const closers = 8

// close detaches. Closing many uprobe_multi links one after the other costs tens
// of milliseconds each, in parallel hardly more than one. Perf links the kernel
// takes one at a time, and waits for its grace periods with each.
func (a *attachment) close() error {
	if a.unkeep != nil {
		a.unkeep()
	}
	a.kept, a.unkeep = 0, nil
	errs := make([]error, len(a.links))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(closers, len(a.links)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(a.links)); i = next.Add(1) - 1 {
				errs[i] = a.links[i].Close()
			}
		})
	}
	wg.Wait()
	for _, p := range a.progs {
		errs = append(errs, p.Close())
	}
	a.links, a.progs = nil, nil
	return errors.Join(errs...)
}
