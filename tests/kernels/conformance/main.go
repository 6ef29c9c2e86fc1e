// Command conformance arms each probe type on the running kernel, makes the
// event happen so many times in a container, and compares the count; then it
// checks what else is promised, of sets, stacks, durations, standing down, a
// full ring and attribution. It prints a guest.Report as JSON.
//
// A new probe type is one line in cases, another promise one in promises.
//
// With -btf FILE the kernel's types come from there. Where the kernel's own are
// hidden, that is how it is where there are none.
package main

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/kernel"
	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/runtime/cgroup"
	"probity/runtime/image"
	"probity/tests/kernels/guest"
)

// event is what one probe type is to count.
type event struct {
	name  string // the probe's type if it is ""
	probe policy.Probe
	args  []string // of the target, before the number of times
	times uint64   // that it happens per run
	runs  int      // of the target; 1 if it is 0
}

// umask is the kernel's function behind a system call that neither the C library
// nor the kernel makes for us.
var umask = []string{map[string]string{"amd64": "__x64_sys_umask", "arm64": "__arm64_sys_umask"}[runtime.GOARCH]}

const file = "/bin/target"

var cases = []event{
	{probe: policy.Probe{Type: policy.Uprobe, File: file, Symbols: []string{"hello"}}, args: []string{"hello"}, times: 1000},
	{probe: policy.Probe{Type: policy.Uretprobe, File: file, Symbols: []string{"hello"}}, args: []string{"leave"}, times: 1000},
	{probe: policy.Probe{Type: policy.USDT, File: file, Markers: []string{"conformance:tick"}}, args: []string{"marked"}, times: 1000},
	{probe: policy.Probe{Type: policy.Kprobe, Functions: umask}, args: []string{"umask"}, times: 1000},
	{probe: policy.Probe{Type: policy.Kretprobe, Functions: umask}, args: []string{"umask"}, times: 1000},
	{probe: policy.Probe{Type: policy.Fentry, Functions: umask}, args: []string{"umask"}, times: 1000},
	{probe: policy.Probe{Type: policy.Fexit, Functions: umask}, args: []string{"umask"}, times: 1000},
	{name: "kprobe of a system call", probe: policy.Probe{Type: policy.Kprobe, Syscalls: []string{"umask"}}, args: []string{"umask"}, times: 1000},
	{probe: policy.Probe{Type: policy.Tracepoint, Event: "syscalls:sys_enter_umask"}, args: []string{"umask"}, times: 1000},
	{probe: policy.Probe{Type: policy.RawTracepoint, Event: "sched_process_exec"}, times: 1, runs: 5},
}

// askedSites is more than one container is allowed on an old kernel.
const askedSites = 257

//go:embed testdata/target.c
var source []byte

func main() {
	types := flag.String("btf", "", "file with the kernel's types, instead of its own")
	flag.Parse()
	if err := run(*types); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

// lab is where all happens.
type lab struct {
	dir   string // of our own
	lower string // the image: one layer, with the target in it
	types *btf.Spec

	source  kernel.BTFSource // of the types
	e       *engine
	refused error // why there is none
}

func run(types string) (err error) {
	dir, err := os.MkdirTemp("", "conformance")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l := &lab{dir: dir, lower: filepath.Join(dir, "lower")}
	facts, err := looked()
	if err != nil {
		return err
	}
	if l.types, l.source, err = facts.OpenBTF(types); err != nil {
		return err
	}
	if err := compile(l.lower); err != nil {
		return err
	}
	var report guest.Report
	for _, c := range cases {
		r, err := l.try(c)
		if err != nil {
			return fmt.Errorf("%s: %w", c.probe.Type, err)
		}
		fmt.Fprintf(os.Stderr, "%+v\n", r) // as it comes: a guest may not get further
		report.Results = append(report.Results, r)
	}
	for _, p := range promises {
		began := time.Now()
		c := p.check(l)
		fmt.Fprintf(os.Stderr, "%+v took %.0f ms\n", c, ms(began))
		report.Checks = append(report.Checks, c)
	}
	if err := l.close(); err != nil {
		return err
	}
	full, err := l.many(&report.Sites)
	if err != nil {
		return fmt.Errorf("many sites: %w", err)
	}
	report.Checks = append(report.Checks, full)
	return json.NewEncoder(os.Stdout).Encode(report)
}

func compile(lower string) error {
	if err := os.MkdirAll(filepath.Join(lower, "bin"), 0o755); err != nil {
		return err
	}
	c := filepath.Join(filepath.Dir(lower), "target.c")
	if err := os.WriteFile(c, source, 0o644); err != nil {
		return err
	}
	if out, err := exec.Command("gcc", "-O1", "-fno-omit-frame-pointer", "-static", "-o", filepath.Join(lower, file), c).CombinedOutput(); err != nil {
		return fmt.Errorf("compile the target: %w\n%s", err, out)
	}
	return nil
}

// box is a stand-in for a container: an overlay mount and a cgroup.
type box struct {
	dir    string
	lower  string
	merged string
	cgroup string
	target probe.Target
}

func newBox(dir, lower string) (_ *box, err error) {
	b := &box{lower: lower}
	if b.dir, err = os.MkdirTemp(dir, "box"); err != nil {
		return nil, err
	}
	b.merged = filepath.Join(b.dir, "merged")
	upper, work := filepath.Join(b.dir, "upper"), filepath.Join(b.dir, "work")
	if err := errors.Join(os.Mkdir(b.merged, 0o755), os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		return nil, err
	}
	if err := unix.Mount("overlay", b.merged, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work); err != nil {
		return nil, fmt.Errorf("mount an overlay: %w", err)
	}
	groups, err := cgroup.Find()
	if err != nil {
		return nil, err
	}
	if groups.Root == "" {
		return nil, errors.New("there is no cgroup2 here to make a cgroup in")
	}
	b.cgroup = filepath.Join(groups.Root, "conformance-"+filepath.Base(b.dir))
	if err := os.Mkdir(b.cgroup, 0o755); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(b.cgroup, &st); err != nil {
		return nil, err
	}
	b.target = probe.Target{Cgroup: st.Ino, Level: 1, Upper: upper}
	return b, nil
}

// arm arms the box.
func (b *box) arm(e *engine, plan probe.Plan) (_ *probe.Handle, err error) {
	t := b.target
	if t.Root, err = os.OpenFile(b.merged, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	return e.Arm(context.Background(), t, plan)
}

func (b *box) close() error { return errors.Join(unix.Unmount(b.merged, 0), os.Remove(b.cgroup)) }

// Glob makes the box the file tree that a plan is made for.
func (b *box) Glob(string) ([]image.Match, bool, string) {
	return []image.Match{{Path: file, Layer: image.Layer{Dir: b.lower}, Rel: "bin/target", Kind: "regular", Origin: "imageLayer"}}, true, ""
}

type tree struct {
	*box
	*probe.Inspector
}

func (b *box) plan(p policy.Probe) probe.Plan {
	p.ID = "conformance"
	return probe.MakePlan([]policy.Probe{p}, tree{b, &probe.Inspector{}}, probe.Host())
}

// command is the target, to be started in the cgroup dir. The caller closes
// entered once it was.
func (b *box) command(dir string, args ...string) (cmd *exec.Cmd, entered *os.File, err error) {
	if entered, err = os.Open(dir); err != nil {
		return nil, nil, err
	}
	cmd = exec.Command(filepath.Join(b.merged, file), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(entered.Fd())}
	return cmd, entered, nil
}

func (b *box) run(args ...string) error { return b.runIn(b.cgroup, args...) }

func (b *box) runIn(dir string, args ...string) error {
	cmd, entered, err := b.command(dir, args...)
	if err != nil {
		return err
	}
	defer entered.Close()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run the target with %v: %w\n%s", args, err, out)
	}
	return nil
}

// engine is an engine and what it stands on.
type engine struct {
	*probe.Engine
	obj   *bpf.Objects
	facts kernel.Facts
}

// looked is what `probity kernel` says. It takes seconds in an emulated machine.
var looked = sync.OnceValues(kernel.Look)

func (l *lab) newEngine(o bpf.Options, c probe.Config) (*engine, error) {
	facts, err := looked()
	if err != nil {
		return nil, err
	}
	o.KernelTypes = l.types
	obj, err := bpf.Load(o)
	if err != nil {
		return nil, err
	}
	c.Kernel, c.BootTime = facts, cgroup.BootTime
	return &engine{probe.NewEngine(obj, c), obj, facts}, nil
}

// shared is the engine of whatever needs none of its own: to load one takes an
// emulated machine a while.
func (l *lab) shared() (*engine, error) {
	if l.e == nil && l.refused == nil {
		l.e, l.refused = l.newEngine(bpf.Options{}, probe.Config{Linger: time.Millisecond})
	}
	return l.e, l.refused
}

func (l *lab) close() error {
	if l.e == nil {
		return nil
	}
	return l.e.close()
}

func (e *engine) close() error { return errors.Join(e.Close(), e.obj.Close()) }

// try arms one probe type. An error means that nothing can be said about it.
func (l *lab) try(c event) (r guest.Result, err error) {
	r.ProbeType, r.Name = c.probe.Type, cmp.Or(c.name, c.probe.Type)
	e, err := l.shared()
	if errors.Is(err, bpf.ErrUnsupported) {
		r.Reason = string(evidence.KernelUnsupported) + ": " + err.Error()
		return r, nil
	} else if err != nil {
		return r, err
	}
	said := e.facts.Type(r.ProbeType)
	r.Mechanism, r.CountsMisses = string(said.Mechanism), said.CountsMisses
	defer func() {
		if refused := strings.HasPrefix(r.Reason, string(evidence.KernelUnsupported)); err == nil && (r.Works || refused) && refused == said.Supported {
			// A system call has a tracepoint to fall back on.
			if !(r.Works && r.Used != r.ProbeType) {
				r.Reason = fmt.Sprintf("works: %v, and `probity kernel` says supported: %v (%s); %s", r.Works, said.Supported, said.Reason, r.Reason)
				r.Works = false
			}
		}
	}()
	b, err := newBox(l.dir, l.lower)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	h, err := b.arm(e, b.plan(c.probe))
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()

	armed := 0
	for _, s := range h.Sites {
		switch {
		case s.Armed:
			armed++
			r.Used = string(s.Type)
		default:
			r.Reason = string(s.Reason) + ": " + s.Detail
		}
	}
	if armed == 0 {
		if len(h.Sites) == 0 {
			r.Reason = "the plan has no site for it"
		}
		return r, nil
	}
	for range max(c.runs, 1) {
		args := c.args
		if len(args) > 0 {
			args = append(args[:1:1], strconv.FormatUint(c.times, 10))
		}
		if err := b.run(args...); err != nil {
			return r, err
		}
		r.Happened += c.times
	}
	for _, s := range h.Sites {
		if !s.Armed {
			continue
		}
		n, err := h.Counter(s)
		if err != nil {
			return r, err
		}
		r.Counted += n.Count
	}
	if trouble := h.Check(); len(trouble) > 0 {
		r.Reason = fmt.Sprintf("armed, and then: %v", trouble)
		return r, nil
	}
	if r.Works = r.Counted == r.Happened && armed == len(h.Sites); !r.Works && r.Reason == "" {
		r.Reason = fmt.Sprintf("it happened %d times and was counted %d times", r.Happened, r.Counted)
	}
	return r, nil
}

// many arms as many sites of one file as it may, in an engine of its own whose
// ring holds fewer events than they make, has each hit another number of times,
// and takes them away. It measures both.
func (l *lab) many(s *guest.Sites) (full guest.Check, err error) {
	full.Name = "counts with a full ring"
	*s = guest.Sites{Asked: askedSites}
	b, err := newBox(l.dir, l.lower)
	if err != nil {
		return full, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	e, err := l.newEngine(bpf.Options{RingBytes: uint32(os.Getpagesize())}, probe.Config{})
	if errors.Is(err, bpf.ErrUnsupported) {
		full.Reason = string(evidence.KernelUnsupported) + ": " + err.Error()
		return full, nil
	} else if err != nil {
		return full, err
	}
	p := policy.Probe{Type: policy.Uprobe, File: file}
	for i := range askedSites {
		p.Symbols = append(p.Symbols, "many_"+strconv.Itoa(100+i))
	}
	plan := b.plan(p) // reading the file is not attaching
	began := time.Now()
	h, err := b.arm(e, plan)
	if err != nil {
		return full, errors.Join(err, e.close())
	}
	s.AttachMs = ms(began)
	bound := false
	for _, site := range h.Sites {
		switch {
		case site.Armed:
			s.Armed++
		case site.Reason == evidence.OverBudget:
			bound = true
		default:
			err = fmt.Errorf("%s: %s: %s", site.Symbol, site.Reason, site.Detail)
		}
	}
	if bound {
		s.Most = s.Armed
	}
	if wrong := fullRing(e, h, b); wrong != nil {
		full.Reason = wrong.Error()
	} else {
		full.Works = true
	}
	err = errors.Join(err, h.Close())
	detached := make(chan error)
	began = time.Now()
	go func() {
		err := e.Close()
		s.DetachMs = ms(began)
		detached <- err
	}()
	err = errors.Join(err, l.besides(s))
	return full, errors.Join(err, <-detached, e.obj.Close())
}

// fullRing has each site hit i%7+1 times. Nobody reads the ring until it is over.
func fullRing(e *engine, h *probe.Handle, b *box) error {
	if err := b.run("many", "1"); err != nil {
		return err
	}
	hit := uint64(0)
	for i, site := range h.Sites {
		if !site.Armed {
			continue
		}
		hit++
		if c, err := h.Counter(site); err != nil || c.Count != uint64(i%7+1) {
			return fmt.Errorf("%s: counted %d, %v; want %d", site.Symbol, c.Count, err, i%7+1)
		}
	}
	r, err := e.obj.Reader()
	if err != nil {
		return err
	}
	defer r.Close()
	told, err := drain(r)
	if err != nil {
		return err
	}
	run, err := h.Run()
	if n := uint64(len(told)); err != nil || run.RingFull == 0 || n == 0 || n+run.RingFull != hit+run.Execs {
		return fmt.Errorf("%d events came and %d were dropped, of %d first hits and %d execs, %v", n, run.RingFull, hit, run.Execs, err)
	}
	return nil
}

// besides attaches and detaches one site in another container.
func (l *lab) besides(s *guest.Sites) (err error) {
	b, err := newBox(l.dir, l.lower)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	e, err := l.newEngine(bpf.Options{}, probe.Config{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	plan := b.plan(policy.Probe{Type: policy.Uprobe, File: file, Symbols: []string{"hello"}})
	began := time.Now()
	h, err := b.arm(e, plan)
	if err != nil {
		return err
	}
	s.BesidesMs = ms(began)
	return h.Close()
}

func ms(began time.Time) float64 { return float64(time.Since(began).Microseconds()) / 1000 }
