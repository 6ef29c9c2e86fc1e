package main

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"probity/runtime/container"
	"probity/runtime/handoff"
	"probity/runtime/handoff/wire"
	"probity/runtime/oci"
	"probity/tests/need"
)

const within = 3 * time.Minute // a deadline that is only met when something is broken

// built builds this program and the hook as they are shipped, once.
var built = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "probity-runtime"); err != nil {
		return "", err
	}
	for name, pkg := range map[string]string{"probity-runtime": ".", "probity-hook": "../hook"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return dir, errors.Join(err, errors.New(string(out)))
		}
	}
	return dir, nil
})

// realEnv makes the test binary a real runtime, which writes what it was given.
const realEnv = "PROBITY_TEST_REAL"

func TestMain(m *testing.M) {
	if path := os.Getenv(realEnv); path != "" {
		b, err := json.Marshal(given())
		if err == nil {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(7)
	}
	code := m.Run()
	if dir, err := built(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

func program(t *testing.T, name string) string {
	t.Helper()
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// process is what a process is given by who executes it.
type process struct {
	Pid     int
	Args    []string
	Env     []string
	Third   string // what file descriptor 3 is
	Signals string
	Dir     string
}

func given() process {
	p := process{Pid: os.Getpid(), Args: os.Args[1:], Env: os.Environ()}
	p.Third, _ = os.Readlink("/proc/self/fd/3")
	p.Dir, _ = os.Getwd()
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "SigIgn") || strings.HasPrefix(line, "SigBlk") {
			p.Signals += line
		}
	}
	return p
}

// The real runtime is given what this program was: the same process, arguments,
// environment, files and signals, whatever was wrong with the bundle.
func TestBecomes(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bundle := t.TempDir()
	if err := os.WriteFile(bundle+"/config.json", []byte(`{`), 0o600); err != nil {
		t.Fatal(err)
	}
	hook := program(t, "probity-hook")
	for _, args := range [][]string{
		{"create", "--bundle", bundle, "id"},
		{"create", "--bundle", "/none", "id"},
		{"create", "--bundle"},
		{"--root", "\xff\x00x"[:1], "state", ""},
		{"--version"},
		nil,
	} {
		for _, own := range [][]string{{"--real", self}, {"--real", self, "--hook", hook}, {"--hook", "/none", "--real", self}} {
			say := func(name string, args ...string) (process, string) {
				out := filepath.Join(t.TempDir(), "out")
				cmd := exec.Command(name, args...)
				third, err := os.Open("/proc/self/cmdline")
				if err != nil {
					t.Fatal(err)
				}
				defer third.Close()
				var text bytes.Buffer
				cmd.Dir, cmd.Env, cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = "/", []string{"A=1", realEnv + "=" + out, "A=2"}, []*os.File{third}, &text, &text
				var exit *exec.ExitError
				if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
					t.Errorf("%v: %v, %s", args, err, text.String())
				}
				var p process
				b, err := os.ReadFile(out)
				if err == nil {
					err = json.Unmarshal(b, &p)
				}
				if err != nil {
					t.Fatal(err)
				}
				if p.Pid != cmd.Process.Pid {
					t.Errorf("%v: pid %d, not %d", args, p.Pid, cmd.Process.Pid)
				}
				p.Pid = 0
				for i := range p.Env {
					p.Env[i] = strings.ReplaceAll(p.Env[i], out, "OUT")
				}
				return p, text.String()
			}
			want, _ := say(self, args...)
			got, text := say(program(t, "probity-runtime"), append(slices.Clone(own), args...)...)
			if !reflect.DeepEqual(got, want) || text != "" {
				t.Errorf("%v %v: %+v, %q\nwant %+v", own, args, got, text, want)
			}
		}
	}
	if b, err := os.ReadFile(bundle + "/config.json"); err != nil || string(b) != "{" {
		t.Errorf("%q, %v", b, err)
	}
}

// It never becomes itself, by whatever name, and says so when there is nothing else.
func TestNoRuntime(t *testing.T) {
	path := program(t, "probity-runtime")
	dir := t.TempDir()
	if err := os.Symlink(path, dir+"/runc"); err != nil {
		t.Fatal(err)
	}
	for _, real := range []string{path, dir + "/runc", dir, "/none", "runc"} {
		cmd := exec.Command(path, "--real", real, "--version")
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 127 || !strings.Contains(string(out), "execute the real runtime "+real) {
			t.Errorf("%s: %v, %s", real, err, out)
		}
	}
	runc, ok := need.Look("runc")
	if !ok {
		runc = need.Runc(t)
	}
	got, err := options{}.runtime(dir + ":relative:" + filepath.Dir(runc))
	if err != nil || got != filepath.Join(filepath.Dir(runc), "runc") && got != dir+"/runc" {
		t.Errorf("%s, %v", got, err)
	}
	cmd := exec.Command(path, "--version")
	cmd.Env = []string{"PATH=" + dir + ":" + filepath.Dir(runc)}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "runc version") {
		t.Errorf("%v, %s", err, out)
	}
}

// The system log hears why there is no hook; nobody waits for it.
func TestTell(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	tell(path, errors.New("nobody listens"))
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 2000 { // more than a socket's buffer holds
		tell(path, errors.New(strings.Repeat("x", 4096)+"\xff"))
	}
	b := make([]byte, 4096)
	n, err := l.Read(b)
	if want := "<28>probity-runtime: not hooked: " + strings.Repeat("x", 1024); err != nil || string(b[:n]) != want {
		t.Errorf("%q, %v", b[:n], err)
	}
}

func TestProgramIsSmallAndStatic(t *testing.T) {
	path := program(t, "probity-runtime")
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", st.Size())
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if libs, err := f.ImportedLibraries(); len(libs) > 0 || err != nil || st.Size() >= 3_000_000 {
		t.Errorf("%d bytes, needs %v, %v", st.Size(), libs, err)
	}
}

// bundle is one that runc makes a container of: busybox, which is static.
func bundle(t *testing.T, script string) string {
	t.Helper()
	dir := t.TempDir()
	busybox := need.Command(t, "busybox")[0]
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(dir+"/rootfs/bin", 0o755), os.WriteFile(dir+"/rootfs/bin/busybox", b, 0o755), os.Symlink("busybox", dir+"/rootfs/bin/sh")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(need.Runc(t), "spec", "--bundle", dir).CombinedOutput(); err != nil {
		t.Fatalf("runc spec: %s, %v", out, err)
	}
	var config map[string]any
	b, err = os.ReadFile(dir + "/config.json")
	if err == nil {
		err = json.Unmarshal(b, &config)
	}
	if err != nil {
		t.Fatal(err)
	}
	process := config["process"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"/bin/sh", "-c", script}
	delete(process, "rlimits") // a restricted host permits no more files
	if b, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/config.json", b, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The whole way: this program, runc, the hook, the agent's socket, the cross-checks.
func TestRunc(t *testing.T) {
	runc := need.Runc(t)
	type seen struct {
		n   container.Notice
		err error
	}
	notices := make(chan seen, 8)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := handoff.Listen(socket, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	refuse := false
	go func() {
		done <- handoff.New(l, handoff.Config{Handle: func(_ context.Context, r handoff.Request) handoff.Answer {
			n, err := oci.Notice(r.Stage.String(), r.Body, r.Peer.Pid)
			notices <- seen{n, err}
			return handoff.Answer{Refuse: refuse && r.Stage == wire.CreateRuntime, Message: "policy p is closed"}
		}}).Run(ctx)
	}()
	defer func() { cancel(); <-done }()

	dir := bundle(t, "echo ran")
	hook := filepath.Join(t.TempDir(), "hook") // the shipped one, at another socket
	if err := os.WriteFile(hook, []byte("#!/bin/sh\nexec "+program(t, "probity-hook")+" \"$1\" --socket "+socket+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(id, hook string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		cmd := exec.CommandContext(ctx, program(t, "probity-runtime"), "--real", runc, "--hook", hook, "--root", t.TempDir(), "run", "--bundle", dir, id)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(fmt.Sprintf("probity-wrapped-%d", os.Getpid()), hook+"-is-not-here"); err != nil || out != "ran\n" {
		t.Fatalf("without a hook: %v, %s", err, out)
	}
	select {
	case s := <-notices:
		t.Fatalf("asked without a hook: %+v", s)
	default:
	}
	for range 2 { // the second time the hooks are there
		id := fmt.Sprintf("probity-wrapped-%d", os.Getpid())
		if out, err := run(id, hook); err != nil || out != "ran\n" {
			t.Fatalf("%v, %s", err, out)
		}
		for _, want := range []container.Kind{container.Starting, container.Stopped} {
			select {
			case s := <-notices:
				if s.err != nil || s.n.Kind != want || s.n.Identity.ID != id || want == container.Starting && s.n.Bundle != dir {
					t.Errorf("%v: %+v, %v", want, s.n, s.err)
				}
			case <-time.After(within):
				t.Fatalf("no notice of %v", want)
			}
		}
	}
	select {
	case s := <-notices:
		t.Errorf("asked once more: %+v", s)
	default:
	}
	refuse = true
	if out, err := run(fmt.Sprintf("probity-refused-%d", os.Getpid()), hook); err == nil || !strings.Contains(out, "refused: policy p is closed") || strings.Contains(out, "ran") {
		t.Errorf("refused: %v, %s", err, out)
	}
}

// Its hooks are those that podman is given.
func TestHooksAreThePackaged(t *testing.T) {
	config, err := addHooks([]byte("{}"), defaultHook)
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Hooks map[string][]json.RawMessage }
	if err := json.Unmarshal(config, &got); err != nil {
		t.Fatal(err)
	}
	for file, stage := range map[string]string{"probity-create.json": "createRuntime", "probity-poststop.json": "poststop"} {
		var want struct{ Hook json.RawMessage }
		b, err := os.ReadFile("../packaging/hooks/" + file)
		if err == nil {
			err = json.Unmarshal(b, &want)
		}
		var a bytes.Buffer
		if err == nil {
			err = json.Compact(&a, want.Hook)
		}
		if list := got.Hooks[stage]; err != nil || len(list) != 1 || string(list[0]) != a.String() {
			t.Errorf("%s: %s, want %s, %v", stage, list, a.String(), err)
		}
	}
}

// The limit on open files, which Go raises for itself, is given on as it was.
func TestLimits(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := min(limit.Max, 512)
	out, err := exec.Command("/bin/sh", "-c", fmt.Sprintf("ulimit -Sn %d && exec %s --real /bin/sh -c 'ulimit -Sn'", low, program(t, "probity-runtime"))).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != fmt.Sprint(low) {
		t.Errorf("%s, %v, want %d", out, err, low)
	}
}

// What the page says to write into daemon.json is JSON, and what is installed.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../docs/docker.md")
	if err != nil {
		t.Fatal(err)
	}
	spec, err := os.ReadFile("../packaging/rpm/probity.spec")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(page), "```json\n")[1:]
	for _, block := range blocks {
		text, _, _ := strings.Cut(block, "```")
		var daemon struct {
			Runtimes map[string]struct {
				Path string
				Args []string `json:"runtimeArgs"`
			}
			Default string `json:"default-runtime"`
		}
		if err := json.Unmarshal([]byte(text), &daemon); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		for name, r := range daemon.Runtimes {
			installed, ok := strings.CutPrefix(r.Path, "/usr/libexec/")
			if _, rest := parse(r.Args); !ok || !strings.Contains(string(spec), "\n%{_libexecdir}/"+installed+"\n") || len(rest) > 0 {
				t.Errorf("%s: %+v", name, r)
			}
			if daemon.Default != "" && daemon.Default != name {
				t.Errorf("the default is %s", daemon.Default)
			}
		}
	}
	if len(blocks) != 2 {
		t.Errorf("%d blocks", len(blocks))
	}
}
