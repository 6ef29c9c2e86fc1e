package kernels

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"probity/tests/kernels/guest"
	"probity/tests/need"
)

// bootVariable is -boot for those who run the tests of all packages at once.
const bootVariable = "PROBITY_BOOT"

const defaultMachine = "6.12"

var (
	bootFlag    = flag.String("boot", cmp.Or(os.Getenv(bootVariable), defaultMachine), "the kernels to boot: names of machines.txt, separated by commas, or all; by default those of $"+bootVariable)
	wholeFlag   = flag.Bool("whole", false, "run all of the engine's tests in the guests, and not only its core")
	onlyFlag    = flag.String("only", "", "run only those of the engine's tests in the guests that this regular expression matches, and no conformance run")
	consoleFlag = flag.String("console", "", "append what the guests say to this file, as they say it")
	writeFlag   = flag.Bool("write", false, "write docs/kernels.md and docs/kernels.json")
)

// chosen are the machines of -boot.
func chosen(t *testing.T) []Machine {
	t.Helper()
	all, err := Machines()
	if err != nil {
		t.Fatal(err)
	}
	if *bootFlag == "all" {
		return all
	}
	var out []Machine
	for name := range strings.SplitSeq(*bootFlag, ",") {
		i := slices.IndexFunc(all, func(m Machine) bool { return m.Name == name })
		if i < 0 {
			t.Fatalf("-boot=%s: machines.txt has no kernel %q", *bootFlag, name)
		}
		out = append(out, all[i])
	}
	return out
}

// one is the machine of what one kernel is enough for: the default, unless
// others were chosen.
func one(t *testing.T) Machine {
	t.Helper()
	machines := chosen(t)
	if i := slices.IndexFunc(machines, func(m Machine) bool { return m.Name == defaultMachine }); i >= 0 {
		return machines[i]
	}
	return machines[0]
}

// machineWith is a machine of machines.txt with another userland than the engine's tests.
func machineWith(t *testing.T, name, userland string) Machine {
	t.Helper()
	all, err := Machines()
	if err != nil {
		t.Fatal(err)
	}
	m := all[slices.IndexFunc(all, func(m Machine) bool { return m.Name == name })]
	m.With = userland
	return m
}

// built is what a guest of one architecture runs, compiled once.
type built struct {
	once sync.Once
	dir  string
	err  error
}

var builds = map[string]*built{"amd64": {}, "arm64": {}}

// programs builds the init, the tests and the conformance run for arch.
func programs(t *testing.T, arch string) string {
	t.Helper()
	b := builds[arch]
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp(scratch, arch); b.err != nil {
			return
		}
		b.err = compile(b.dir, arch)
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.dir
}

func compile(dir, arch string) error {
	commands := [][]string{
		{"build", "-trimpath", "-o", filepath.Join(dir, "init"), "./tests/kernels/init"},
		{"build", "-trimpath", "-o", filepath.Join(dir, "conformance"), "./tests/kernels/conformance"},
	}
	for _, pkg := range engine {
		commands = append(commands, []string{"test", "-c", "-ldflags=-s -w", "-o", filepath.Join(dir, testBinary(pkg)), "./" + pkg})
	}
	for _, args := range commands {
		if err := goRun(arch, args...); err != nil {
			return err
		}
	}
	return nil
}

// goRun runs the go command in the root, for a static program of arch.
func goRun(arch string, args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if arch != "" {
		cmd.Env = append(cmd.Env, "GOARCH="+arch)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return &buildError{args, out, err}
	}
	return nil
}

type buildError struct {
	args []string
	out  []byte
	err  error
}

func (e *buildError) Error() string {
	return "go " + strings.Join(e.args, " ") + ": " + e.err.Error() + "\n" + string(e.out)
}
func (e *buildError) Unwrap() error { return e.err }

func testBinary(pkg string) string { return strings.ReplaceAll(pkg, "/", "-") + ".test" }

// scratch holds what is built for this run.
var scratch string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if scratch, err = os.MkdirTemp("", "probity-kernels"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(scratch)
	return m.Run()
}

// conformance is the step that arms every probe type.
var conformance = guest.Step{Name: "conformance", Dir: "/tmp", Args: []string{"/bin/conformance"}, Limit: 600}

// The same with the kernel's own types hidden: without any, and with a file of
// them. Others of the machine see nothing of it.
var (
	withoutTypes = guest.Step{Name: "without types", Dir: "/tmp", Limit: 600, Args: hiding("/bin/conformance")}
	givenTypes   = guest.Step{Name: "given types", Dir: "/tmp", Limit: 600, Args: hiding("/bin/conformance -btf /tmp/types")}
)

func hiding(run string) []string {
	return []string{"/bin/sh", "-c", "cp /sys/kernel/btf/vmlinux /tmp/types && exec unshare -m sh -c 'mount -t tmpfs none /sys/kernel/btf && exec " + run + "'"}
}

// TestKernels boots each chosen kernel, arms every probe type in it, compares
// with expect.json, and runs the engine's own tests there. What the guest has
// is required in it, so nothing that ought to run is skipped.
func TestKernels(t *testing.T) {
	expected, err := Expected()
	if err != nil {
		t.Fatal(err)
	}
	machines := chosen(t)
	found := Matrix{Date: time.Now().UTC().Format(time.DateOnly), Commit: commit(t), Whole: *wholeFlag, Kernels: make([]Kernel, len(machines))}
	t.Run("boot", func(t *testing.T) {
		for i, m := range machines {
			t.Run(m.Name, func(t *testing.T) {
				t.Parallel() // a machine has one thread of the host
				k := &found.Kernels[i]
				*k = Kernel{Name: m.Name, Suite: m.Suite, Arch: m.Arch, Tests: map[string]int{}}
				try(t, m, k, expected)
			})
		}
	})
	t.Logf("\n%s", found.Markdown())
	if *writeFlag { // what was found, even if it is not what must be so: TestPageAgrees says that
		if *bootFlag != "all" {
			t.Fatal("-write wants -boot=all: the page has every kernel")
		}
		if err := found.Write("../../docs"); err != nil {
			t.Fatal(err)
		}
	}
}

func try(t *testing.T, m Machine, k *Kernel, expected Expect) {
	dir := need.Kernel(t, m.QEMU(), m.Name)
	want := expected.Machines[m.Name]
	tests, load := engineSteps(t, programs(t, m.Arch))
	if *onlyFlag != "" {
		boot := bootOrFail(t, m, dir, guest.Job{Cgroups: guest.V2, Steps: asSteps(tests)}, load)
		for _, s := range tests {
			r, _ := boot.Step(s.Name)
			judgeTests(t, s, r, m, expected)
		}
		return
	}
	steps := []guest.Step{conformance}
	if want.WithoutTypes != nil {
		steps = append(steps, withoutTypes, givenTypes)
	}
	boot := bootOrFail(t, m, dir, guest.Job{Cgroups: guest.V2, Steps: append(steps, asSteps(tests)...)}, load)
	k.Release, k.TookS = boot.Release, boot.Took.Seconds()
	if want, err := m.Release(dir); err != nil || boot.Release != want {
		t.Errorf("the kernel is %s, its package says %s (%v)", boot.Release, want, err)
	}
	for _, s := range tests {
		r, _ := boot.Step(s.Name)
		k.Tests[s.pkg] += judgeTests(t, s, r, m, expected)
	}
	for _, pkg := range engine {
		if k.Tests[pkg] == 0 {
			t.Errorf("%s: no test passed", pkg)
		}
	}
	k.Report = report(t, boot, conformance.Name)
	judge(t, "", want, k.Report)
	if want.WithoutTypes != nil {
		without, given := report(t, boot, withoutTypes.Name), report(t, boot, givenTypes.Name)
		k.WithoutTypes, k.GivenTypes = &without, &given
		judge(t, withoutTypes.Name+": ", *want.WithoutTypes, without)
		judge(t, givenTypes.Name+": ", *want.GivenTypes, given)
	}
}

func judge(t *testing.T, what string, want ExpectMachine, got guest.Report) {
	t.Helper()
	for _, finding := range want.Judge(got) {
		t.Error(what + finding)
	}
}

// report reads what the conformance run printed.
func report(t *testing.T, boot *Boot, step string) (r guest.Report) {
	t.Helper()
	s, _ := boot.Step(step)
	if !s.Ended || s.Exit != 0 || len(s.Output) == 0 {
		t.Fatalf("the conformance run (%s): ended %v, exit code %d\n\t%s", step, s.Ended, s.Exit, strings.Join(s.Output, "\n\t"))
	}
	if err := json.Unmarshal([]byte(s.Output[len(s.Output)-1]), &r); err != nil {
		t.Fatalf("the conformance run: %v\n\t%s", err, strings.Join(s.Output, "\n\t"))
	}
	t.Logf("the conformance run (%s) took %.1f s", step, s.Took.Seconds())
	return r
}

// commit says which sources run here.
func commit(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("git", "-c", "safe.directory=*", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "unknown" // a source archive
	}
	return strings.TrimSpace(string(out))
}

// engineStep is one run of the tests of one package.
type engineStep struct {
	guest.Step
	pkg   string
	tests []string // that must end in it; nil if it is not said
}

func asSteps(all []engineStep) (out []guest.Step) {
	for _, s := range all {
		out = append(out, s.Step)
	}
	return out
}

// With -whole a package's tests run so many at a time: one that hangs, or ends
// the process, takes no more than these with it.
const atATime = 12

// engineSteps are the tests of the engine as steps of a job, with the files
// that they need.
func engineSteps(t *testing.T, dir string) ([]engineStep, Load) {
	t.Helper()
	load := Load{"/init": filepath.Join(dir, "init"), "/bin/conformance": filepath.Join(dir, "conformance")}
	var steps []engineStep
	for _, pkg := range engine {
		binary := "/tests/" + testBinary(pkg)
		load[binary] = filepath.Join(dir, testBinary(pkg))
		load["/src/"+pkg] = filepath.Join("../..", pkg) // its sources: some tests read them
		add := func(name, run string, limit int, tests []string) {
			steps = append(steps, engineStep{pkg: pkg, tests: tests, Step: guest.Step{
				Name: name, Dir: "/src/" + pkg, Limit: limit,
				Args: []string{binary, "-test.v", fmt.Sprintf("-test.timeout=%ds", limit-10), "-test.run=" + run},
				Env:  []string{need.Require + "=root,bpf,tracefs,cgroup2,runc,fuse,libc,command:gcc,command:sh"},
			}})
		}
		switch {
		case *onlyFlag != "":
			add(pkg, *onlyFlag, 1500, nil)
		case *wholeFlag:
			tests := testsOf(t, pkg)
			parts := (len(tests) + atATime - 1) / atATime
			for i := range parts {
				of := tests[i*atATime : min(len(tests), (i+1)*atATime)]
				add(fmt.Sprintf("%s %d/%d", pkg, i+1, parts), "^("+strings.Join(of, "|")+")$", 1500, of)
			}
		default:
			add(pkg, quick[pkg], 300, nil)
		}
	}
	return steps, load
}

var testFunction = regexp.MustCompile(`(?m)^func (Test[A-Z0-9]\w*)\(\w+ \*testing\.T\)`)

// testsOf lists the tests of a package, in the order of its files.
func testsOf(t *testing.T, pkg string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range testFunction.FindAllSubmatch(b, -1) {
			names = append(names, string(m[1]))
		}
	}
	return names
}

// quick are the tests that a run without -whole leaves it at, by package: the
// engine's core. All of them take minutes in an emulated machine.
var quick = map[string]string{
	"bpf":            "^TestLoadEachRung$",
	"bpf/kernel":     "^(TestLook|TestOpenBTF|TestSubject)$",
	"bpf/probe":      "^(TestFirstInstruction|TestUnmountWhileArmed)$",
	"runtime/cgroup": "^(TestFindAndSelf|TestRealProcess)$",
}

func bootOrFail(t *testing.T, m Machine, dir string, job guest.Job, load Load) *Boot {
	t.Helper()
	limit := 30 * time.Second
	for _, s := range job.Steps {
		limit += time.Duration(s.Limit) * time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if at, ok := t.Deadline(); ok { // to say what the guest said, instead of being killed
		var stop context.CancelFunc
		ctx, stop = context.WithDeadline(ctx, at.Add(-15*time.Second))
		defer stop()
	}
	console := io.Discard
	if *consoleFlag != "" {
		f, err := os.OpenFile(*consoleFlag, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		console = f
	}
	told := func(guest.Line) {}
	if *wholeFlag {
		told = progress(m.Name)
	}
	boot, err := m.Run(ctx, dir, scratch, job, load, console, told)
	if err != nil {
		if boot != nil {
			for _, s := range boot.Steps {
				t.Logf("%s:\n\t%s", s.Name, strings.Join(s.Output, "\n\t"))
			}
		}
		t.Fatal(err)
	}
	t.Logf("%s: up after %.1f s, off after %.1f s", boot.Release, boot.Up.Seconds(), boot.Took.Seconds())
	return boot
}

// progress says now and then how far a machine is, in lines that tests/need/report
// passes on at once: a guest may take half an hour.
func progress(machine string) func(guest.Line) {
	const every = 30 * time.Second
	began, said, ended, last := time.Now(), time.Now(), 0, ""
	return func(l guest.Line) {
		if m := verdict.FindStringSubmatch(l.Text); l.Kind == guest.Out && m != nil && !strings.Contains(m[2], "/") {
			ended, last = ended+1, l.Step+" "+m[2]
			if m[1] == "FAIL" {
				fmt.Printf("progress: %s: %s fails\n", machine, last)
			}
		}
		if l.Kind == guest.End || l.Kind == guest.Up || time.Since(said) > every {
			said = time.Now()
			fmt.Printf("progress: %s: %s: %s %s, %d tests have ended, the last was %s\n", machine, time.Since(began).Round(time.Second), l.Kind, l.Step, ended, cmp.Or(last, "none"))
		}
	}
}

var (
	verdict = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+)`)
	speaks  = regexp.MustCompile(`^\s*=== (?:RUN|NAME|CONT)\s+(\S+)`) // whose are the lines that follow
	wanted  = regexp.MustCompile(`needs (\S+): `)
)

// lacked says what each test that was skipped had needed. The verdicts on subtests
// come when all of them have ended, so it is looked whose the words before were.
func lacked(output []string) map[string]string {
	wants, running := map[string]string{}, ""
	for _, line := range output {
		if m := speaks.FindStringSubmatch(line); m != nil {
			running = m[1]
		}
		if m := wanted.FindStringSubmatch(line); m != nil {
			wants[running] = m[1]
		}
	}
	return wants
}

func TestLacked(t *testing.T) {
	got := lacked(strings.Split(`=== RUN   TestA
=== RUN   TestA/one
    a_test.go:7: needs feature:x: not built in
=== RUN   TestA/two
    a_test.go:7: needs node: it is not installed
=== NAME  TestA
    a_test.go:9: more
--- PASS: TestA (0.1s)
    --- SKIP: TestA/one (0.0s)
    --- SKIP: TestA/two (0.0s)`, "\n"))
	if !maps.Equal(got, map[string]string{"TestA/one": "feature:x", "TestA/two": "node"}) {
		t.Errorf("%v", got)
	}
}

// judgeTests wants that a test binary ran tests, that all passed, and that none
// was skipped but for what the guests are allowed to lack, and for what is of
// another architecture. It returns how many
// passed.
func judgeTests(t *testing.T, s engineStep, r StepResult, machine Machine, expected Expect) (passed int) {
	t.Helper()
	wants, ended := lacked(r.Output), map[string]bool{}
	for _, line := range r.Output {
		m := verdict.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		ended[m[2]] = true
		switch m[1] {
		case "PASS":
			passed++
			if why := expected.Skips[machine.Name+" "+s.pkg+"."+m[2]]; why != "" {
				t.Errorf("%s: %s passes, and expect.json says that it is skipped (%s)", r.Name, m[2], why)
			}
		case "FAIL":
			t.Errorf("%s: %s fails", r.Name, m[2])
		case "SKIP":
			why := wants[m[2]]
			foreign := strings.HasPrefix(why, "machine:") && why != "machine:"+machine.Arch
			if !foreign && expected.Absent[why] == "" && expected.Skips[machine.Name+" "+s.pkg+"."+m[2]] == "" {
				t.Errorf("%s: %s is skipped (%q), and expect.json does not allow for it", r.Name, m[2], why)
			}
		}
	}
	for _, name := range s.tests {
		if !ended[name] {
			t.Errorf("%s: %s has not ended", s.Name, name)
		}
	}
	if !r.Ended || r.Exit != 0 {
		t.Errorf("%s: ended %v, exit code %d, %d tests passed\n\t%s", s.Name, r.Ended, r.Exit, passed, strings.Join(r.Output, "\n\t"))
	}
	t.Logf("%s: %d tests passed in %.1f s", s.Name, passed, r.Took.Seconds())
	return passed
}
