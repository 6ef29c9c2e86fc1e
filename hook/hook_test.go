package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"probity/runtime/handoff"
	"probity/runtime/handoff/wire"
	"probity/runtime/oci"
	"probity/tests/need"
)

const within = 3 * time.Minute // a deadline that is only met when something is broken

// hookProgram builds the hook as it is shipped, once.
var hookProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "probity-hook")
	if err != nil {
		return "", err
	}
	// The user of TestRootless runs it too.
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "probity-hook")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(err, errors.New(string(out)))
	}
	return path, nil
})

func TestMain(m *testing.M) {
	if path := os.Getenv(listenEnv); path != "" {
		listenFor(path)
	}
	code := m.Run()
	if path, err := hookProgram(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func program(t testing.TB) string {
	t.Helper()
	path, err := hookProgram()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestProgramIsSmallAndStatic(t *testing.T) {
	path := program(t)
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", st.Size())
	if st.Size() >= 2_500_000 {
		t.Errorf("%d bytes", st.Size())
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if libs, err := f.ImportedLibraries(); len(libs) > 0 || err != nil {
		t.Errorf("needs %v, %v", libs, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("has an interpreter")
		}
	}
	imports, err := exec.Command("go", "list", "-f", "{{range .Imports}}{{println .}}{{end}}", ".", "../runtime/handoff/wire").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.FieldsSeq(string(imports)) {
		if !slices.Contains([]string{"errors", "io", "os", "syscall", "time", "unicode/utf8", "probity/runtime/handoff/wire"}, name) {
			t.Errorf("imports %s", name)
		}
	}
	cmd := exec.Command("go", "list", "-deps", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	deps, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.FieldsSeq(string(deps)) {
		if slices.Contains([]string{"fmt", "net", "net/http", "encoding/json", "reflect", "context", "log/slog", "unicode"}, dep) {
			t.Errorf("links %s", dep)
		}
		if strings.HasPrefix(dep, "probity/") && dep != "probity/hook" && dep != "probity/runtime/handoff/wire" {
			t.Errorf("links %s", dep)
		}
	}
}

// result of one run of the hook.
type result struct {
	code   int
	stderr string
	took   time.Duration
}

func hook(t testing.TB, stdin io.Reader, args ...string) result {
	t.Helper()
	return runHook(t, exec.Command(program(t), args...), stdin)
}

func runHook(t testing.TB, cmd *exec.Cmd, stdin io.Reader) result {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = stdin, &stderr
	start := time.Now()
	err := cmd.Run()
	r := result{stderr: stderr.String(), took: time.Since(start)}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		r.code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return r
}

// agent runs a real server and returns its socket.
func agent(t testing.TB, cfg handoff.Config) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "hook.sock")
	l, err := handoff.Listen(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- handoff.New(l, cfg).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(within):
			t.Error("the server does not stop")
		}
	})
	return path
}

// listen says what the agent does, for tests that need no root: the hook does
// not look who listens.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { defer c.Close(); serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); conns.Wait() })
	return path
}

func answering(verdict byte, message string) func(net.Conn) {
	return func(c net.Conn) {
		io.ReadFull(c, make([]byte, wire.HeaderBytes+2))
		c.Write(wire.AppendAnswer(nil, verdict, message))
	}
}

func TestVerdicts(t *testing.T) {
	for _, test := range []struct {
		stage   string
		verdict byte
		message string
		code    int
		stderr  string
	}{
		{"createRuntime", wire.Proceed, "", 0, ""},
		{"createRuntime", wire.Proceed, "no policy selects it", 0, "probity-hook: no policy selects it\n"},
		{"createRuntime", wire.Refuse, "policy p is closed", 1, "probity-hook: refused: policy p is closed\n"},
		{"poststop", wire.Refuse, "never", 0, "probity-hook: never\n"},
	} {
		if os.Geteuid() != 0 { // no container of a user is refused
			test.code, test.stderr = 0, strings.Replace(test.stderr, "refused: ", "", 1)
		}
		r := hook(t, strings.NewReader("{}"), test.stage, "--socket", listen(t, answering(test.verdict, test.message)))
		if r.code != test.code || r.stderr != test.stderr {
			t.Errorf("%+v: %+v", test, r)
		}
	}
}

// The agent learns of every hook, also of one whose state it cannot use.
func TestBadInput(t *testing.T) {
	need.Root(t)
	type call struct {
		handled bool
		err     error
	}
	for _, test := range []struct {
		name  string
		stdin string
		want  error
	}{
		{"empty", "", handoff.ErrEmpty},
		{"2 MiB", strings.Repeat(" ", 2<<20), handoff.ErrTooLong},
		{"not JSON", "container", oci.ErrState},
		{"1 MiB of not JSON", strings.Repeat("[", wire.MaxBody), oci.ErrState},
		{"a pid that is not the container's", `{"ociVersion":"1.0.2","id":"a","status":"creating","pid":1,"bundle":"/"}`, oci.ErrPid},
	} {
		t.Run(test.name, func(t *testing.T) {
			calls := make(chan call, 1)
			path := agent(t, handoff.Config{
				Handle: func(_ context.Context, r handoff.Request) handoff.Answer {
					_, err := oci.Notice(r.Stage.String(), r.Body, r.Peer.Pid)
					calls <- call{true, err}
					return handoff.Answer{}
				},
				Rejected: func(_ handoff.Peer, err error) handoff.Answer {
					calls <- call{false, err}
					return handoff.Answer{}
				},
			})
			if r := hook(t, strings.NewReader(test.stdin), "createRuntime", "--socket", path); r.code != 0 {
				t.Errorf("%+v", r)
			}
			select {
			case c := <-calls:
				if !errors.Is(c.err, test.want) {
					t.Errorf("%+v, want %v", c, test.want)
				}
			case <-time.After(within):
				t.Error("the agent does not know")
			}
		})
	}
}

// What the whole process costs a container's start, beside the least a
// process can cost.
func TestRoundTripTime(t *testing.T) {
	need.Root(t)
	floor := need.Command(t, "true")[0]
	path := agent(t, handoff.Config{Handle: func(context.Context, handoff.Request) handoff.Answer { return handoff.Answer{} }})
	state := `{"ociVersion":"1.0.2","id":"a","status":"creating","pid":1,"bundle":"/"}`
	least := func(args ...string) time.Duration {
		var ds []time.Duration
		for range 101 {
			r := runHook(t, exec.Command(args[0], args[1:]...), strings.NewReader(state))
			if r.code != 0 || r.stderr != "" {
				t.Fatalf("%+v", r)
			}
			ds = append(ds, r.took)
		}
		return slices.Min(ds) // where a wait is built in, it is in each
	}
	up := least(program(t), "createRuntime", "--socket", path)
	absent := least(program(t), "createRuntime", "--socket", path+".none")
	t.Logf("a whole process: agent up %v, agent absent %v, /bin/true %v", up, absent, least(floor))
	if up > 100*time.Millisecond { // the budget is measured by the benchmarks
		t.Errorf("%v with the agent up", up)
	}
}
