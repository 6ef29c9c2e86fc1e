package symbol

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"probity/tests/need"
)

// anything takes files of every machine.
func anything(elf.Machine, elf.Class) bool { return true }

// readFile reads a file of this host that is expected to be fine.
func readFile(t testing.TB, path string, want ...string) (*File, map[string][]Symbol) {
	t.Helper()
	fd, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	info, err := fd.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, syms, err := Read(fd, info.Size(), Query{Names: want}, Limits{})
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return f, byWanted(syms)
}

func readBytes(b []byte, want ...string) (*File, map[string][]Symbol, error) {
	f, syms, err := Read(bytes.NewReader(b), int64(len(b)), Query{Names: want}, Limits{})
	return f, byWanted(syms), err
}

// byWanted sorts symbols by what they were wanted for; nil if there are none.
func byWanted(syms []Symbol) map[string][]Symbol {
	var m map[string][]Symbol
	for _, s := range syms {
		if m == nil {
			m = map[string][]Symbol{}
		}
		m[s.Wanted] = append(m[s.Wanted], s)
	}
	return m
}

func command(t testing.TB, dir string, env []string, name string, args ...string) []byte {
	t.Helper()
	path := need.Command(t, name)[0]
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

// gcc compiles files of testdata.
func gcc(t testing.TB, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	command(t, "testdata", nil, "gcc", append([]string{"-O1", "-o", out}, args...)...)
	return out
}

// oracle opens a trusted file with the standard library's reader.
func oracle(t testing.TB, path string) *elf.File {
	t.Helper()
	ef, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ef.Close() })
	return ef
}

// fileOffset translates an address with the standard library's headers.
func fileOffset(ef *elf.File, addr uint64) (uint64, bool) {
	for _, p := range ef.Progs {
		if p.Type == elf.PT_LOAD && p.Flags&elf.PF_X != 0 && addr >= p.Vaddr && addr < p.Vaddr+p.Filesz {
			return addr - p.Vaddr + p.Off, true
		}
	}
	return 0, false
}

func hostMachine() elf.Machine {
	if runtime.GOARCH == "arm64" {
		return elf.EM_AARCH64
	}
	return elf.EM_X86_64
}
