package symbol

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"probity/tests/need"
)

// Where instructions begin in main is what a disassembler says; all other
// offsets in it are inside one. Of code that belongs to no function nothing is
// said.
func TestMisplaced(t *testing.T) {
	need.Command(t, "gcc", "objdump")
	if native(elf.EM_X86_64, elf.ELFCLASS64) == false {
		return // every offset that is a multiple of four begins one
	}
	src := filepath.Join(t.TempDir(), "p.c")
	if err := os.WriteFile(src, []byte(`#include <stdio.h>
int main(int argc, char **argv) { for (int i = 0; i < argc; i++) printf("%s %d\n", argv[i], i * 1234567); return argc; }`), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(filepath.Dir(src), "p")
	if out, err := exec.Command("gcc", "-O1", "-no-pie", "-o", bin, src).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command("objdump", "-d", "--disassemble=main", bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	begins := map[uint64]bool{}
	for _, m := range regexp.MustCompile(`(?m)^ +([0-9a-f]+):\t`).FindAllStringSubmatch(string(out), -1) {
		addr, err := strconv.ParseUint(m[1], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		begins[addr-0x400000] = true
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	_, syms, err := Read(bytes.NewReader(data), int64(len(data)), Query{Names: []string{"main"}}, Limits{})
	if err != nil || len(syms) != 1 {
		t.Fatal(syms, err)
	}
	q := Query{}
	for o := syms[0].Offset; o < syms[0].Offset+syms[0].Size; o++ {
		q.Offsets = append(q.Offsets, o)
	}
	f, _, err := Read(bytes.NewReader(data), int64(len(data)), q, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	inside := 0
	for _, o := range q.Offsets {
		why, no := f.Misplaced[o]
		if no == begins[o] {
			t.Errorf("%#x: %q, a disassembler has an instruction there: %v", o, why, begins[o])
		}
		if no {
			inside++
			if !strings.Contains(why, "main+0x") {
				t.Errorf("%#x: %q", o, why)
			}
		}
	}
	if inside == 0 || len(begins) == 0 {
		t.Errorf("%d inside, %d instructions", inside, len(begins))
	}
	// Without a table nothing can be said of it, and nothing is.
	if out, err := exec.Command("strip", bin).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if data, err = os.ReadFile(bin); err != nil {
		t.Fatal(err)
	}
	if f, _, err = Read(bytes.NewReader(data), int64(len(data)), q, Limits{}); err != nil || len(f.Misplaced) != 0 {
		t.Errorf("stripped: %v, %v", f, err)
	}
}
