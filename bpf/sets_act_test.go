package bpf

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// act has a process in the shell's place do something: this test's own binary.
// It returns what that printed.
func act(t testing.TB, s *shell, what string, args ...string) string {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	out := s.do(t, fmt.Sprintf("PROBITY_ACT='%s' %s -test.run '^TestAct$' -test.v 2>/dev/null", strings.Join(append([]string{what}, args...), "\n"), self))
	_, out, _ = strings.Cut(out, "=== RUN   TestAct\n")
	said, _, ok := strings.Cut(out, "--- PASS: TestAct")
	if !ok {
		t.Fatalf("%s: %s", what, out)
	}
	return said
}

// TestAct is what act runs.
func TestAct(t *testing.T) {
	args := strings.Split(os.Getenv("PROBITY_ACT"), "\n")
	if do := acts[args[0]]; do != nil {
		do(t, args[1:])
	}
}

var acts = map[string]func(*testing.T, []string){
	"open": func(t *testing.T, args []string) {
		f, err := os.Open(args[0])
		must(t, err)
		must(t, f.Close())
		f, err = os.OpenFile(args[1], os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		must(t, f.Close())
		_, err = os.Open(args[0] + ".missing")
		if err == nil {
			t.Error("it is there")
		}
		fd, err := unix.Open(args[0], unix.O_PATH, 0)
		must(t, err)
		unix.Close(fd)
	},
	// Evasions, each in the directory of its name.
	"evade": func(t *testing.T, args []string) {
		for _, name := range args[1:] {
			dir := filepath.Join(args[0], name)
			evasions[name](t, dir, dir+"/file")
		}
	},
	// Becomes the program that is open as its first file.
	"become": func(*testing.T, []string) {
		argv := []uintptr{str("true"), 0} // which program a busybox is, is its name
		_, _, _ = unix.RawSyscall6(unix.SYS_EXECVEAT, 3, str(""), uintptr(unsafe.Pointer(&argv[0])), 0, unix.AT_EMPTY_PATH, 0)
	},
	"many": func(t *testing.T, args []string) {
		for i := range 40 {
			must(t, os.WriteFile(filepath.Join(args[0], fmt.Sprint("file", i)), nil, 0o600))
		}
	},
	// As many files, which are there or not.
	"create": func(t *testing.T, args []string) {
		n, err := strconv.Atoi(args[1])
		must(t, err)
		first, err := strconv.Atoi(args[2])
		must(t, err)
		for i := first; i < first+n; i++ {
			fd, err := unix.Open(fmt.Sprint(args[0], "/", i), unix.O_CREAT|unix.O_WRONLY, 0o600)
			must(t, err)
			must(t, unix.Close(fd))
		}
	},
	"map": func(t *testing.T, args []string) {
		for i, prot := range []struct{ first, then, flags int }{
			{unix.PROT_READ | unix.PROT_EXEC, 0, unix.MAP_PRIVATE},
			{unix.PROT_READ | unix.PROT_WRITE, unix.PROT_READ | unix.PROT_EXEC, unix.MAP_PRIVATE},
			{unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC, 0, unix.MAP_PRIVATE},
			{unix.PROT_READ | unix.PROT_EXEC, 0, unix.MAP_SHARED},
			{unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC, 0, unix.MAP_SHARED},
			{unix.PROT_READ, 0, unix.MAP_PRIVATE},
		} {
			f, err := os.OpenFile(args[i], os.O_RDWR, 0)
			must(t, err)
			m, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), prot.first, prot.flags)
			must(t, err)
			if prot.then != 0 {
				must(t, unix.Mprotect(m, prot.then))
			}
			must(t, f.Close())
			must(t, unix.Munmap(m))
		}
	},
	"uring": func(*testing.T, []string) {
		var params [120]byte // struct io_uring_params
		if _, _, errno := unix.Syscall(425, 1, uintptr(unsafe.Pointer(&params)), 0); errno != 0 {
			fmt.Println("refused")
		}
	},
	// As many datagrams, each to an address of its own.
	"flood": func(t *testing.T, args []string) {
		n, err := strconv.Atoi(args[0])
		must(t, err)
		first := 0
		if len(args) > 1 {
			first, err = strconv.Atoi(args[1])
			must(t, err)
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		must(t, err)
		to := unix.SockaddrInet4{Port: 9}
		for i := first; i < first+n; i++ {
			to.Addr = [4]byte{127, 1 + byte(i>>16), byte(i >> 8), byte(i)} // 127.0.0.0 is for all before 5.14
			_ = unix.Sendto(fd, []byte("x"), 0, &to)                       // refused, in time
		}
	},
	"odd": func(*testing.T, []string) {
		_, _, _ = unix.RawSyscall(5000, 0, 0, 0)
		_, _, _ = unix.RawSyscall(^uintptr(0), 0, 0, 0) // x32's bit is in it
	},
	// What a runtime does in a container's cgroup, and then it becomes the
	// container.
	"runtime": func(t *testing.T, args []string) {
		_, err := fmt.Println("ready")
		must(t, err)
		_, err = os.Stdin.Read(make([]byte, 1))
		must(t, err)
		_, err = os.ReadFile(args[0] + "/before")
		must(t, err)
		_ = unix.PivotRoot("/nothing", "/nothing")
		if c, err := net.Dial("udp", "127.0.0.1:53"); err == nil {
			c.Close()
		}
		must(t, syscall.Exec("/bin/sh", []string{"sh", "-c", "read x < " + args[0] + "/after"}, []string{}))
	},
	"memfd": func(t *testing.T, _ []string) {
		fd, err := unix.MemfdCreate("downloaded", 0)
		must(t, err)
		must(t, unix.Ftruncate(fd, int64(os.Getpagesize())))
		m, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
		must(t, err)
		must(t, unix.Munmap(m))
	},
	"network": func(t *testing.T, args []string) {
		dial := func(network, addr string) {
			c, err := net.Dial(network, addr)
			if err == nil {
				must(t, c.Close())
			}
		}
		// A listener, and a connection to it.
		for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				continue // no IPv6
			}
			done := make(chan error, 1)
			go func() {
				c, err := l.Accept()
				if err == nil {
					err = c.Close()
				}
				done <- err
			}()
			dial("tcp", l.Addr().String())
			must(t, <-done)
			family := "ipv4"
			if l.Addr().(*net.TCPAddr).IP.To4() == nil {
				family = "ipv6"
			}
			fmt.Printf("%s/%d\n", family, l.Addr().(*net.TCPAddr).Port)
			must(t, l.Close())
		}
		dial("tcp", "127.0.0.1:1")              // refused
		dial("tcp", "[::ffff:127.0.0.1]:2")     // IPv4, by another name
		dial("udp", "127.0.0.1:5353")           // connected
		dial("unix", args[0])                   // listened on by the test
		u, err := net.ListenPacket("udp", ":0") // not connected
		must(t, err)
		_, err = u.WriteTo([]byte("x"), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 53})
		must(t, err)
		_, err = u.WriteTo([]byte("x"), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 999})
		must(t, err)
		must(t, u.Close())
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		must(t, err)
		must(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 2}, Port: 7777}))
		must(t, unix.Close(fd))
		l, err := net.Listen("unix", "@probity-abstract")
		must(t, err)
		must(t, l.Close())

	},
}
