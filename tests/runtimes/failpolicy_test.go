package runtimes

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"probity/evidence"
	"probity/tests/need"
)

var writeFailPolicy = flag.Bool("write-fail-policy", false, "write docs/fail-policy.json and the table in docs/fail-policy.md")

// The policies of the test, by the names of containers.
var failPolicies = func() (all []string) {
	for _, p := range []struct{ name, fail, symbols string }{
		{"open", "open", "hello, absent"}, {"closed", "closed", "hello"}, {"lacking", "closed", "hello, absent"},
	} {
		all = append(all, fmt.Sprintf("name: %[1]s\nfailPolicy: %[2]s\nselect: {containers: ['%[1]s-*']}\nprobes:\n  - {id: %[1]s, type: uprobe, file: /bin/target, symbols: [%[3]s]}\n", p.name, p.fail, p.symbols))
	}
	return all
}()

// refuser is a runtime whose containers may be refused.
type refuser interface {
	agent(AgentOptions) AgentOptions
	attach(t *testing.T, a *Agent)
	// run runs a container to its end and returns its id and what the runtime said.
	// The file that the program makes says whether it ran.
	run(t *testing.T, name string) (id string, ran bool, err error)
	// closeWithoutAgent does what an operator can do for the time without an agent,
	// and says what that is.
	closeWithoutAgent(t *testing.T) string
	version(t *testing.T) string
}

// hookPolicy is the file that hooks are told of.
func hookPolicy(t *testing.T, s *Scratch, word string) { s.write(t, "fail-policy", word+"\n") }

type refusingPodman struct{ podmanDriver }

func (r refusingPodman) attach(t *testing.T, a *Agent) {
	r.podmanDriver.attach(t, a)
	path := filepath.Join(r.HooksDir, "probity-create.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	more := strings.Replace(string(b), `"--socket"`, fmt.Sprintf(`"--fail-policy", %q, "--socket"`, r.scratch().Path("fail-policy")), 1)
	if err := os.WriteFile(path, []byte(more), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (r refusingPodman) run(t *testing.T, name string) (string, bool, error) {
	id, out, err := r.TryRun(t, "--name", name, targetName, "hello", "say")
	return id, strings.Contains(out, "said"), err
}

func (r refusingPodman) closeWithoutAgent(t *testing.T) string {
	hookPolicy(t, r.scratch(), "closed")
	return "`fail-policy` says `closed`"
}
func (r refusingPodman) version(t *testing.T) string {
	return strings.TrimSpace(strings.TrimPrefix(r.Podman.Podman(t, "--version"), "podman version "))
}

// refusingRunc runs a bundle with the hook in its configuration.
type refusingRunc struct {
	*Scratch
	path string
	a    *Agent
}

func newRefusingRunc(t *testing.T) *refusingRunc {
	r := &refusingRunc{NewScratch(t), need.Runc(t), nil}
	r.mkdir(t, "bundle/rootfs/bin")
	Compile(t, r.Path("bundle/rootfs/bin/target"), "-static", "-O2", "testdata/target.c")
	return r
}

func (r *refusingRunc) agent(o AgentOptions) AgentOptions { return o }
func (r *refusingRunc) attach(_ *testing.T, a *Agent)     { r.a = a }
func (r *refusingRunc) closeWithoutAgent(t *testing.T) string {
	hookPolicy(t, r.Scratch, "closed")
	return "`fail-policy` says `closed`"
}

func (r *refusingRunc) run(t *testing.T, name string) (string, bool, error) {
	r.write(t, "bundle/config.json", fmt.Sprintf(`{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"args":["/bin/target","hello","say"],"env":["PATH=/bin"],"cwd":"/"},
"root":{"path":"rootfs"},"mounts":[{"destination":"/proc","type":"proc","source":"proc"}],
"hooks":{"createRuntime":[{"path":%q,"args":["probity-hook","createRuntime","--socket",%q,"--fail-policy",%q],"timeout":30}]},
"linux":{"cgroupsPath":%q,"namespaces":[{"type":"mount"},{"type":"pid"},{"type":"ipc"}]}}`, r.a.Binaries.Hook, r.a.HookSocket, r.Path("fail-policy"), r.Cgroup+"/"+name))
	out, err := output(exec.Command(r.path, "--root", r.mkdir(t, "runc"), "run", "--bundle", r.Path("bundle"), name))
	return name, strings.Contains(out, "said"), err
}

func (r *refusingRunc) version(t *testing.T) string { return runcVersion(t, r.path) }

func runcVersion(t *testing.T, path string) string {
	t.Helper()
	out, err := output(exec.Command(path, "--version"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(out)[2]
}

type refusingContainerd struct{ containerdDriver }

func (r refusingContainerd) run(t *testing.T, name string) (string, bool, error) {
	return r.tryRun(t, name)
}

// tryRun runs a container through CRI.
func (c *criServer) tryRun(t *testing.T, name string) (string, bool, error) {
	x, err := c.TryCreate(t, Spec{Image: targetName, Name: name, Args: []string{"hello", "say"}})
	if err != nil {
		return "", false, err
	}
	if err := x.TryStart(t); err != nil {
		return x.ID, false, err
	}
	x.Wait(t)
	return x.ID, strings.Contains(x.Output(t), "said"), nil
}

type refusingCRIO struct{ crioDriver }

func (r refusingCRIO) run(t *testing.T, name string) (string, bool, error) { return r.tryRun(t, name) }

func (r refusingCRIO) closeWithoutAgent(t *testing.T) string {
	path := r.Scratch.Path("crio.conf")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r.Scratch.write(t, "crio.conf", string(b)+"\n[crio.nri.default_validator]\nnri_enable_default_validator = true\nnri_validator_required_plugins = [\"probity\"]\n")
	r.Restart(t)
	return "`nri_validator_required_plugins = [\"probity\"]`"
}

func (r refusingCRIO) version(t *testing.T) string {
	ctx, cancel := within(t, Patience)
	defer cancel()
	v, err := r.criServer.runtime.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return v.RuntimeVersion
}

// closeWithoutAgent has the default validator miss the plugin.
func (r refusingContainerd) closeWithoutAgent(t *testing.T) string {
	b, err := os.ReadFile(r.config)
	if err != nil {
		t.Fatal(err)
	}
	const more = "\n[plugins.'io.containerd.nri.v1.nri'.default_validator]\nenable = true\nrequired_plugins = ['probity']\n"
	if err := os.WriteFile(r.config, append(b, more...), 0o644); err != nil {
		t.Fatal(err)
	}
	r.Restart(t)
	return "`required_plugins = ['probity']`"
}

func (r refusingContainerd) version(t *testing.T) string { return r.Version(t) }

// started is one container that was started, and when.
type started struct {
	row      FailPolicyRow
	name     string
	id       string // "" where the runtime did not come to say it
	from, to time.Time
}

// refusals starts containers in every state of an agent.
type refusals struct {
	t    *testing.T
	name string
	r    refuser
	a    *Agent
	all  []started
}

func (f *refusals) run(agent, setup string, policies ...string) {
	f.t.Helper()
	for _, policy := range policies {
		word, _, _ := strings.Cut(policy, ",")
		if policy == "closed, not met" {
			word = "lacking"
		}
		for try := range 5 { // a busy machine may be late by itself
			x := started{row: FailPolicyRow{Runtime: f.name, Agent: agent, Setup: setup, Policy: policy}, name: fmt.Sprintf("%s-%d-%d", word, len(f.all), try), from: time.Now()}
			var err error
			x.id, x.row.Started, err = f.r.run(f.t, x.name)
			x.to = time.Now()
			if x.row.Started != (err == nil) {
				f.t.Errorf("%s, agent %s, %s: it ran: %v, and the runtime says %v", f.name, agent, policy, x.row.Started, err)
			}
			if err != nil && agent == "alive" && strings.Contains(err.Error(), "not armed in time") {
				continue
			}
			f.all = append(f.all, x)
			break
		}
	}
}

// restart starts the agent again with this barrier, once it has written all it knows.
func (f *refusals) restart(barrier string) {
	f.t.Helper()
	f.a.WaitIdle(f.t)
	f.a.Stop(f.t)
	f.a.Scratch.write(f.t, "probity.yaml", f.a.options.Config+barrier)
	f.a.Start(f.t)
	f.a.WaitSources(f.t)
}

// stopped starts a container while the agent hangs.
func (f *refusals) stopped(setup, policy string) {
	f.t.Helper()
	if err := syscall.Kill(f.a.Pid(), syscall.SIGSTOP); err != nil {
		f.t.Fatal(err)
	}
	f.run("stopped", setup, policy)
	if err := syscall.Kill(f.a.Pid(), syscall.SIGCONT); err != nil {
		f.t.Fatal(err)
	}
	f.restart("") // whatever cut it off
}

// dead starts containers while there is no agent.
func (f *refusals) dead(setup string, policies ...string) {
	f.t.Helper()
	f.a.Kill(f.t)
	f.run("dead", setup, policies...)
	f.a.Start(f.t)
	f.a.WaitSources(f.t)
}

// inEveryState starts containers in each state of the agent.
func (f *refusals) inEveryState() {
	f.t.Helper()
	f.run("alive", "", "open", "closed", "closed, not met")
	f.restart("barrier: 1us\n")
	f.run("slow", "", "open", "closed")
	f.restart("")
	f.stopped("", "open")
	f.stopped("", "closed")
	f.dead("", "open", "closed")
	setup := f.r.closeWithoutAgent(f.t)
	f.a.WaitSources(f.t)
	f.stopped(setup, "closed")
	f.dead(setup, "open", "closed")
}

// table fills in what is signed of the containers.
func (f *refusals) table() (rows []FailPolicyRow) {
	e := settled(f.t, f.a)
	latest := map[string]*evidence.Gap{} // the line that closes it, if there is one
	for _, g := range e.Gaps {
		latest[g.GapID] = g
	}
	for _, x := range f.all {
		r := x.row
		add := func(g *evidence.Gap) {
			if !slices.Contains(r.Gaps, string(g.Reason)) {
				r.Gaps = append(r.Gaps, string(g.Reason))
			}
		}
		if i := slices.IndexFunc(e.Coverage, func(c *evidence.Coverage) bool { return c.ContainerName == x.name }); x.id == "" && i >= 0 {
			x.id = e.Coverage[i].ContainerID
		}
		c := e.Cover(x.id)
		if x.id == "" || c == nil {
			r.Enforced = "no run"
			for _, g := range latest {
				// That a source was heard again may come when the container starts already.
				again := g.Scope == evidence.ScopeSource && g.Reason == evidence.GapAgentDown
				if (g.Scope == evidence.ScopeNode || g.Scope == evidence.ScopeSource && !again) && g.From.Std().Before(x.to) && (g.To.IsZero() || g.To.Std().After(x.from)) {
					add(g)
				}
			}
		} else {
			if c.FailPolicyEnforced != nil {
				r.Enforced = fmt.Sprint(*c.FailPolicyEnforced)
			}
			r.Refused = c.Refused
			for _, g := range e.Gaps {
				if g.RunID == c.RunID {
					add(g)
				}
			}
		}
		slices.Sort(r.Gaps)
		rows = append(rows, r)
	}
	return rows
}

// What every runtime does with an agent that is alive, slow, hangs or is dead, under
// an open and a closed policy: as docs/fail-policy.json says, from which the table in
// docs/fail-policy.md is made.
func TestFailPolicy(t *testing.T) {
	var release unix.Utsname
	if err := unix.Uname(&release); err != nil {
		t.Fatal(err)
	}
	got := FailPolicy{Kernel: unix.ByteSliceToString(release.Release[:]), Versions: map[string]string{}}
	runtimes := []struct {
		name    string
		open    func(*testing.T) refuser
		rows    []FailPolicyRow
		version string
	}{
		{name: "containerd (CRI)", open: func(t *testing.T) refuser {
			d := containerdDriver{StartContainerd(t)}
			targetImage(t, d)
			return refusingContainerd{d}
		}},
		{name: "podman", open: func(t *testing.T) refuser {
			d := podmanDriver{NewPodman(t)}
			targetImage(t, d)
			return refusingPodman{d}
		}},
		{name: "runc", open: func(t *testing.T) refuser { return newRefusingRunc(t) }},
		{name: "CRI-O (NRI)", open: func(t *testing.T) refuser {
			d := crioDriver{StartCRIO(t)}
			targetImage(t, d)
			return refusingCRIO{d}
		}},
	}
	var recorded []FailPolicyRow // of CRI-O, which few machines have
	if before := readFailPolicy(t); !hasCRIO() {
		runtimes = runtimes[:3]
		recorded = slices.DeleteFunc(before.Rows, func(r FailPolicyRow) bool { return r.Runtime != "CRI-O (NRI)" })
		got.Versions["CRI-O (NRI)"] = before.Versions["CRI-O (NRI)"]
	}
	t.Run("each", func(t *testing.T) { // returns when all have
		for i := range runtimes {
			r := &runtimes[i]
			t.Run(r.name, func(t *testing.T) {
				t.Parallel() // they mostly wait
				f := &refusals{t: t, name: r.name, r: r.open(t)}
				f.a = StartAgent(t, f.r.agent(AgentOptions{Policies: failPolicies}))
				f.r.attach(t, f.a)
				f.inEveryState()
				r.version, r.rows = f.r.version(t), f.table()
			})
		}
	})
	for _, r := range runtimes {
		if r.version == "" {
			return // it is missing, or failed
		}
		got.Versions[r.name], got.Rows = r.version, append(got.Rows, r.rows...)
	}
	got.Rows = append(got.Rows, recorded...)
	if *writeFailPolicy {
		writeFailPolicyPage(t, got)
	}
	want := readFailPolicy(t)
	g, _ := json.MarshalIndent(got.Rows, "", " ")
	w, _ := json.MarshalIndent(want.Rows, "", " ")
	if string(g) != string(w) {
		t.Errorf("docs/fail-policy.json has other rows than\n%s", g)
	}
}

const failPolicyPage = "../../docs/fail-policy.md"

func readFailPolicy(t *testing.T) (f FailPolicy) {
	t.Helper()
	b, err := os.ReadFile("../../docs/fail-policy.json")
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// The marks around the table.
const failPolicyBegin, failPolicyEnd = "<!-- table: made by TestFailPolicy -->\n", "<!-- end of the table -->\n"

func writeFailPolicyPage(t *testing.T, f FailPolicy) {
	t.Helper()
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(failPolicyPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(page), failPolicyBegin)
	_, after, ok := strings.Cut(rest, failPolicyEnd)
	if !ok {
		t.Fatal("docs/fail-policy.md has no place for the table")
	}
	if err := errors.Join(
		os.WriteFile("../../docs/fail-policy.json", append(b, '\n'), 0o644),
		os.WriteFile(failPolicyPage, []byte(before+failPolicyBegin+f.caption()+f.Table()+failPolicyEnd+after), 0o644),
	); err != nil {
		t.Fatal(err)
	}
}

// The page says what the results say.
func TestFailPolicyPage(t *testing.T) {
	page, err := os.ReadFile(failPolicyPage)
	if err != nil {
		t.Fatal(err)
	}
	f := readFailPolicy(t)
	if !strings.Contains(string(page), failPolicyBegin+f.caption()+f.Table()+failPolicyEnd) {
		t.Error("docs/fail-policy.md does not have the table of docs/fail-policy.json")
	}
	// What the rest of the page rests on.
	for _, r := range f.Rows {
		closed := r.Policy != "open"
		switch {
		case r.Agent == "alive" && r.Started != (r.Policy != "closed, not met"),
			r.Agent == "slow" && r.Started == closed,
			!r.Started && r.Setup == "" && !closed,
			r.Enforced == "no run" && len(r.Gaps) == 0, // nobody would know of it
			r.Enforced == "true" && r.Started != (r.Refused == ""):
			t.Errorf("%+v", r)
		}
	}
}
