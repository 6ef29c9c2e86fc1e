package oci

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"probity/tests/need"
)

// roleEnv makes a copy of the test binary one of the processes that are there
// while a createRuntime hook runs.
const roleEnv = "PROBITY_TEST_OCI_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleEnv); role {
	case "":
		goleak.VerifyTestMain(m)
	case "runtime":
		runtimeRole()
	case "user":
		userRole()
	case "mounted": // a user's init, whose root file system is its own mount
		if err := syscall.Mount(".", ".", "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
			panic(err)
		}
		fmt.Println(os.Getpid())
		io.Copy(io.Discard, os.Stdin)
	case "entered", "jailed": // a container that runs, and a hook in one
		if err := syscall.Chroot("."); err != nil {
			panic(err)
		}
		fallthrough
	default: // hook, init: there until its stdin ends
		fmt.Println(os.Getpid())
		io.Copy(io.Discard, os.Stdin)
	}
}

// runtimeRole works in the bundle, starts init in the root file system, the
// hook, and a child that is no container, and says who they are.
func runtimeRole() {
	start := func(role, dir string) (pid int, end func()) {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), roleEnv+"="+role, "GORACE=atexit_sleep_ms=0")
		cmd.Dir = dir
		if role == "init" || role == "mounted" || role == "entered" {
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		}
		if role == "boxed" {
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		}
		in, err := cmd.StdinPipe()
		if err != nil {
			panic(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			panic(err)
		}
		if err := cmd.Start(); err != nil {
			panic(err)
		}
		bufio.NewReader(out).ReadString('\n') // it is what it will be
		return cmd.Process.Pid, func() { in.Close(); cmd.Wait() }
	}
	role := "init"
	if len(os.Args) > 2 {
		role = os.Args[2]
	}
	init, endInit := start(role, os.Args[1])
	hook, endHook := start("hook", ".")
	sibling, endSibling := start("sibling", os.Args[1])
	entered, endEntered := start("entered", os.Args[1])
	boxed, endBoxed := start("boxed", ".")
	jailed, endJailed := start("jailed", ".")
	json.NewEncoder(os.Stdout).Encode(scene{Runtime: os.Getpid(), Init: init, Hook: hook, Sibling: sibling, Entered: entered, Boxed: boxed, Jailed: jailed})
	io.Copy(io.Discard, os.Stdin)
	endJailed()
	endBoxed()
	endEntered()
	endSibling()
	endHook()
	endInit()
}

// scene is who is there while a hook runs.
type scene struct {
	Runtime, Init, Hook int
	Sibling             int // a child of the runtime's that is on the host
	Entered             int // a child of the runtime's that is a container already
	Boxed, Jailed       int // hooks in a pid namespace, and below a root directory, of their own
	bundle, rootfs      string
}

// state is a true one, with members replaced or, by nil, removed.
func (s scene) state(change map[string]any) []byte {
	m := map[string]any{"ociVersion": "1.0.2", "id": "web", "status": "creating", "pid": s.Init, "bundle": s.bundle}
	for k, v := range change {
		if v == nil {
			delete(m, k)
		} else {
			m[k] = v
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

// play makes a bundle at dir and the processes around it. The runtime's
// program is called name.
func play(t *testing.T, dir, name string) scene {
	t.Helper()
	need.Root(t) // for init's mount namespace
	s := scene{bundle: dir, rootfs: filepath.Join(dir, "rootfs")}
	if err := os.MkdirAll(s.rootfs, 0o755); err != nil {
		t.Fatal(err)
	}
	writeConfig(t, dir, trueConfig)
	program := filepath.Join(t.TempDir(), name)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, b, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, s.rootfs)
	cmd.Dir = dir
	out := startRole(t, cmd, "runtime")
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &s)
	}
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return s
}

// startRole starts cmd and ends it with the test.
func startRole(t *testing.T, cmd *exec.Cmd, role string) io.Reader {
	t.Helper()
	cmd.Env = append(os.Environ(), roleEnv+"="+role, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		kill := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		defer kill.Stop()
		cmd.Wait()
	})
	return out
}

// other is a process that has nothing to do with a container.
func other(t *testing.T, change func(*exec.Cmd)) int {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	if change != nil {
		change(cmd)
	}
	line, err := bufio.NewReader(startRole(t, cmd, "other")).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

const trueConfig = `{"ociVersion":"1.0.2","root":{"path":"rootfs"},
"mounts":[{"destination":"/proc","type":"proc","source":"proc"},{"destination":"data","type":"none","source":"/srv","options":["rbind","ro"]}],
"process":{"terminal":false,"args":["web","--token","secret"],"env":["TOKEN=secret","PATH=/opt/bin:/bin"],"cwd":"/srv"},
"annotations":{"app":"web"}}`

func writeConfig(t *testing.T, dir, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
