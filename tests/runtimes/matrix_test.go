package runtimes

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"probity/evidence"
)

var writeRuntimes = flag.Bool("write-runtimes", false, "write docs/runtimes.json (TestScenarios) and the tables in docs/runtimes.md (TestRuntimesPage)")

// A machine that tests/kernels boots has no documents, and its results are others'.
var report = flag.Bool("report", false, "have TestScenarios print its results as lines of JSON, and compare nothing")

// suites are the columns of the matrix. A new runtime is a row here, and what it is a
// suite by.
var suites = []struct {
	name string
	open func(*testing.T) suite
	gone func() string // why it cannot be run here; nil: it can, or its test says what it needs
}{
	{"containerd (CRI)", containerdSuite, nil},
	{"containerd (ctr)", newCtrSuite, nil},
	{"podman", func(t *testing.T) suite { return podmanSuite{podmanDriver{NewPodman(t)}} }, nil},
	{"runc", runcSuite, nil},
	{"crun", crunSuite, nil},
	{"CRI-O", crioSuite, func() string {
		if hasCRIO() {
			return ""
		}
		return "crio is not installed"
	}},
}

// TestScenarios runs every scenario under every runtime, twice: with an agent, and with
// one that is killed (SIGKILL) when all of them have begun, and started again when it has
// happened. Its probes are held meanwhile, as by systemd. Whatever was armed before is
// counted to the end, and no container is any different: docs/runtimes.json says how each
// one went, and a scenario that was not run has no result.
func TestScenarios(t *testing.T) {
	got := make([]MatrixRuntime, len(suites))
	var all sync.WaitGroup // they mostly wait; t.Parallel would have two at a time
	for i, s := range suites {
		got[i].Name = s.name
		if s.gone != nil && s.gone() != "" {
			got[i].NotRun = s.gone() + " here"
			continue
		}
		all.Go(func() {
			t.Run(s.name, func(t *testing.T) { got[i] = rehearse(t, s.name, s.open(t)) })
		})
		if *report { // an emulated machine has no time to give to all at once
			all.Wait()
		}
	}
	all.Wait()
	if *report {
		for _, r := range got {
			b, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Printf("%s%s\n", ReportMark, b)
		}
		return
	}
	before := readMatrix(t)
	for i, r := range got {
		was := before.Put(r, i)
		if !*writeRuntimes && was.NotRun == "" && len(r.Rows) > 0 && !slices.Equal(was.Rows, r.Rows) {
			t.Errorf("docs/runtimes.json says of %s\n%+v\nit went\n%+v", r.Name, was.Rows, r.Rows)
		}
	}
	if *writeRuntimes {
		writeMatrix(t, before)
	}
}

// rehearse runs every scenario under one runtime, with one agent.
func rehearse(t *testing.T, name string, d suite) MatrixRuntime {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	m := MatrixRuntime{Name: name, Versions: d.versions(t), Kernel: unix.ByteSliceToString(uts.Release[:]), Cgroups: "unified", Commit: commit(t)}
	if hybrid() {
		m.Cgroups = "hybrid"
	}
	d.image(t)
	a := StartAgent(t, d.agent(AgentOptions{Policies: scenarioPolicies, Store: true}))
	d.attach(t, a)
	results := map[bool]map[string]string{false: {}, true: {}}
	for _, killed := range []bool{false, true} {
		word := map[bool]string{false: "agent lives", true: "agent killed"}[killed]
		t.Run(word, func(t *testing.T) {
			var together []scenario
			groups := [][]scenario{}
			for _, s := range scenarios {
				switch why := d.cannot(s.name); {
				case why != "":
					results[killed][s.name] = Cannot + why
				case s.alone:
					groups = append(groups, []scenario{s})
				default:
					together = append(together, s)
				}
			}
			for i, group := range append([][]scenario{together}, groups...) {
				r := &rehearsal{d: d, a: a, killed: killed, name: fmt.Sprintf("%d%t", i, killed)}
				for name, ok := range r.run(t, group) {
					results[killed][name] = map[bool]string{false: Failed, true: Passed}[ok]
				}
			}
		})
	}
	for _, s := range scenarios {
		m.Rows = append(m.Rows, MatrixRow{s.name, results[false][s.name], results[true][s.name]})
	}
	return m
}

// run goes through the phases of some scenarios together, and says which of them passed.
func (r *rehearsal) run(t *testing.T, group []scenario) map[string]bool {
	passed, scenes := map[string]bool{}, make([]*scene, len(group))
	for i, s := range group {
		passed[s.name], scenes[i] = true, &scene{r: r}
	}
	phase := func(name string, together bool, of func(scenario) func(*scene)) {
		var mu sync.Mutex
		var all sync.WaitGroup
		for i, s := range group {
			do := of(s)
			if do == nil || !passed[s.name] {
				continue
			}
			run := func() {
				ok := t.Run(name+"/"+s.name, func(t *testing.T) {
					scenes[i].T = t
					do(scenes[i])
				})
				mu.Lock()
				defer mu.Unlock()
				passed[s.name] = ok
			}
			if together {
				all.Go(run)
			} else {
				run()
			}
		}
		all.Wait()
	}
	phase("begin", false, func(s scenario) func(*scene) { return s.begin })
	if r.killed {
		r.held(t)
		r.a.Kill(t)
	}
	phase("happens", r.killed, func(s scenario) func(*scene) { return s.happens })
	if r.killed {
		r.back(t)
	}
	phase("after", false, func(s scenario) func(*scene) { return s.after })
	e := settled(t, r.a)
	for _, s := range scenes {
		s.e = e
	}
	phase("evidence", false, func(s scenario) func(*scene) { return s.check })
	return passed
}

// held waits until of every container that lives there is a line in the spool: then the
// next agent is to count what is counted from now on.
func (r *rehearsal) held(t *testing.T) {
	t.Helper()
	r.a.WaitLine(t, func(e Evidence) bool {
		return !slices.ContainsFunc(r.live, func(c life) bool {
			return !slices.ContainsFunc(e.Observations, func(o *evidence.Observation) bool { return o.ContainerID == c.id() && o.State == evidence.Hit })
		}) && !slices.ContainsFunc(r.a.store.names(), func(name string) bool { return strings.HasPrefix(name, "unsigned-") })
	})
}

// back starts the agent again.
func (r *rehearsal) back(t *testing.T) {
	t.Helper()
	r.a.Start(t)
	r.d.attach(t, r.a)
}

// commit is what the working tree is of.
func commit(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "" // an unpacked archive
	}
	return strings.TrimSpace(string(out))
}

const matrixPage, matrixJSON = "../../docs/runtimes.md", "../../docs/runtimes.json"

func readMatrix(t *testing.T) Matrix {
	t.Helper()
	m, err := ReadMatrix(matrixJSON)
	if errors.Is(err, os.ErrNotExist) && *writeRuntimes {
		return m
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// The marks around what is generated.
const matrixBegin, matrixEnd = "<!-- made by TestScenarios -->\n", "<!-- end of what is made -->\n"

func scenarioNames() (names []string) {
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	return names
}

// generated is what lies between the marks.
func (m Matrix) generated() string {
	var b strings.Builder
	b.WriteString("| scenario | what happens, and what is wanted |\n|---|---|\n")
	for _, s := range scenarios {
		fmt.Fprintf(&b, "| %s | %s |\n", s.name, s.text)
	}
	return b.String() + "\n" + m.Page(scenarioNames())
}

func writeMatrix(t *testing.T, m Matrix) {
	t.Helper()
	if out, err := exec.Command("git", "status", "--porcelain", "--", ":/", ":!/docs/runtimes.*").Output(); err != nil || len(out) > 0 {
		t.Fatalf("the commit that is recorded is not what was run: %v\n%s", err, out)
	}
	if err := m.Write(matrixJSON); err != nil {
		t.Fatal(err)
	}
}

// The page says what the results say, and nothing is green that was not run.
func TestRuntimesPage(t *testing.T) {
	m := readMatrix(t)
	page, err := os.ReadFile(matrixPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(page), matrixBegin)
	has, after, ok := strings.Cut(rest, matrixEnd)
	switch {
	case !ok:
		t.Error("docs/runtimes.md has no place for the tables")
	case *writeRuntimes:
		if err := os.WriteFile(matrixPage, []byte(before+matrixBegin+m.generated()+matrixEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
	case has != m.generated():
		t.Error("docs/runtimes.md is not what docs/runtimes.json makes")
	}
	for _, s := range suites {
		if !slices.ContainsFunc(m.Runtimes, func(r MatrixRuntime) bool { return r.Name == s.name }) {
			t.Errorf("docs/runtimes.json does not have %s", s.name)
		}
	}
	for _, r := range m.Runtimes {
		if (r.NotRun != "") != (len(r.Rows) == 0) || r.NotRun == "" && (len(r.Versions) == 0 || r.Kernel == "" || r.Commit == "") {
			t.Errorf("%+v", r)
		}
		for _, row := range r.Rows {
			for _, result := range []string{row.Lives, row.Killed} {
				if result != Passed && !(strings.HasPrefix(result, Cannot) && len(result) > len(Cannot)) {
					t.Errorf("%s, %s: %q", r.Name, row.Scenario, result)
				}
			}
		}
		for _, name := range scenarioNames() {
			if _, ok := r.row(name); !ok && r.NotRun == "" {
				t.Errorf("%s has no result of %q", r.Name, name)
			}
		}
	}
}
