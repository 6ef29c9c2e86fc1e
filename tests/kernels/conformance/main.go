// Command conformance arms each probe type on the running kernel, makes the
// event happen so many times in a container, and compares the count. It prints
// a guest.Report as JSON.
//
// A new probe type is one line in cases.
package main

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
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
	{probe: policy.Probe{Type: policy.Tracepoint, Event: policy.ProcessExec}, times: 1, runs: 5},
	{probe: policy.Probe{Type: policy.RawTracepoint, Event: "sched_process_exec"}, times: 1, runs: 5},
}

// askedSites is more than one container is allowed on an old kernel.
const askedSites = 257

//go:embed testdata/target.c
var source []byte

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run() error {
	dir, err := os.MkdirTemp("", "conformance")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	lower := filepath.Join(dir, "lower")
	if err := compile(lower); err != nil {
		return err
	}
	var report guest.Report
	e, err := newEngine()
	if err != nil {
		return err
	}
	for _, c := range cases {
		r, err := try(e, dir, lower, c)
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", c.probe.Type, err), e.close())
		}
		fmt.Fprintf(os.Stderr, "%+v\n", r) // as it comes: a guest may not get further
		report.Results = append(report.Results, r)
	}
	if err := e.close(); err != nil {
		return err
	}
	if report.Sites, err = many(dir, lower); err != nil {
		return fmt.Errorf("many sites: %w", err)
	}
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
	if out, err := exec.Command("gcc", "-O1", "-static", "-o", filepath.Join(lower, file), c).CombinedOutput(); err != nil {
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
	b.target = probe.Target{Cgroup: st.Ino, Level: 1, Root: b.merged, Upper: upper}
	return b, nil
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

func (b *box) run(args ...string) error {
	cg, err := os.Open(b.cgroup)
	if err != nil {
		return err
	}
	defer cg.Close()
	cmd := exec.Command(filepath.Join(b.merged, file), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
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

func newEngine() (*engine, error) {
	facts, err := looked()
	if err != nil {
		return nil, err
	}
	obj, err := bpf.Load(bpf.Options{})
	if err != nil {
		return nil, err
	}
	return &engine{probe.NewEngine(obj, probe.Config{Kernel: facts, BootTime: cgroup.BootTime}), obj, facts}, nil
}

func (e *engine) close() error { return errors.Join(e.Close(), e.obj.Close()) }

// try arms one probe type. An error means that nothing can be said about it.
func try(e *engine, dir, lower string, c event) (r guest.Result, err error) {
	r.ProbeType, r.Name = c.probe.Type, cmp.Or(c.name, c.probe.Type)
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
	b, err := newBox(dir, lower)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	h, err := e.Arm(context.Background(), b.target, b.plan(c.probe))
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

// many arms as many sites of one file as it may, in an engine of their own, and
// takes them away. It measures both.
func many(dir, lower string) (s guest.Sites, err error) {
	s.Asked = askedSites
	b, err := newBox(dir, lower)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	e, err := newEngine()
	if err != nil {
		return s, err
	}
	p := policy.Probe{Type: policy.Uprobe, File: file}
	for i := range askedSites {
		p.Symbols = append(p.Symbols, "many_"+strconv.Itoa(100+i))
	}
	plan := b.plan(p) // reading the file is not attaching
	began := time.Now()
	h, err := e.Arm(context.Background(), b.target, plan)
	if err != nil {
		return s, errors.Join(err, e.close())
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
	err = errors.Join(err, h.Close())
	began = time.Now()
	err = errors.Join(err, e.Close())
	s.DetachMs = ms(began)
	return s, errors.Join(err, e.obj.Close())
}

func ms(began time.Time) float64 { return float64(time.Since(began).Microseconds()) / 1000 }
