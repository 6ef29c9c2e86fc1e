package bpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// evasion is one way to do a thing that a set might not see, or to make a set
// say what was not done.
type evasion struct {
	act    string   // of evasions; it gets a directory and a file in it
	want   []string // of brief; DIR is the directory. Each is an entry
	not    []string // none of these is
	unseen string   // a way that cannot see it: docs/sets.md says so
}

// evade runs a set's evasions in every way to see it that there is, and then
// those that change the process for good.
func evade(t *testing.T, s Set, all []evasion) {
	eachWay(t, []Set{s}, func(t *testing.T, o Options) {
		r := newSetRoom(t, o, map[Set]uint32{s: 0})
		way, err := r.obj.ArmSet(s)
		must(t, err)
		if strings.Contains(way.Note, noHandles) {
			t.Errorf("it is not whole: %s", way.Note)
		}
		base := real(t, t.TempDir())
		var names []string
		if runtime.GOARCH != "amd64" { // int 0x80 is x86's
			all = slices.DeleteFunc(all, func(e evasion) bool { return e.act == "i386" })
		}
		for _, e := range all {
			dir := filepath.Join(base, e.act)
			must(t, os.Mkdir(dir, 0o700))
			if e.act == "i386" {
				built(t, dir, "i386.c")
			}
			if e.act != "faked" {
				names = append(names, e.act)
			}
		}
		sh := r.shell(t)
		var said string
		r.unlost(t, s, func() {
			for _, e := range all {
				must(t, os.WriteFile(filepath.Join(base, e.act, "file"), make([]byte, os.Getpagesize()), 0o700))
			}
			said = act(t, sh, "evade", append([]string{base}, names...)...)
		})
		if len(names) < len(all) {
			said += act(t, sh, "evade", base, "faked")
		}
		have := map[string]bool{}
		for _, x := range r.entries(t, s) {
			have[brief(&x)] = true
		}
		for _, e := range all {
			t.Run(e.act, func(t *testing.T) {
				if _, why, refused := strings.Cut(said, e.act+" is refused: "); refused {
					why, _, _ = strings.Cut(why, "\n")
					need.Feature(t, e.act, errors.New(why))
				}
				if e.unseen == o.ForceSet {
					return
				}
				for _, w := range e.want {
					w = e.fill(t, base, w)
					found := have[w]
					for h := range have { // a nameless file has a number for a name
						found = found || strings.HasSuffix(w, "#") && strings.HasPrefix(h, w)
					}
					if !found {
						t.Errorf("no %q", w)
					}
				}
				for _, w := range e.not {
					if w = e.fill(t, base, w); have[w] {
						t.Errorf("%q is said, and was not done", w)
					}
				}
			})
		}
		if t.Failed() {
			t.Logf("%v, %q", have, said)
		}
	})
}

func (e evasion) fill(t *testing.T, base, w string) string {
	if strings.Contains(w, "LOADER") {
		return fmt.Sprintf("%s %s 1", real(t, loaderOf(t)), loaderOf(t))
	}
	return strings.ReplaceAll(w, "DIR", filepath.Join(base, e.act))
}

// refused says that this kernel does not have what an evasion wants.
func refused(what string, err error) { fmt.Printf("%s is refused: %v\n", what, err) }

func TestSetFilesEvaded(t *testing.T) {
	evade(t, SetFiles, []evasion{
		{act: "openat2", want: []string{"read DIR/file"}, not: []string{"write DIR/file"}},
		{act: "creat", want: []string{"write DIR/file"}, not: []string{"read DIR/file"}},
		{act: "handle", want: []string{"write DIR/file", "read DIR/file"}},
		{act: "emptied", want: []string{"read DIR/file", "write DIR/file"}, unseen: "kprobe"},
		{act: "upper", want: []string{"read DIR/file"}},
		{act: "temporary", want: []string{"write DIR/#"}},
		{act: "reopened", want: []string{"write DIR/file"}},
		{act: "faked", not: []string{"read DIR/file", "read memfd:held", "write memfd:held"}},
		{act: "newline", want: []string{"read DIR/a\nb", "read DIR/c\uFFFDd"}},
	})
}

func TestSetNetworkEvaded(t *testing.T) {
	evade(t, SetNetwork, []evasion{
		{act: "unspec", want: []string{"send udp ipv4 127.0.0.9 1001"}},
		{act: "fastopen", want: []string{"connect tcp ipv4 127.0.0.1 40963"}, not: []string{"send tcp ipv4 127.0.0.1 40963"}},
		{act: "sendmmsg", want: []string{"send udp ipv4 127.0.0.1 1002", "send udp ipv4 127.0.0.1 1003"}},
		{act: "mptcp", want: []string{"connect tcp ipv4 127.0.0.1 40964"}, not: []string{"connect tcp ipv4 0.0.0.0 0"}},
		{act: "vsock", want: []string{"bind stream vsock 4294967295:7654 0"}},
		{act: "netlink", want: []string{"bind raw netlink  0"}},
		{act: "packet", want: []string{"send dgram packet  0"}},
		{act: "raw", want: []string{"send raw ipv4 127.0.0.7 0"}},
		{act: "dns", want: []string{"dns tcp ipv4 127.0.0.1 53", "dns udp ipv4 127.0.0.1 53"}},
		{act: "wildcard", want: []string{"bind udp ipv4 0.0.0.0 40965", "bind udp ipv6 :: 40966"}},
		{act: "passed", want: []string{"accept tcp ipv4 127.0.0.1 40967"}},
		{act: "unix", want: []string{"send dgram unix DIR/socket 0", "bind dgram unix DIR/socket 0"}},
		{act: "upper", want: []string{"connect udp ipv4 127.0.0.8 1004"}},
		{act: "i386", want: []string{"send udp ipv4 127.0.0.6 1005", "connect udp ipv4 127.0.0.6 1006"}},
		{act: "faked", not: []string{"send udp ipv4 127.0.0.5 1007", "connect udp ipv4 0.0.0.0 0", "connect udp ipv4 127.0.0.5 1008"}},
	})
}

func TestSetLibrariesEvaded(t *testing.T) {
	evade(t, SetLibraries, []evasion{
		{act: "personality", want: []string{"private DIR/file"}},
		{act: "shmat", want: []string{"sharedWritable SYSV00000000"}},
		{act: "dropped", want: []string{"private DIR/file"}},
		{act: "loader", want: []string{"private DIR/true"}},
	})
}

func TestSetExecEvaded(t *testing.T) {
	evade(t, SetExec, []evasion{
		{act: "fexecve", want: []string{"memfd:downloaded /dev/fd/3 1"}},
		{act: "loader", want: []string{"LOADER LOADER 1"}}, // which executes static programs since glibc 2.41
		{act: "spawned", want: []string{"DIR/true DIR/true 1"}},
	})
}

// done fails unless the call worked.
func done(t *testing.T, what string, errno unix.Errno) {
	t.Helper()
	if errno != 0 {
		t.Fatalf("%s: %v", what, errno)
	}
}

func str(s string) uintptr {
	b, err := unix.BytePtrFromString(s)
	if err != nil {
		panic(err)
	}
	kept = append(kept, b)
	return uintptr(unsafe.Pointer(b))
}

// kept is what the kernel was given the address of: memory of Go's does not move.
var kept []*byte

func inet4(family uint16, port uint16, ip ...byte) *[16]byte {
	a := &[16]byte{byte(family), byte(family >> 8), byte(port >> 8), byte(port)}
	copy(a[4:], ip)
	return a
}

func udp(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	must(t, err)
	return fd
}

const upperHalf = 1 << 32 // of the register with the call's number: the kernel ignores it

var evasions = map[string]func(t *testing.T, dir, file string){
	"openat2": func(t *testing.T, _, file string) {
		fd, err := unix.Openat2(unix.AT_FDCWD, file, &unix.OpenHow{Flags: unix.O_RDONLY})
		must(t, err)
		must(t, unix.Close(fd))
	},
	"creat": func(t *testing.T, _, file string) {
		fd, err := unix.Creat(file, 0o600)
		must(t, err)
		must(t, unix.Close(fd))
	},
	"handle": func(t *testing.T, dir, file string) {
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, file, 0)
		if err != nil {
			refused("handle", err)
			return
		}
		mount, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		fd, err := unix.OpenByHandleAt(mount, h, unix.O_RDWR)
		if err != nil {
			refused("handle", err)
			return
		}
		must(t, unix.Close(fd))
	},
	"emptied": func(t *testing.T, _, file string) {
		fd, err := unix.Open(file, unix.O_RDONLY|unix.O_TRUNC, 0)
		must(t, err)
		must(t, unix.Close(fd))
	},
	"temporary": func(t *testing.T, dir, _ string) {
		fd, err := unix.Open(dir, unix.O_WRONLY|unix.O_TMPFILE, 0o600)
		must(t, err)
		must(t, unix.Close(fd))
	},
	"reopened": func(t *testing.T, _, file string) {
		path, err := unix.Open(file, unix.O_PATH, 0)
		must(t, err)
		fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", path), unix.O_WRONLY, 0)
		must(t, err)
		must(t, unix.Close(fd))
	},
	"newline": func(t *testing.T, dir, _ string) {
		for _, name := range []string{"a\nb", "c\xff\xfed"} {
			must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
			f, err := os.Open(filepath.Join(dir, name))
			must(t, err)
			must(t, f.Close())
		}
	},
	"upper": func(t *testing.T, _, file string) {
		at := unix.AT_FDCWD
		fd, _, errno := unix.RawSyscall6(upperHalf|unix.SYS_OPENAT, uintptr(at), str(file), unix.O_RDONLY, 0, 0, 0)
		if errno == unix.ENOSYS { // older kernels look at all of the number, unless the call is traced
			refused("upper", errno)
			return
		}
		done(t, "openat", errno)
		must(t, unix.Close(int(fd)))
		_, _, errno = unix.RawSyscall(upperHalf|unix.SYS_CONNECT, uintptr(udp(t)), uintptr(unsafe.Pointer(inet4(unix.AF_INET, 1004, 127, 0, 0, 8))), 16)
		done(t, "connect", errno)
	},
	// A filter that says yes to what it does not let through.
	"faked": func(t *testing.T, _, file string) {
		held, err := unix.MemfdCreate("held", 0)
		must(t, err)
		must(t, unix.Dup3(held, 0, 0)) // what the call will seem to return
		fd := udp(t)
		program := []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the call's number
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SENDTO, Jt: 3},
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_CONNECT, Jt: 2},
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_OPENAT, Jt: 1},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO}, // 0
		}
		must(t, unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		f := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
		_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&f)))
		done(t, "seccomp", errno)
		_, _, errno = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), str("x"), 1, 0, uintptr(unsafe.Pointer(inet4(unix.AF_INET, 1007, 127, 0, 0, 5))), 16)
		done(t, "sendto", errno)
		at := unix.AT_FDCWD
		got, _, errno := unix.RawSyscall6(unix.SYS_OPENAT, uintptr(at), str(file), 0, 0, 0, 0)
		if done(t, "openat", errno); got != 0 {
			t.Errorf("the call returned %d", got)
		}
		_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(inet4(unix.AF_INET, 1008, 127, 0, 0, 5))), 16)
		done(t, "connect", errno)
	},
	"unspec": func(t *testing.T, _, _ string) {
		_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(udp(t)), str("x"), 1, 0, uintptr(unsafe.Pointer(inet4(unix.AF_UNSPEC, 1001, 127, 0, 0, 9))), 16)
		done(t, "sendto", errno)
	},
	"fastopen": func(t *testing.T, _, _ string) {
		l, err := net.Listen("tcp4", "127.0.0.1:40963")
		must(t, err)
		defer l.Close()
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		must(t, err)
		must(t, unix.Sendto(fd, []byte("x"), unix.MSG_FASTOPEN, &unix.SockaddrInet4{Port: 40963, Addr: [4]byte{127, 0, 0, 1}}))
	},
	"sendmmsg": func(t *testing.T, _, _ string) {
		type header struct {
			name    *[16]byte
			namelen uint32
			iov     *unix.Iovec
			iovlen  uint64
			control *byte
			clen    uint64
			flags   int32
			n       uint32
			pad     uint32
		}
		b := []byte("x")
		iov := unix.Iovec{Base: &b[0], Len: 1}
		all := [2]header{}
		for i := range all {
			all[i] = header{name: inet4(unix.AF_INET, uint16(1002+i), 127, 0, 0, 1), namelen: 16, iov: &iov, iovlen: 1}
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(udp(t)), uintptr(unsafe.Pointer(&all)), 2, 0, 0, 0)
		done(t, "sendmmsg", errno)
		if n != 2 {
			t.Fatalf("%d messages went", n)
		}
	},
	"mptcp": func(t *testing.T, _, _ string) {
		l, err := net.Listen("tcp4", "127.0.0.1:40964")
		must(t, err)
		defer l.Close()
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
		if err != nil {
			refused("mptcp", err)
			return
		}
		must(t, unix.Connect(fd, &unix.SockaddrInet4{Port: 40964, Addr: [4]byte{127, 0, 0, 1}}))
	},
	"vsock": func(t *testing.T, _, _ string) {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
		if err != nil {
			refused("vsock", err)
			return
		}
		must(t, unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: 7654}))
	},
	"netlink": func(t *testing.T, _, _ string) {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
		must(t, err)
		must(t, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	},
	"packet": func(t *testing.T, _, _ string) {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
		must(t, err)
		lo, err := net.InterfaceByName("lo")
		must(t, err)
		must(t, unix.Sendto(fd, make([]byte, 20), 0, &unix.SockaddrLinklayer{Ifindex: lo.Index, Protocol: 0x0008, Halen: 6}))
	},
	"raw": func(t *testing.T, _, _ string) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, 253)
		must(t, err)
		must(t, unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 7}}))
	},
	"dns": func(*testing.T, string, string) {
		for _, network := range []string{"tcp", "udp"} {
			if c, err := net.Dial(network, "127.0.0.1:53"); err == nil {
				c.Close()
			}
		}
	},
	"wildcard": func(t *testing.T, _, _ string) {
		must(t, unix.Bind(udp(t), &unix.SockaddrInet4{Port: 40965}))
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
		must(t, err)
		must(t, unix.Bind(fd, &unix.SockaddrInet6{Port: 40966}))
	},
	// A listener that another process made and passed on.
	"passed": func(t *testing.T, _, _ string) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		must(t, err)
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		must(t, err)
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		must(t, unix.Bind(fd, &unix.SockaddrInet4{Port: 40967, Addr: [4]byte{127, 0, 0, 1}}))
		must(t, unix.Listen(fd, 1))
		must(t, unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(fd), nil, 0))
		must(t, unix.Close(fd))
		oob := make([]byte, 64)
		_, n, _, _, err := unix.Recvmsg(pair[1], make([]byte, 1), oob, 0)
		must(t, err)
		ms, err := unix.ParseSocketControlMessage(oob[:n])
		must(t, err)
		fds, err := unix.ParseUnixRights(&ms[0])
		must(t, err)
		c, err := net.Dial("tcp4", "127.0.0.1:40967")
		must(t, err)
		defer c.Close()
		_, _, err = unix.Accept(fds[0])
		must(t, err)
	},
	"unix": func(t *testing.T, dir, _ string) {
		var fds [2]int
		for i := range fds {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
			must(t, err)
			fds[i] = fd
		}
		to := &unix.SockaddrUnix{Name: dir + "/socket"}
		must(t, unix.Bind(fds[0], to))
		must(t, unix.Sendto(fds[1], []byte("x"), 0, to))
	},
	"i386": func(_ *testing.T, dir, _ string) {
		out, err := exec.Command(dir + "/built").CombinedOutput()
		if err != nil {
			refused("i386", fmt.Errorf("%w: %s", err, out))
		}
	},
	"personality": func(t *testing.T, _, file string) {
		f, err := os.Open(file)
		must(t, err)
		m, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_NONE, unix.MAP_PRIVATE)
		must(t, err)
		const readImpliesExec = 0x400000
		_, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, readImpliesExec, 0, 0)
		done(t, "personality", errno)
		// By this thread: a personality is a thread's.
		_, _, errno = unix.RawSyscall(unix.SYS_MPROTECT, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), unix.PROT_READ)
		done(t, "mprotect", errno)
	},
	"shmat": func(t *testing.T, _, _ string) {
		id, err := unix.SysvShmGet(unix.IPC_PRIVATE, os.Getpagesize(), unix.IPC_CREAT|0o700)
		must(t, err)
		const shmExec = 0o100000
		_, err = unix.SysvShmAttach(id, 0, shmExec)
		must(t, err)
		_, err = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
		must(t, err)
	},
	// Mapped executable at once, and the file's name removed before.
	"dropped": func(t *testing.T, _, file string) {
		f, err := os.Open(file)
		must(t, err)
		must(t, os.Remove(file))
		_, err = unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
		must(t, err)
	},
	"loader": func(t *testing.T, dir, _ string) {
		copyProgram(t, dir)
		must(t, exec.Command(loaderOf(t), dir+"/true").Run())
	},
	// Go's children are born with vfork.
	"spawned": func(t *testing.T, dir, _ string) {
		copyProgram(t, dir)
		must(t, exec.Command(dir+"/true").Run())
	},
	"fexecve": func(t *testing.T, dir, _ string) {
		copyProgram(t, dir)
		program, err := os.ReadFile(dir + "/true")
		must(t, err)
		fd, err := unix.MemfdCreate("downloaded", 0)
		must(t, err)
		must(t, unix.Dup3(fd, 9, 0))
		_, err = unix.Write(9, program)
		must(t, err)
		child := exec.Command(self(t), "-test.run", "^TestAct$")
		child.Env = append(os.Environ(), "PROBITY_ACT=become")
		child.ExtraFiles = []*os.File{os.NewFile(9, "downloaded")}
		must(t, child.Run())
	},
}

func copyProgram(t *testing.T, dir string) {
	t.Helper()
	program, err := os.ReadFile(real(t, "/bin/true"))
	must(t, err)
	must(t, os.WriteFile(dir+"/true", program, 0o700))
}

// loaderOf is the loader of this machine's programs.
func loaderOf(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob("/lib*/ld-linux*.so.*")
	must(t, err)
	if len(found) == 0 {
		t.Fatal("this machine has no loader")
	}
	return found[0]
}

// built is a program of testdata.
func built(t *testing.T, dir, source string) string {
	t.Helper()
	need.Command(t, "gcc")
	out, err := exec.Command("gcc", "-O1", "-static", "-nostdlib", "-fno-stack-protector", "-no-pie", "-o", dir+"/built", filepath.Join("testdata", source)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir + "/built"
}
