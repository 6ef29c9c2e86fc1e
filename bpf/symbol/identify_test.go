package symbol

import (
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"probity/tests/need"
)

func identify(t testing.TB, path string) (Identity, error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return Identify(f, st.Size(), Limits{})
}

// What this machine has is identified as debug/elf does it.
func TestIdentifyMachine(t *testing.T) {
	n := 0
	for _, dir := range []string{"/usr/bin", "/usr/lib"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || n >= 500 || !d.Type().IsRegular() {
				return nil
			}
			f, err := elf.Open(path)
			if err != nil {
				return nil
			}
			defer f.Close()
			if f.Type != elf.ET_DYN && f.Type != elf.ET_EXEC {
				return nil
			}
			id, err := identify(t, path)
			if err != nil {
				t.Logf("%s: %v", path, err)
				return nil
			}
			n++
			names, _ := f.DynString(elf.DT_SONAME)
			if want := strings.Join(names, ""); id.Soname != want {
				t.Errorf("%s: soname %q, want %q", path, id.Soname, want)
			}
			var interp string
			for _, p := range f.Progs {
				if b, err := io.ReadAll(p.Open()); p.Type == elf.PT_INTERP && err == nil && len(b) > 0 {
					interp = string(b[:len(b)-1])
				}
			}
			if id.Interp != interp {
				t.Errorf("%s: interpreter %q, want %q", path, id.Interp, interp)
			}
			needed, _ := f.DynString(elf.DT_NEEDED)
			if n%10 == 0 {
				if ours, _ := readFile(t, path); !slices.Equal(ours.Needed, needed) || ours.Soname != id.Soname || ours.Interp != interp || ours.BuildID != id.BuildID {
					t.Errorf("%s: %+v, needs %q", path, ours, needed)
				}
			}
			if s := f.Section(".note.gnu.build-id"); (s != nil) != (id.BuildID != "") {
				t.Errorf("%s: build-id %q", path, id.BuildID)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if n == 0 {
		t.Error("this machine has no ELF files in /usr")
	}
}

func TestIdentify(t *testing.T) {
	need.Command(t, "objcopy")
	lib := greetLibrary(t, "-Wl,-soname,libgreet.so.1")
	want := Identity{BuildID: "0123456789abcdef", Soname: "libgreet.so.1"}
	if id, err := identify(t, lib); err != nil || id != want {
		t.Errorf("%+v, %v", id, err)
	}
	// Without section headers, which nothing needs to run.
	b, err := os.ReadFile(lib)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[0x28:0x30]) // e_shoff
	clear(b[0x3c:0x40]) // e_shnum, e_shstrndx
	if id, err := Identify(bytes.NewReader(b), int64(len(b)), Limits{}); err != nil || id != want {
		t.Errorf("without sections: %+v, %v", id, err)
	}
	// Debugging information in a file of its own has the build-id too.
	debug := lib + ".debug"
	if out, err := exec.Command("objcopy", "--only-keep-debug", lib, debug).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if id, err := identify(t, debug); !errors.Is(err, ErrNotELF) {
		t.Errorf("debugging information is taken for the library: %+v, %v", id, err)
	}
	long := greetLibrary(t, "-Wl,-soname,"+strings.Repeat("x", 256))
	if id, err := identify(t, long); !errors.Is(err, ErrMalformed) {
		t.Errorf("a soname of 256 bytes: %+v, %v", id, err)
	}
	if id, err := identify(t, "identify_test.go"); !errors.Is(err, ErrNotELF) {
		t.Errorf("a source file: %+v, %v", id, err)
	}
}

func FuzzIdentify(f *testing.F) {
	f.Add(tiny().bytes())
	if _, ok := need.Look("gcc"); ok {
		b, err := os.ReadFile(greetLibrary(f, "-s", "-Wl,-soname,libgreet.so.1"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := Identify(bytes.NewReader(b), int64(len(b)), Limits{FileSize: 1 << 20})
		if err != nil {
			for _, sentinel := range []error{ErrNotELF, ErrTruncated, ErrTooLarge, ErrMalformed, ErrForeign} {
				if errors.Is(err, sentinel) {
					return
				}
			}
			t.Fatalf("error without a sentinel: %v", err)
		}
		if len(id.Soname) > maxSoname || strings.Contains(id.Soname, "\x00") || len(id.BuildID) > 2*maxBuildID {
			t.Errorf("%+v", id)
		}
	})
}
