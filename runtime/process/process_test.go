package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/tests/need"
)

func TestParse(t *testing.T) {
	const text = `55a0c0000000-55a0c0001000 r--p 00000000 08:01 77                         /bin/cat
55a0c0001000-55a0c0005000 r-xp 00001000 08:01 77                         /bin/cat
7f0e7a228000-7f0e7a3bd000 rwxs 00028000 00:2f 18446744073709551615 /a b\012c (deleted)
7f0e7a3bd000-7f0e7a3be000 r-xp 00000000 00:00 0 
7f0e7a3be000-7f0e7a3bf000 r-xp 00000000 00:00 0                          [vdso]
7f0e7a3bf000-7f0e7a3c0000 r-xp 00000000 00:01 9                          anon_inode:[x]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`
	got, err := parse(strings.NewReader(text), 1<<20, executable)
	if err != nil {
		t.Fatal(err)
	}
	want := []Mapping{
		{Start: 0x55a0c0001000, End: 0x55a0c0005000, Offset: 0x1000, File: File{0x801, 77}, Path: "/bin/cat"},
		{Start: 0x7f0e7a228000, End: 0x7f0e7a3bd000, Offset: 0x28000, Shared: true, Writable: true, File: File{0x2f, 1<<64 - 1}, Path: "/a b\nc", Deleted: true},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for name, c := range map[string]struct {
		is   selector
		want string
	}{
		"private": {private, "/bin/cat /bin/cat"},
		"named":   {func(_, path []byte) bool { return string(path) == "[vdso]" }, "[vdso]"},
	} {
		got, err := parse(strings.NewReader(text), 1<<20, c.is)
		var paths []string
		for _, m := range got {
			paths = append(paths, m.Path)
		}
		if err != nil || strings.Join(paths, " ") != c.want {
			t.Errorf("%s: %q, %v; want %s", name, paths, err, c.want)
		}
	}
	for _, bad := range []string{"\n", "1-2 r-xp 0 1:1\n", "2-1 r-xp 0 1:1 5 /a\n", "1-2 r-x 0 1:1 5 /a\n", "1-2 r-xp x 1:1 5 /a\n", "1-2 r-xp 0 1 5 /a\n", strings.Repeat("x", maxLine+1)} {
		if got, err := parse(strings.NewReader(bad), 1<<20, executable); err == nil {
			t.Errorf("%.40q: %v", bad, got)
		}
	}
	if _, err := parse(strings.NewReader(text), 100, executable); !errors.Is(err, ErrTooMany) {
		t.Errorf("past the bound: %v", err)
	}
}

func TestDevice(t *testing.T) {
	for _, c := range [][2]uint32{{0, 0}, {8, 1}, {259, 70000}, {0xfff, 0xfffff}} {
		if got, want := device(uint64(c[0]), uint64(c[1])), unix.Mkdev(c[0], c[1]); got != want {
			t.Errorf("%v: %#x, want %#x", c, got, want)
		}
	}
}

// This process's own mappings are found, and its program's file is told from
// others by device and inode.
func TestOfThisProcess(t *testing.T) {
	p, err := Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &st); err != nil {
		t.Fatal(err)
	}
	maps, err := p.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range maps {
		if m.Path == filepath.Clean(self) && !m.Shared && !m.Writable && m.File.Ino == st.Ino {
			return
		}
	}
	t.Errorf("%s (inode %d) is not among %+v", self, st.Ino, maps)
}

// What was opened is that process and no other, whatever becomes of its number.
func TestGone(t *testing.T) {
	need.Command(t, "sleep")
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Alive(); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if _, err := p.Executable(); !errors.Is(err, ErrGone) {
		t.Errorf("its mappings: %v", err)
	}
	if err := p.Alive(); !errors.Is(err, ErrGone) {
		t.Errorf("alive: %v", err)
	}
	if _, err := Open(cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Errorf("open: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("55a0c0001000-55a0c0005000 r-xp 00001000 08:01 77   /bin/cat\n"))
	f.Add([]byte("1-2 rwxs 0 0:0 0 \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ms, err := parse(strings.NewReader(string(b)), 1<<16, executable)
		for _, m := range ms {
			if err == nil && (m.End <= m.Start || !strings.HasPrefix(m.Path, "/") || m.File.Ino == 0) {
				t.Fatalf("%q: %+v", b, m)
			}
		}
	})
}

// The first thread of a process may end before the others. What those execute is
// seen all the same.
func TestFirstThreadEnded(t *testing.T) {
	need.Command(t, "gcc")
	bin := filepath.Join(t.TempDir(), "leaderless")
	build := exec.Command("gcc", "-pthread", "-x", "c", "-o", bin, "-")
	build.Stdin = strings.NewReader(`
#include <pthread.h>
#include <unistd.h>
static void *stay(void *x) { char c; write(1, ".", 1); read(0, &c, 1); _exit(0); }
int main(void) { pthread_t t; pthread_create(&t, 0, stay, 0); pthread_exit(0); }
`)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command(bin)
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
	p, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(3 * time.Minute); ; {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the first thread does not end")
		}
	}
	maps, err := p.Executable()
	if err != nil || !slices.ContainsFunc(maps, func(m Mapping) bool { return m.Path == bin }) {
		t.Errorf("%+v, %v", maps, err)
	}
	if err := p.Alive(); err != nil || p.Thread == p.Pid {
		t.Errorf("thread %d, %v", p.Thread, err)
	}
	for _, m := range maps {
		if _, err := os.Lstat(p.Link(m)); err != nil {
			t.Error(err)
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := p.Executable(); !errors.Is(err, ErrGone) {
		t.Errorf("its mappings: %v", err)
	}
}
