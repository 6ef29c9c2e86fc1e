package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"probity/bpf/policy"
	"probity/tests/need"
)

func TestNamesAreThoseOfPolicies(t *testing.T) {
	if !slices.Equal(Types, policy.Types) {
		t.Errorf("probe types %q, policies have %q", Types, policy.Types)
	}
	if !slices.Equal(Sets, policy.Sets) {
		t.Errorf("sets %q, policies have %q", Sets, policy.Sets)
	}
}

// TestLook wants a whole answer on any kernel, and where there are uprobes at
// all, that it was seen to be true.
func TestLook(t *testing.T) {
	need.BPF(t)
	before := objects(t)
	if s, err := newSubject(); err != nil { // what Go opens once for processes is open from here on
		t.Fatal(err)
	} else if _, err := s.run(0); err != nil {
		t.Fatal(err)
	} else if err := s.close(); err != nil {
		t.Fatal(err)
	}
	// Without the collector, which closes what was forgotten.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	fds := descriptors(t)
	f, err := Look()
	if err != nil {
		t.Fatal(err)
	}
	if now := descriptors(t); now > fds {
		t.Errorf("%d file descriptors before, %d after", fds, now)
	}
	whole(t, f)
	if !f.Tried || f.NotTried != "" {
		t.Errorf("tried: %v %q", f.Tried, f.NotTried)
	}
	for _, name := range []string{"uprobe", "usdt", "rawTracepoint"} { // what every kernel from 5.10 on has
		if p := f.Type(name); !p.Supported || !p.Fired {
			t.Errorf("%s: %+v", name, p)
		}
	}
	if !f.StackBuildID.Yes || !f.Semaphores.Yes || !f.RingBuffer.Yes {
		t.Errorf("build-ids of stacks: %v, semaphores: %v, ring buffer: %v", f.StackBuildID, f.Semaphores, f.RingBuffer)
	}
	if major, minor, ok := version(f.Release); ok && (major > 5 || major == 5 && minor >= 12) && !f.FetchAtomics.Yes {
		t.Errorf("fetching atomics on %s: %v", f.Release, f.FetchAtomics)
	}
	t.Logf("%s: took %v, uretprobe system call: %s %s", f.Release, time.Duration(f.TookNs), f.UretprobeSyscall, f.UretprobeReason)
	for _, p := range f.Types {
		t.Logf("%-14s %-14s %s", p.ProbeType, p.Mechanism, p.Reason)
	}

	// The kernel frees objects after a grace period. Others may try at the
	// same time; what they made goes too.
	deadline := time.Now().Add(3 * time.Minute)
	for id, name := range objects(t) {
		if _, had := before[id]; had {
			continue
		}
		for objects(t)[id] != "" {
			if time.Now().After(deadline) {
				t.Errorf("%s %s is left", id, name)
				break
			}
			runtime.Gosched()
		}
	}
}

// whole checks what every reader may rely on.
func whole(t *testing.T, f Facts) {
	t.Helper()
	if len(f.Types) != len(Types) || len(f.Sets) != len(Sets) {
		t.Fatalf("%d probe types and %d sets, want %d and %d", len(f.Types), len(f.Sets), len(Types), len(Sets))
	}
	if want := map[bool]int{true: SitesMulti, false: SitesSingle}[f.UprobeMulti.Yes]; f.MaxSites != want {
		t.Errorf("%d sites, want %d", f.MaxSites, want)
	}
	for i, p := range f.Types {
		if p.ProbeType != Types[i] {
			t.Errorf("%s is where %s should be", p.ProbeType, Types[i])
		}
		if p.Supported != (p.Mechanism != "") || !p.Supported && p.Reason == "" || p.Fired && !p.Supported {
			t.Errorf("not consistent: %+v", p)
		}
		if p.CountsMisses == (p.MissesReason != "") || p.Cookie.Yes == (p.Cookie.Reason != "") {
			t.Errorf("an answer without its reason, or with one too many: %+v", p)
		}
		if f.Type(p.ProbeType) != p {
			t.Errorf("Type(%q) is another", p.ProbeType)
		}
	}
	for i, s := range f.Sets {
		if s.Set != Sets[i] || s.Supported != (s.Mechanism != "") || !s.Supported && s.Reason == "" || s.CountsMisses == (s.MissesReason != "") {
			t.Errorf("not consistent: %+v", s)
		}
	}
	if f.Type("nonsense").Supported {
		t.Error("a type that is none is supported")
	}
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	var back Facts
	if err := json.Unmarshal(b, &back); err != nil || fmt.Sprint(back) != fmt.Sprint(f) {
		t.Errorf("not the same after JSON: %v\n%s", err, b)
	}
}

// objects lists the kernel's eBPF objects that a look makes.
func objects(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	progs := map[ebpf.ProgramID]bool{}
	for id, err := ebpf.ProgramGetNextID(0); err == nil; id, err = ebpf.ProgramGetNextID(id) {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone meanwhile
		}
		info, err := p.Info()
		p.Close()
		if err == nil && strings.HasPrefix(info.Name, "probity_") {
			all[fmt.Sprintf("program %d", id)] = info.Name
			progs[id] = true
		}
	}
	for id, err := ebpf.MapGetNextID(0); err == nil; id, err = ebpf.MapGetNextID(id) {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue
		}
		info, err := m.Info()
		m.Close()
		if err == nil && info.Name == "probity_tally" {
			all[fmt.Sprintf("map %d", id)] = info.Name
		}
	}
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		if info, err := it.Link.Info(); err == nil && progs[info.Program] {
			all[fmt.Sprintf("link %d", info.ID)] = "of a trial's program"
		}
	}
	return all
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// TestWithoutRights drops the rights of one thread, and looks from there.
func TestWithoutRights(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		t.Fatal(err)
	}
	f, err := Look()
	if !errors.Is(err, ErrNotTried) {
		t.Fatalf("error %v, want ErrNotTried", err)
	}
	whole(t, f)
	for _, p := range f.Types {
		if p.Supported || !strings.Contains(p.Reason, "not tried: needs root") {
			t.Errorf("%+v", p)
		}
	}
	if f.Release == "" || f.Machine == "" || f.Tried || f.NotTried == "" || f.UretprobeSyscall != SyscallUnknown {
		t.Errorf("%+v", f)
	}
}

func TestVersion(t *testing.T) {
	for _, c := range []struct {
		release      string
		major, minor int
		ok           bool
	}{
		{"6.18.44-fc-v595", 6, 18, true}, {"5.10.0-28-cloud-amd64", 5, 10, true}, {"7.2", 7, 2, true}, {"6.1-rc3", 6, 1, true},
		{"", 0, 0, false}, {"6", 0, 0, false}, {"six.one", 0, 0, false}, {"6.", 0, 0, false},
	} {
		major, minor, ok := version(c.release)
		if ok != c.ok || ok && (major != c.major || minor != c.minor) {
			t.Errorf("version(%q) = %d, %d, %v", c.release, major, minor, ok)
		}
	}
}

func TestMisses(t *testing.T) {
	for _, c := range []struct {
		release, probe string
		m              Mechanism
		want           bool
	}{
		{"5.10.0", "uprobe", PerfEvent, false},
		{"5.19.0", "usdt", PerfLink, false},
		{"6.0.0", "uprobe", PerfLink, true},
		{"6.6.0", "uprobe", UprobeMulti, true},
		{"6.18.0", "uretprobe", UprobeMulti, false},
		{"6.6.0", "kprobe", PerfLink, false},
		{"6.7.0", "kprobe", PerfLink, true},
		{"6.6.99", "tracepoint", PerfLink, false},
		{"7.2.0", "tracepoint", PerfLink, true},
		{"5.10.0", "fentry", Trampoline, true},
		{"5.10.0", "rawTracepoint", RawTracepoint, true},
		{"unversioned", "uprobe", UprobeMulti, false},
	} {
		got, why := misses(c.release, c.probe, c.m)
		if got != c.want || got == (why != "") {
			t.Errorf("misses(%q, %q, %q) = %v, %q; want %v", c.release, c.probe, c.m, got, why, c.want)
		}
	}
}

// TestLadder walks ladders whose rungs break in the ways that kernels do.
func TestLadder(t *testing.T) {
	eperm := fmt.Errorf("attach: %w", unix.EPERM)
	noFile := cause(fmt.Errorf("a long story: %w", &fs.PathError{Op: "open", Path: "/sys/x", Err: unix.ENOENT}))
	rungs := []rung{{UprobeMulti, true, nil}, {PerfLink, true, nil}, {PerfEvent, false, nil}}
	for _, c := range []struct {
		name   string
		errs   []error
		rungs  []rung
		seen   seen
		fire   error
		want   string // of "mechanism|fired|cookie", or of "no"
		reason string
		cookie string
	}{
		{name: "the best", rungs: rungs, seen: seen{count: 1, cookie: cookieOf}, want: "uprobeMulti|true|true"},
		{name: "the second", rungs: rungs, errs: []error{unix.EINVAL}, seen: seen{count: 1, cookie: cookieOf}, want: "perfLink|true|true", reason: "uprobe_multi link: invalid argument (EINVAL)"},
		{
			name: "the last", rungs: rungs, errs: []error{unix.EINVAL, unix.EINVAL}, seen: seen{count: 2}, want: "perfEvent|true|false",
			reason: "uprobe_multi link, perf link with cookie: invalid argument (EINVAL)", cookie: "invalid argument (EINVAL)",
		},
		{
			name: "none", rungs: rungs, errs: []error{unix.Errno(524), eperm, noFile}, want: "no",
			reason: "uprobe_multi link: errno 524 (ENOTSUPP); perf link with cookie: attach: operation not permitted (EPERM); perf event per site: open /sys/x: no such file or directory (ENOENT)",
		},
		{name: "attached and silent", rungs: rungs, want: "no", reason: "uprobe_multi link: attached, and its program did not run"},
		{name: "attached, nothing to fire it", rungs: rungs, fire: unix.EACCES, want: "uprobeMulti|false|true", reason: "attached, not seen to run: permission denied (EACCES)"},
		{name: "a wrong cookie", rungs: rungs, seen: seen{count: 1, cookie: 7}, want: "uprobeMulti|true|false", cookie: "the program saw the cookie 0x7, and not its own"},
		{
			name: "the same way without a cookie", rungs: []rung{{Trampoline, true, nil}, {Trampoline, false, nil}}, errs: []error{unix.EINVAL},
			seen: seen{count: 1}, want: "trampoline|true|false", cookie: "invalid argument (EINVAL)",
		},
	} {
		tr := &trial{name: "uprobe", rungs: c.rungs, errs: c.errs, taken: len(c.errs)}
		if len(c.errs) == len(c.rungs) {
			tr.taken = -1
		}
		p := tr.conclude("6.18.0", c.seen, c.fire)
		got := "no"
		if p.Supported {
			got = fmt.Sprintf("%s|%v|%v", p.Mechanism, p.Fired, p.Cookie.Yes)
		}
		if got != c.want || p.Reason != c.reason || c.cookie != "" && p.Cookie.Reason != c.cookie {
			t.Errorf("%s: %s %q cookie %q\nwant %s %q cookie %q", c.name, got, p.Reason, p.Cookie.Reason, c.want, c.reason, c.cookie)
		}
	}
}

// TestSubject runs the program that probes are tried on, unprobed.
func TestSubject(t *testing.T) {
	s, err := newSubject()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for extra := range 2 {
		if o, err := s.run(extra); err != nil || o != (outcome{}) {
			t.Errorf("with %d arguments: %v, %v", extra, o, err)
		}
	}
	// Who calls the uretprobe system call himself gets SIGILL where it is.
	if o, err := s.run(2); err != nil || o.exit != 0 && o.signal != unix.SIGILL {
		t.Errorf("the system call: %v, %v", o, err)
	}
}

// The offsets in Go are those of the assembler's source.
func TestSubjectOffsets(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		b, err := os.ReadFile("asm/subject_" + arch + ".S")
		if err != nil {
			t.Fatal(err)
		}
		for name, off := range map[string]uint64{"function": offFunction, "returning": offReturning, "marker": offMarker, "semaphore": offSemaphore} {
			if want := fmt.Sprintf("\t.org\t%#x\n%s:\n", off, name); !strings.Contains(string(b), want) {
				t.Errorf("%s: %s is not at %#x", arch, name, off)
			}
		}
	}
}
