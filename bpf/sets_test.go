package bpf

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	stdutf8 "unicode/utf8"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// setRoomT is a room in which sets are armed.
type setRoomT struct {
	room
	obj *Objects
}

// newSetRoom arms sets as the options say.
func newSetRoom(t testing.TB, o Options, quotas map[Set]uint32) setRoomT {
	t.Helper()
	need.Command(t, "sh")
	obj := load(t, o)
	r := newRoom(t, obj, need.Cgroup2(t))
	must(t, obj.SetLevels(1<<r.level))
	l := obj.AttachLineage()
	t.Cleanup(func() { must(t, l.Close()) })
	must(t, errors.Join(l.ExecErr, l.ProcessErr))
	for s := range quotas {
		_, err := obj.ArmSet(s)
		must(t, err)
	}
	must(t, obj.PutSets(r.id, quotas))
	return setRoomT{r, obj}
}

// lacks says why this kernel cannot show a set in a way; empty if it can, and
// then a refusal is a bug and no reason to skip.
func lacks(way string, s Set) string {
	switch way {
	case "fentry":
		if err := features.HaveProgramType(ebpf.Tracing); err != nil {
			return "it has no trampolines: " + err.Error()
		}
	case "kprobe":
		if _, err := os.Stat("/sys/bus/event_source/devices/kprobe/type"); err != nil {
			return "it has no kprobes: " + err.Error()
		}
	case "rawTracepoint":
		if err := features.HaveProgramHelper(ebpf.RawTracepoint, asm.FnFindVma); err != nil && s == SetLibraries {
			return "a mapping cannot be looked up: " + err.Error()
		}
	}
	return ""
}

func (r setRoomT) entries(t *testing.T, s Set) (out []SetEntry) {
	t.Helper()
	must(t, r.obj.SetEntries(r.id, func(e *SetEntry) bool {
		if e.Set == s {
			out = append(out, *e)
		}
		return true
	}))
	return out
}

func (r setRoomT) counts(t testing.TB, s Set) SetCounts {
	t.Helper()
	c, err := r.obj.SetCounts(r.id)
	must(t, err)
	return c[s]
}

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
	do := acts[args[0]]
	if do == nil {
		return
	}
	do(t, args[1:])
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
	"many": func(t *testing.T, args []string) {
		for i := range 40 {
			must(t, os.WriteFile(filepath.Join(args[0], fmt.Sprint("file", i)), nil, 0o600))
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
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		must(t, err)
		to := unix.SockaddrInet4{Port: 9}
		for i := range n {
			to.Addr = [4]byte{127, byte(i >> 16), byte(i >> 8), byte(i)}
			_ = unix.Sendto(fd, []byte("x"), 0, &to) // refused, in time
		}
	},
	"odd": func(*testing.T, []string) { _, _, _ = unix.Syscall(5000, 0, 0, 0) },
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

// eachWay runs a test for each way to see the sets that this kernel has. One
// that it lacks must be refused.
func eachWay(t *testing.T, sets []Set, f func(t *testing.T, o Options)) {
	t.Helper()
	for _, way := range []string{"fentry", "kprobe", "rawTracepoint"} {
		o := Options{ForceSet: way}
		lacking := false
		for _, s := range sets {
			why := lacks(way, s)
			if why == "" {
				continue
			}
			lacking = true
			if _, err := load(t, o).ArmSet(s); err == nil {
				t.Errorf("%s by %s is armed, although %s", s, way, why)
			}
		}
		if !lacking {
			t.Run(way, func(t *testing.T) { f(t, o) })
		}
	}
}

// brief is an entry in a few words, with how often.
func brief(e *SetEntry) string {
	switch e.Set {
	case SetExec:
		return fmt.Sprintf("%s %s %d", e.Path(), e.Argument(), e.Session)
	case SetLibraries:
		return e.Mapping() + " " + e.Path()
	case SetFiles:
		return e.Access() + " " + e.Path()
	case SetNetwork:
		return fmt.Sprintf("%s %s %s %s %d", e.Operation(), e.Protocol(), e.Family(), e.Address(), e.Port())
	}
	return "?"
}

// want fails unless each of these is an entry, with that count where it is not 0.
func (r setRoomT) want(t *testing.T, s Set, want map[string]uint64) {
	t.Helper()
	have := map[string]uint64{}
	for _, e := range r.entries(t, s) {
		have[brief(&e)] += e.Count
	}
	for w, n := range want {
		if have[w] == 0 || n != 0 && have[w] != n {
			t.Errorf("%q: %d times, want %d (0: any)", w, have[w], n)
		}
	}
	if c := r.counts(t, s); c.Lost != 0 || c.Full != 0 {
		t.Errorf("%+v", c)
	}
	if t.Failed() {
		for _, h := range slices.Sorted(maps.Keys(have)) {
			t.Logf("%d x %s", have[h], h)
		}
	}
}

// real is the path without symbolic links.
func real(t *testing.T, path string) string {
	t.Helper()
	p, err := filepath.EvalSymlinks(path)
	must(t, err)
	return p
}

func TestSetExec(t *testing.T) {
	r := newSetRoom(t, Options{}, map[Set]uint32{SetExec: 0})
	s := r.shell(t)
	s.do(t, "/bin/true")
	s.do(t, "/bin/true")
	dir := real(t, t.TempDir())
	must(t, os.WriteFile(dir+"/script", []byte("#!/bin/sh\n"), 0o700))
	s.do(t, dir+"/script")
	e := r.shell(t)
	e.do(t, "/bin/true")
	sh, yes := real(t, "/bin/sh"), real(t, "/bin/true")
	r.want(t, SetExec, map[string]uint64{
		yes + " /bin/true 1": 2, yes + " /bin/true 2": 1,
		sh + " " + dir + "/script 1": 1,
	})
	for _, x := range r.entries(t, SetExec) {
		if x.Argument() != "/bin/true" {
			continue
		}
		var st unix.Stat_t
		must(t, unix.Stat(yes, &st))
		major, minor := x.Device()
		if unix.Mkdev(major, minor) != st.Dev || x.Inode() != st.Ino || x.Ctime() != time.Unix(st.Ctim.Unix()) || x.Size != uint64(st.Size) || x.Mode != st.Mode {
			t.Errorf("which file: %+v, want %+v", x, st)
		}
		if x.Comm() != "true" || x.ParentComm() != "sh" || x.Parent == 0 || !x.PathKnown() || x.FirstNs == 0 || x.LastNs < x.FirstNs {
			t.Errorf("entry: %q from %q (%d) %v", x.Comm(), x.ParentComm(), x.Parent, x.PathDoubt())
		}
	}
}

// A file that is executed without a path, one that was deleted, and one whose
// path is too long.
func TestSetPaths(t *testing.T) {
	r := newSetRoom(t, Options{}, map[Set]uint32{SetExec: 0, SetFiles: 0, SetLibraries: 0})
	s := r.shell(t)
	dir := real(t, t.TempDir())
	act(t, s, "memfd")
	found := false
	for _, x := range r.entries(t, SetLibraries) {
		if x.Path() == "memfd:downloaded" {
			found = !x.PathKnown() && strings.Contains(x.PathDoubt(), "directory")
		}
	}
	if !found {
		t.Error("a mapped memfd is not there, or claims a path")
	}
	must(t, os.WriteFile(dir+"/gone", []byte("x"), 0o600))
	s.do(t, "exec 5<"+dir+"/gone; rm "+dir+"/gone; read x </proc/self/fd/5; exec 5<&-")
	deep := dir
	for range 5 {
		deep += "/" + strings.Repeat("n", 100)
	}
	must(t, os.MkdirAll(deep, 0o700))
	must(t, os.WriteFile(deep+"/file", nil, 0o600))
	s.do(t, "read x <"+deep+"/file")
	long := false
	for _, x := range r.entries(t, SetFiles) {
		if strings.HasSuffix(x.Path(), "n/file") {
			long = !x.PathKnown() && strings.Contains(x.PathDoubt(), "too long") && strings.HasPrefix(x.Path(), "/nnn")
		}
	}
	if !long {
		t.Error("a path that is too long is not there, or does not say so")
	}
	r.want(t, SetFiles, map[string]uint64{"read " + dir + "/gone": 2})
}

// A path is what the process would name it: from its own root on.
func TestSetRoot(t *testing.T) {
	need.Command(t, "chroot", "mount", "unshare", "busybox")
	r := newSetRoom(t, Options{}, map[Set]uint32{SetExec: 0})
	dir := real(t, t.TempDir())
	must(t, os.MkdirAll(dir+"/root/mnt", 0o755))
	must(t, os.MkdirAll(dir+"/other/bin", 0o755))
	box := need.Command(t, "busybox")[0]
	r.shell(t).do(t, "unshare -m sh -c 'mount --bind "+dir+"/other "+dir+"/root/mnt && cp "+box+" "+dir+"/root/mnt/bin/box && chroot "+dir+"/root /mnt/bin/box true'")
	r.want(t, SetExec, map[string]uint64{"/mnt/bin/box /mnt/bin/box 1": 1})
}

func TestSetFiles(t *testing.T) {
	eachWay(t, []Set{SetFiles}, func(t *testing.T, o Options) {
		r := newSetRoom(t, o, map[Set]uint32{SetFiles: 0})
		s := r.shell(t)
		dir := real(t, t.TempDir())
		must(t, os.WriteFile(dir+"/a", nil, 0o600))
		act(t, s, "open", dir+"/a", dir+"/b")
		r.want(t, SetFiles, map[string]uint64{
			"read " + dir + "/a": 1, "read " + dir + "/b": 1, "write " + dir + "/b": 1,
			"exec " + real(t, self(t)): 1, "exec " + real(t, "/bin/sh"): 1, // the container's first program
		})
		for _, x := range r.entries(t, SetFiles) {
			if x.Access() == "write" && x.Path() == dir+"/a" || strings.Contains(x.Path(), "missing") {
				t.Errorf("it was not opened like that: %s", brief(&x))
			}
		}
	})
}

func self(t *testing.T) string {
	t.Helper()
	p, err := os.Executable()
	must(t, err)
	return p
}

func TestSetLibraries(t *testing.T) {
	eachWay(t, []Set{SetLibraries}, func(t *testing.T, o Options) {
		r := newSetRoom(t, o, map[Set]uint32{SetLibraries: 0})
		s := r.shell(t)
		dir := real(t, t.TempDir())
		var files []string
		for i := range 6 {
			files = append(files, filepath.Join(dir, fmt.Sprint("lib", i)))
			must(t, os.WriteFile(files[i], make([]byte, os.Getpagesize()), 0o700))
		}
		act(t, s, "map", files...)
		r.want(t, SetLibraries, map[string]uint64{
			"private " + files[0]: 1, "private " + files[1]: 1, "privateWritable " + files[2]: 1,
			"shared " + files[3]: 1, "sharedWritable " + files[4]: 1,
			"private " + real(t, "/bin/sh"): 0, "private " + real(t, self(t)): 0,
		})
		interpreter := false
		for _, x := range r.entries(t, SetLibraries) {
			interpreter = interpreter || strings.Contains(x.Path(), "/ld-")
			if x.Path() == files[5] {
				t.Error("a mapping that is not executable is an entry")
			}
		}
		if maps, err := os.ReadFile("/proc/" + fmt.Sprint(s.cmd.Process.Pid) + "/maps"); err == nil && strings.Contains(string(maps), "/ld-") && !interpreter {
			t.Error("the interpreter of the shell is no entry")
		}
	})
}

func TestSetNetwork(t *testing.T) {
	eachWay(t, []Set{SetNetwork}, func(t *testing.T, o Options) {
		r := newSetRoom(t, o, map[Set]uint32{SetNetwork: 0})
		s := r.shell(t)
		l, err := net.Listen("unix", t.TempDir()+"/socket")
		must(t, err)
		defer l.Close()
		ports := strings.Fields(act(t, s, "network", l.Addr().String()))
		r.want(t, SetNetwork, map[string]uint64{
			"connect tcp ipv4 127.0.0.1 1": 1, "connect tcp ipv4 127.0.0.1 2": 1,
			"connect udp ipv4 127.0.0.1 5353": 1, "dns udp ipv4 127.0.0.1 53": 1, "send udp ipv4 127.0.0.1 999": 1,
			"bind udp ipv4 127.0.0.2 7777": 1, "bind stream unix @probity-abstract 0": 1,
			"connect stream unix " + l.Addr().String() + " 0": 1,
		})
		for _, p := range ports {
			family, port, _ := strings.Cut(p, "/")
			addr := map[string]string{"ipv4": "127.0.0.1", "ipv6": "::1"}[family]
			r.want(t, SetNetwork, map[string]uint64{
				"connect tcp " + family + " " + addr + " " + port: 1, "accept tcp " + family + " " + addr + " " + port: 1,
			})
		}
	})
}

// A ring of io_uring hides operations from those ways that look at system
// calls, which say so.
func TestSetAround(t *testing.T) {
	eachWay(t, []Set{SetFiles, SetNetwork}, func(t *testing.T, o Options) {
		r := newSetRoom(t, o, map[Set]uint32{SetFiles: 0, SetNetwork: 0})
		if strings.Contains(act(t, r.shell(t), "uring"), "refused") {
			need.Feature(t, "io_uring", errors.New("this kernel refuses it"))
		}
		for _, s := range []Set{SetFiles, SetNetwork} {
			if c := r.counts(t, s); (c.Around != 0) != (o.ForceSet == "rawTracepoint") {
				t.Errorf("%s: %+v", s, c)
			}
		}
	})
}

func TestSetSyscalls(t *testing.T) {
	r := newSetRoom(t, Options{}, map[Set]uint32{SetSyscalls: 0})
	events, err := r.obj.Reader()
	must(t, err)
	defer events.Close()
	s := r.shell(t)
	s.do(t, "/bin/true")
	if e := next(t, events, EventCall); e.Cgroup != r.id || e.Ns == 0 {
		t.Errorf("%+v", e)
	}
	calls, err := r.obj.SystemCalls(r.id)
	must(t, err)
	if len(calls) != 1 || calls[0].Arch != callArchs[0] || calls[0].FirstNs == 0 || calls[0].LastNs < calls[0].FirstNs {
		t.Fatalf("%+v", calls)
	}
	has := func(calls SystemCalls, n int) bool { return slices.Contains(calls.Numbers, n) }
	if !has(calls[0], unix.SYS_EXECVE) || !has(calls[0], unix.SYS_EXIT_GROUP) || has(calls[0], unix.SYS_PIVOT_ROOT) || calls[0].Beyond || calls[0].IOUring() {
		t.Errorf("%+v", calls[0])
	}
	if c := r.counts(t, SetSyscalls); int(c.Used) != len(calls[0].Numbers) {
		t.Errorf("%+v, of %d calls", c, len(calls[0].Numbers))
	}
	uring := !strings.Contains(act(t, s, "uring"), "refused")
	act(t, s, "odd")
	calls, err = r.obj.SystemCalls(r.id)
	must(t, err)
	if !calls[0].Beyond || calls[0].IOUring() != uring {
		t.Errorf("%+v, io_uring %v", calls[0], uring)
	}
}

// A 64-bit program may make 32-bit calls, whose numbers mean something else.
func TestSetSyscalls32(t *testing.T) {
	need.Machine(t, "amd64") // int 0x80 is x86's
	r := newSetRoom(t, Options{}, map[Set]uint32{SetSyscalls: 0, SetFiles: 0})
	dir := real(t, t.TempDir())
	// open("/dev/null") by the table of i386, then exit by that of x86-64.
	path := "/dev/null\x00"
	code := []byte{
		0xb8, 5, 0, 0, 0, // mov eax, 5
		0xbb, 0, 0, 0, 0, // mov ebx, path
		0x31, 0xc9, // xor ecx, ecx
		0xcd, 0x80, // int 0x80
		0xb8, 60, 0, 0, 0, // mov eax, 60
		0x31, 0xff, // xor edi, edi
		0x0f, 0x05, // syscall
	}
	const base, headers = 0x400000, 64 + 56
	binary.LittleEndian.PutUint32(code[6:], base+headers+uint32(len(code)))
	size := uint64(headers + len(code) + len(path))
	var elf bytes.Buffer
	elf.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	for _, v := range []any{
		uint16(2), uint16(62), uint32(1), uint64(base + headers), uint64(64), uint64(0), uint32(0), uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0), // Elf64_Ehdr
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(4096), // Elf64_Phdr
	} {
		must(t, binary.Write(&elf, binary.LittleEndian, v))
	}
	elf.Write(code)
	elf.WriteString(path)
	must(t, os.WriteFile(dir+"/program", elf.Bytes(), 0o700))
	r.shell(t).do(t, dir+"/program")
	calls, err := r.obj.SystemCalls(r.id)
	must(t, err)
	if len(calls) == 1 {
		need.Feature(t, "32-bit", errors.New("this kernel has none"))
	}
	if calls[1].Arch != "i386" || !slices.Equal(calls[1].Numbers, []int{5}) {
		t.Errorf("%+v", calls)
	}
	found := false
	for _, x := range r.entries(t, SetFiles) {
		found = found || brief(&x) == "read /dev/null" && x.Comm() == "program"
	}
	if !found {
		t.Error("what a 32-bit call opens is not there")
	}
}

// What a runtime does in the container's cgroup before it becomes the container
// is not the container.
func TestSetsBeginWithExecve(t *testing.T) {
	eachWay(t, []Set{SetFiles, SetNetwork, SetLibraries}, func(t *testing.T, o Options) {
		all := map[Set]uint32{SetFiles: 0, SetNetwork: 0, SetLibraries: 0}
		if o.ForceSet == "rawTracepoint" {
			all[SetExec], all[SetSyscalls] = 0, 0
		}
		r := newSetRoom(t, o, all)
		dir := real(t, t.TempDir())
		for _, f := range []string{"before", "after"} {
			must(t, os.WriteFile(filepath.Join(dir, f), []byte("x\n"), 0o600))
		}
		for _, session := range []Session{SessionInit, SessionExec} {
			imitation := exec.Command(self(t), "-test.run", "^TestAct$")
			imitation.Env = append(os.Environ(), "PROBITY_ACT=runtime\n"+dir)
			in, err := imitation.StdinPipe()
			must(t, err)
			imitation.Stderr = os.Stderr
			out, err := imitation.StdoutPipe()
			must(t, err)
			must(t, imitation.Start())
			// Start returns within the child's execve, before the kernel tells of
			// it: moved now, it would have called it in the container.
			for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "ready"; {
			}
			must(t, os.WriteFile(r.dir+"/cgroup.procs", []byte(fmt.Sprint(imitation.Process.Pid)), 0))
			_, err = in.Write([]byte("go\n"))
			must(t, err)
			must(t, imitation.Wait())
			r.want(t, SetFiles, map[string]uint64{"read " + dir + "/after": uint64(session)})
			for _, s := range []Set{SetFiles, SetNetwork, SetLibraries, SetExec} {
				for _, x := range r.entries(t, s) {
					if strings.Contains(brief(&x), "before") || strings.Contains(x.Path(), ".test") || s == SetNetwork {
						t.Errorf("%s of the runtime: %s", s, brief(&x))
					}
				}
			}
		}
		if _, ok := all[SetSyscalls]; !ok {
			return
		}
		calls, err := r.obj.SystemCalls(r.id)
		must(t, err)
		if len(calls) != 1 || slices.Contains(calls[0].Numbers, unix.SYS_PIVOT_ROOT) || slices.Contains(calls[0].Numbers, unix.SYS_CONNECT) || !slices.Contains(calls[0].Numbers, unix.SYS_EXIT_GROUP) {
			t.Errorf("%+v", calls)
		}
	})
}

// A container can fill its own share, and what found no room is counted.
func TestSetFull(t *testing.T) {
	for name, o := range map[string]Options{"memory on use": {}, "memory beforehand": {ForceSetMemory: true}} {
		t.Run(name, func(t *testing.T) {
			r := newSetRoom(t, o, map[Set]uint32{SetFiles: 8, SetExec: 4})
			inner := newRoom(t, r.obj, r.dir) // a container in the container has a share of its own
			must(t, r.obj.SetLevels(1<<r.level|1<<inner.level))
			must(t, r.obj.PutSets(inner.id, map[Set]uint32{SetFiles: 100}))
			dir := t.TempDir()
			act(t, inner.shell(t), "many", dir)
			c := r.counts(t, SetFiles)
			if n := uint64(len(r.entries(t, SetFiles))); c.Used != n || n != 8 || c.Full < 32 || c.Lost != 0 {
				t.Errorf("%d entries, %+v", n, c)
			}
			if n := len(r.entries(t, SetExec)); n != 2 {
				t.Errorf("%d execs, want the shell's and the program's", n)
			}
			if c := (setRoomT{inner, r.obj}).counts(t, SetFiles); c.Used < 40 || c.Full != 0 {
				t.Errorf("the inner one: %+v", c)
			}
		})
	}
}

// Nothing is lost when the ring is full: the map has it.
func TestSetRingFull(t *testing.T) {
	r := newSetRoom(t, Options{RingBytes: uint32(os.Getpagesize())}, map[Set]uint32{SetFiles: 0})
	dir := real(t, t.TempDir())
	act(t, r.shell(t), "many", dir)
	run, err := r.obj.Run(r.id)
	must(t, err)
	if run.RingFull == 0 {
		t.Error("the ring had room")
	}
	want := map[string]uint64{}
	for i := range 40 {
		want["write "+dir+fmt.Sprint("/file", i)] = 1
	}
	r.want(t, SetFiles, want)
}

// What the ring tells is what the map has.
func TestSetEvent(t *testing.T) {
	r := newSetRoom(t, Options{}, map[Set]uint32{SetExec: 0, SetFiles: 0, SetNetwork: 0})
	events, err := r.obj.Reader()
	must(t, err)
	defer events.Close()
	l, err := net.Listen("unix", t.TempDir()+"/socket")
	must(t, err)
	defer l.Close()
	act(t, r.shell(t), "network", l.Addr().String())
	told := map[SetKey]SetEntry{}
	events.SetDeadline(time.Now())
	for {
		rec, err := events.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		must(t, err)
		if !IsSetEvent(rec.RawSample) {
			continue
		}
		var e SetEntry
		must(t, e.Decode(rec.RawSample))
		if e.Cgroup != r.id || e.Count != 1 || told[e.SetKey].Count != 0 {
			t.Errorf("told of %s: %+v", brief(&e), e)
		}
		told[e.SetKey] = e
	}
	n := 0
	must(t, r.obj.SetEntries(r.id, func(e *SetEntry) bool {
		n++
		was := told[e.SetKey]
		if was.Count == 0 || brief(&was) != brief(e) || was.FirstNs != e.FirstNs || was.Comm() != e.Comm() || was.Pid != e.Pid {
			t.Errorf("%s was not told of, or not so", brief(e))
		}
		return true
	}))
	if n == 0 || n != len(told) {
		t.Errorf("%d entries, %d were told of", n, len(told))
	}
}

// Sets are in the kernel as long as some container has them.
func TestPutSets(t *testing.T) {
	obj := load(t, Options{SetEntries: 100})
	if _, err := obj.ArmSet(Set(9)); err == nil {
		t.Error("there is no set 9")
	}
	for range 2 {
		way, err := obj.ArmSet(SetExec)
		must(t, err)
		if way != (SetWay{Type: "rawTracepoint"}) {
			t.Errorf("exec is seen by %+v", way)
		}
	}
	attached := func() bool { return len(obj.sets.attached[SetExec].links) > 0 }
	must(t, obj.TrimSets(time.Hour))
	if !attached() {
		t.Error("detached before its time")
	}
	must(t, obj.TrimSets(0))
	if attached() {
		t.Error("attached although no container has it")
	}
	must(t, obj.PutSets(1, map[Set]uint32{SetExec: 60}))
	if err := obj.PutSets(1, map[Set]uint32{SetExec: 1}); !errors.Is(err, ErrTaken) {
		t.Errorf("twice: %v", err)
	}
	if err := obj.PutSets(2, map[Set]uint32{SetExec: 60}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("more than there is: %v", err)
	}
	must(t, obj.PutSets(2, map[Set]uint32{SetExec: 40}))
	must(t, obj.DeleteSets(1))
	must(t, obj.DeleteSets(1))
	must(t, obj.TrimSets(0))
	if !attached() {
		t.Error("detached while a container has it")
	}
	if _, err := obj.SetCounts(1); err == nil {
		t.Error("a container that was deleted has counts")
	}
	must(t, obj.DeleteSets(2))
	must(t, obj.TrimSets(0))
	if attached() || obj.sets.promised != 0 {
		t.Error("attached although no container has it")
	}
	must(t, obj.PutSets(1, map[Set]uint32{SetExec: 100}))
	must(t, obj.DeleteSets(1))
	if _, err := obj.Misses(KindRawTracepoint); err != nil {
		t.Error(err)
	}
}

func entryBytes(path, arg string) []byte {
	b := make([]byte, atText, atText+setTextLen)
	u32 := func(at uintptr, v uint32) { binary.NativeEndian.PutUint32(b[at:], v) }
	u64 := func(at uintptr, v uint64) { binary.NativeEndian.PutUint64(b[at:], v) }
	var e setsSetEntry
	u32(0, uint32(EventSet))
	u64(atCgroup, 77)
	b[atKey] = uint8(SetExec)
	b[atKey+unsafe.Offsetof(setsSetKey{}.What)] = uint8(SessionExec)
	u64(atKey+unsafe.Offsetof(setsSetKey{}.Id), 254<<20|3)
	u64(atKey+unsafe.Offsetof(setsSetKey{}.Id)+8, 4711)
	u64(atEntry+unsafe.Offsetof(e.Count), 1)
	u64(atEntry+unsafe.Offsetof(e.FirstNs), 5)
	u32(atEntry+unsafe.Offsetof(e.Pid), 100)
	binary.NativeEndian.PutUint16(b[atEntry+unsafe.Offsetof(e.PathLen):], uint16(len(path)))
	binary.NativeEndian.PutUint16(b[atEntry+unsafe.Offsetof(e.ArgLen):], uint16(len(arg)))
	copy(b[atEntry+unsafe.Offsetof(e.Comm):], "na\xffme")
	return append(append(b, path...), arg...)
}

func TestSetEntryDecode(t *testing.T) {
	good := entryBytes("/bin/a\xff", "a")
	var e SetEntry
	must(t, e.Decode(good))
	major, minor := e.Device()
	if e.Cgroup != 77 || e.Set != SetExec || e.Path() != "/bin/a\uFFFD" || e.Argument() != "a" || e.Comm() != "na\uFFFDme" || major != 254 || minor != 3 || e.Inode() != 4711 || e.Pid != 100 {
		t.Errorf("%+v", e)
	}
	for n := range good {
		if err := e.Decode(good[:n]); !errors.Is(err, ErrDecode) || e != (SetEntry{}) {
			t.Fatalf("%d bytes: %v, want ErrDecode", n, err)
		}
	}
	var x setsSetEntry
	for what, bad := range map[string]func([]byte){
		"set":           func(b []byte) { b[atKey] = 5 },
		"syscalls":      func(b []byte) { b[atKey] = uint8(SetSyscalls) },
		"session":       func(b []byte) { b[atKey+unsafe.Offsetof(setsSetKey{}.What)] = 3 },
		"count":         func(b []byte) { b[atEntry+unsafe.Offsetof(x.Count)] = 0 },
		"time":          func(b []byte) { b[atEntry+unsafe.Offsetof(x.FirstNs)] = 0 },
		"flags":         func(b []byte) { b[atEntry+unsafe.Offsetof(x.PathFlags)] = 128 },
		"comm":          func(b []byte) { b[atEntry+unsafe.Offsetof(x.Comm)+15] = 'x' },
		"length":        func(b []byte) { b[atEntry+unsafe.Offsetof(x.PathLen)]++ },
		"other session": func(b []byte) { b[atEntry+unsafe.Offsetof(x.Session)] = 9 },
	} {
		b := bytes.Clone(good)
		bad(b)
		if err := e.Decode(b); !errors.Is(err, ErrDecode) {
			t.Errorf("%s: %v, want ErrDecode", what, err)
		}
	}
	if err := e.Decode(append(bytes.Clone(good), 0)); !errors.Is(err, ErrDecode) {
		t.Errorf("a byte too many: %v", err)
	}
	if n := testing.AllocsPerRun(100, func() { must(t, e.Decode(good)) }); n != 0 {
		t.Errorf("%v allocations for one entry", n)
	}
}

func FuzzSetEntryDecode(f *testing.F) {
	f.Add(entryBytes("/bin/a", "a"))
	f.Add(entryBytes(strings.Repeat("x", setTextLen), ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		var e SetEntry
		if err := e.Decode(b); err != nil {
			if e != (SetEntry{}) {
				t.Fatalf("an error and an entry: %+v", e)
			}
			return
		}
		for _, s := range []string{e.Path(), e.Argument(), e.Address(), e.Comm(), e.ParentComm(), e.Protocol() + e.Family() + e.Operation() + e.Access() + e.Mapping()} {
			if !stdutf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
				t.Fatalf("%q", s)
			}
		}
		if e.Argument() != "" && e.Set != SetExec || e.Count == 0 {
			t.Fatalf("%+v", e)
		}
	})
}

func BenchmarkSetEntryDecode(b *testing.B) {
	record := entryBytes("/usr/lib/x86_64-linux-gnu/libc.so.6", "")
	var e SetEntry
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Decode(record); err != nil {
			b.Fatal(err)
		}
	}
}

// Distinct entries from the system call to the decoded entry, from processes
// that do nothing else, with the reader beside them.
func BenchmarkSetEntries(b *testing.B) {
	const each, containers = 50_000, 2
	for b.Loop() {
		b.StopTimer()
		r := newSetRoom(b, Options{}, map[Set]uint32{SetNetwork: each + 10})
		rooms := []room{r.room, newRoom(b, r.obj, need.Cgroup2(b))}
		must(b, r.obj.PutSets(rooms[1].id, map[Set]uint32{SetNetwork: each + 10}))
		events, err := r.obj.Reader()
		must(b, err)
		var shells []*shell
		for _, m := range rooms {
			shells = append(shells, m.shell(b))
			shells[len(shells)-1].do(b, "true")
		}
		b.StartTimer()
		var work sync.WaitGroup
		began := time.Now()
		for _, s := range shells {
			work.Go(func() { act(b, s, "flood", strconv.Itoa(each)) })
		}
		go func() {
			work.Wait()
			_ = events.Flush()
		}()
		var rec ringbuf.Record
		var e SetEntry
		told := 0
		for {
			err := events.ReadInto(&rec)
			if errors.Is(err, ringbuf.ErrFlushed) {
				break
			}
			must(b, err)
			if IsSetEvent(rec.RawSample) {
				must(b, e.Decode(rec.RawSample))
				told++
			}
		}
		took := time.Since(began)
		b.StopTimer()
		full, err := r.obj.RingFull()
		must(b, err)
		kept, lost := 0, uint64(0)
		for _, m := range rooms {
			c := (setRoomT{m, r.obj}).counts(b, SetNetwork)
			kept += int(c.Used)
			lost += c.Lost + c.Full
		}
		if kept < each*containers || lost != 0 {
			b.Errorf("%d entries, %d lost", kept, lost)
		}
		b.ReportMetric(float64(kept)/took.Seconds(), "entries/s")
		b.ReportMetric(float64(told), "told")
		b.ReportMetric(float64(full), "ringFull")
		must(b, events.Close())
		for _, s := range shells {
			s.end()
		}
		for _, m := range rooms {
			must(b, r.obj.DeleteSets(m.id))
		}
		b.StartTimer()
	}
}
