package probe

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/evidence"
)

// point is one offset of a file and the number of the site there.
type point struct {
	offset uint64
	site   uint32
}

// refusal says why a point was not attached.
type refusal struct {
	reason evidence.NotArmedReason
	detail string
}

// attachment is what attaching a batch of points produced.
type attachment struct {
	links   []link.Link
	progs   []*ebpf.Program // copies that belong to single links
	refused map[uint64]refusal
}

// attach makes links for the points of one file: one uprobe_multi link where
// the kernel has it and accepts every instruction, several if it refuses some,
// and one perf link per point else. The file is named by its descriptor, so
// that no path can be swapped underneath.
//
// It needs CAP_BPF and CAP_PERFMON; perf links need CAP_SYS_ADMIN on kernels
// with the fix for CVE-2025-38466.
func attach(obj *bpf.Objects, f *os.File, points []point) attachment {
	a := attachment{refused: map[uint64]refusal{}}
	ex, err := link.OpenExecutable(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		a.refuse(points, refusal{evidence.FileUnreadable, err.Error()})
		return a
	}
	if prog, err := obj.UprobeMulti(); err == nil {
		a.multi(ex, prog, points)
		return a
	}
	for _, p := range points {
		a.single(ex, obj, p)
	}
	return a
}

func (a *attachment) refuse(points []point, r refusal) {
	for _, p := range points {
		a.refused[p.offset] = r
	}
}

// multi attaches the points by one link, and halves the batch to find the
// instruction that the kernel refuses: one refused offset fails a whole link.
func (a *attachment) multi(ex *link.Executable, prog *ebpf.Program, points []point) {
	if len(points) == 0 {
		return
	}
	opts := &link.UprobeMultiOptions{}
	for _, p := range points {
		opts.Addresses = append(opts.Addresses, p.offset)
		opts.Cookies = append(opts.Cookies, uint64(p.site))
	}
	l, err := ex.UprobeMulti(nil, prog, opts)
	switch {
	case err == nil:
		a.links = append(a.links, l)
	case len(points) > 1 && refusesInstruction(err):
		a.multi(ex, prog, points[:len(points)/2])
		a.multi(ex, prog, points[len(points)/2:])
	default:
		a.refuse(points, refused(err))
	}
}

func (a *attachment) single(ex *link.Executable, obj *bpf.Objects, p point) {
	prog, shared, err := obj.UprobeSingle(p.site)
	if err != nil {
		a.refuse([]point{p}, refusal{evidence.KernelUnsupported, err.Error()})
		return
	}
	opts := &link.UprobeOptions{Address: p.offset}
	if shared {
		opts.Cookie = uint64(p.site)
	}
	l, err := ex.Uprobe("", prog, opts)
	if err != nil {
		if !shared {
			prog.Close()
		}
		a.refuse([]point{p}, refused(err))
		return
	}
	a.links = append(a.links, l)
	if !shared {
		a.progs = append(a.progs, prog)
	}
}

// enotsupp is the kernel's own ENOTSUPP, which it should not let out but does:
// arch_uprobe_analyze_insn returns it for instructions it cannot single-step.
const enotsupp = unix.Errno(524)

func refusesInstruction(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, enotsupp) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOEXEC)
}

func refused(err error) refusal {
	if refusesInstruction(err) {
		return refusal{evidence.UnprobeableInstruction, err.Error()}
	}
	return refusal{evidence.AttachFailed, err.Error()}
}

// close detaches. Closing many links one after the other costs tens of
// milliseconds each, in parallel hardly more than one.
func (a *attachment) close() error {
	errs := make([]error, len(a.links))
	var wg sync.WaitGroup
	for i, l := range a.links {
		wg.Go(func() { errs[i] = l.Close() })
	}
	wg.Wait()
	for _, p := range a.progs {
		errs = append(errs, p.Close())
	}
	a.links, a.progs = nil, nil
	return errors.Join(errs...)
}
