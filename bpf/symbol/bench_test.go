package symbol

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"probity/tests/need"
)

// 100 functions in the host's C library, and 10,000 names of which 100 are
// there.
func BenchmarkLibc(b *testing.B) {
	path := need.CLibrary(b)
	list, err := oracle(b, path).DynamicSymbols()
	if err != nil {
		b.Fatal(err)
	}
	var want []string
	for i := 0; i < len(list) && len(want) < 100; i += 10 {
		if elf.ST_TYPE(list[i].Info) == elf.STT_FUNC && list[i].Section != elf.SHN_UNDEF {
			want = append(want, list[i].Name)
		}
	}
	many := want
	for i := range 9900 {
		many = append(many, fmt.Sprintf("_ZN8somename%dspace8functionEv", i))
	}
	for _, names := range [][]string{want, many} {
		b.Run(fmt.Sprint(len(names)), func(b *testing.B) { benchmark(b, path, names) })
	}
}

// A Go program with its symbol table.
func BenchmarkGo(b *testing.B) {
	benchmark(b, goProgram(b, nil), []string{"main.main", "runtime.main", "fmt.Println"})
}

func benchmark(b *testing.B, path string, want []string) {
	fd, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer fd.Close()
	info, err := fd.Stat()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Read(fd, info.Size(), Query{Names: want}, Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

// What it costs to ask each file of an image who it is: opened, as a search
// has it, and read.
func BenchmarkIdentify(b *testing.B) {
	for _, path := range []string{need.CLibrary(b), goProgram(b, nil), "bench_test.go"} {
		b.Run(filepath.Base(path), func(b *testing.B) {
			fd, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			defer fd.Close()
			info, err := fd.Stat()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Identify(fd, info.Size(), Limits{}); err != nil && !errors.Is(err, ErrNotELF) {
					b.Fatal(err)
				}
			}
		})
	}
}
