package main

import (
	"context"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"probity/tests/need"
)

// Whoever starts for long asks for more time, and does not ask for each chunk.
func TestExtend(t *testing.T) {
	path := t.TempDir() + "/notify"
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	began := time.Now()
	go func() {
		starting := extend("")
		for range 1000 {
			starting()
		}
		end, err := net.Dial("unixgram", path)
		if err == nil {
			_, err = end.Write([]byte("end"))
			end.Close()
		}
		if err != nil {
			t.Error(err)
		}
	}()
	if err := manager.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	asked := 0
	for b := make([]byte, 100); ; asked++ {
		n, err := manager.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if string(b[:n]) == "end" {
			break
		}
		if string(b[:n]) != "EXTEND_TIMEOUT_USEC=30000000" {
			t.Errorf("%q", b[:n])
		}
	}
	if most := int(time.Since(began)/time.Second) + 1; asked < 1 || asked > most {
		t.Errorf("asked %d times in %v", asked, time.Since(began))
	}
}

// The agent tells the service manager that it ends, whatever ended it, and that it gets on
// with that.
func TestStopping(t *testing.T) {
	need.BPF(t)
	dir := t.TempDir()
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", dir+"/notify")
	t.Setenv("WATCHDOG_USEC", "30000000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	ctx, end := context.WithCancel(t.Context())
	defer end()
	code := make(chan int, 1)
	var out strings.Builder
	var told []string
	said := func(want string) {
		t.Helper()
		for b := make([]byte, 1000); ; {
			if err := manager.SetReadDeadline(time.Now().Add(3 * time.Minute)); err != nil {
				t.Fatal(err)
			}
			n, err := manager.Read(b)
			if err != nil {
				end()
				t.Fatalf("no %q: %v, only %q; exit code %d\n%s", want, err, told, <-code, out.String())
			}
			if told = append(told, string(b[:n])); told[len(told)-1] == want {
				return
			}
		}
	}
	if err := os.WriteFile(dir+"/probity.yaml", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		code <- run(ctx, []string{"agent", "--config", dir + "/probity.yaml", "--state", dir + "/state", "--policies", t.TempDir(), "--hook-socket", dir + "/hook.sock", "--admin-socket", dir + "/admin.sock",
			"--nri-socket", "none", "--runtime-state", "none", "--containerd-address", dir + "/no.sock", "--podman-root", dir + "/no"}, strings.NewReader(""), &out, &out)
	}()
	said("READY=1")
	if slices.ContainsFunc(told, func(s string) bool { return strings.HasPrefix(s, "STOPPING") }) {
		t.Errorf("it stops as it starts: %q", told)
	}
	end()
	said("STOPPING=1")
	said("EXTEND_TIMEOUT_USEC=30000000\nWATCHDOG=1")
	if c := <-code; c != exitSound {
		t.Errorf("exit code %d\n%s", c, out.String())
	}
}
