package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/tests/need"
)

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
	if len(calls) != 1 || !calls[0].Beyond || calls[0].IOUring() != uring {
		t.Errorf("%+v, io_uring %v", calls[0], uring)
	}
}

// A 64-bit program may make 32-bit calls, whose numbers mean something else.
func TestSetSyscalls32(t *testing.T) {
	need.Machine(t, "amd64") // int 0x80 is x86's
	for _, way := range []string{"rawTracepoint", "tracepoint"} {
		t.Run(way, func(t *testing.T) { syscalls32(t, Options{ForceSet: way}) })
	}
}

func syscalls32(t *testing.T, o Options) {
	r := newSetRoom(t, o, map[Set]uint32{SetSyscalls: 0, SetFiles: 0})
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
