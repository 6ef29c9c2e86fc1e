package kernel

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/ulikunitz/xz"

	"probity/tests/need"
)

// types makes raw BTF of structures that have the given members.
func types(t testing.TB, structs map[string]string) []byte {
	t.Helper()
	b, err := btf.NewBuilder(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, member := range structs {
		if _, err := b.Add(&btf.Struct{Name: name, Size: 4, Members: []btf.Member{{Name: member, Type: &btf.Int{Name: "int", Size: 4}}}}); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func packed(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := xz.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func archived(t testing.TB, name string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range []*tar.Header{{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "./" + name, Mode: 0o644, Size: int64(len(b))}} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packed(t, out.Bytes())
}

// inELF puts b into a section of an ELF file.
func inELF(section string, b []byte) []byte {
	names := "\x00" + section + "\x00.shstrtab\x00"
	var out bytes.Buffer
	put := func(vs ...any) {
		for _, v := range vs {
			_ = binary.Write(&out, binary.LittleEndian, v)
		}
	}
	out.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	at := uint64(64)
	put(uint16(2), uint16(62), uint32(1), uint64(0), uint64(0), at+uint64(len(b)+len(names)), uint32(0), uint16(64), uint16(56), uint16(0), uint16(64), uint16(3), uint16(2))
	out.Write(b)
	out.WriteString(names)
	header := func(name, kind uint32, off, size uint64) {
		put(name, kind, uint64(0), uint64(0), off, size, uint32(0), uint32(0), uint64(1), uint64(0))
	}
	header(0, 0, 0, 0)
	header(1, 1, at, uint64(len(b)))
	header(uint32(len(section)+2), 3, at+uint64(len(b)), uint64(len(names)))
	return out.Bytes()
}

var (
	kernelOfX86 = map[string]string{"task_struct": "pid", "pt_regs": "r15"}
	kernelOfARM = map[string]string{"task_struct": "pid", "pt_regs": "pstate"}
)

func TestFindBTFFile(t *testing.T) {
	const release, machine = "5.10.0-9-amd64", "x86_64"
	good := types(t, kernelOfX86)
	for _, c := range []struct {
		name string // of the file
		data []byte
		err  string // part of it; empty if it is to be read
		note string
	}{
		{name: release + ".btf", data: good},
		{name: "vmlinux-" + release, data: inELF(".BTF", good)},
		{name: release + ".btf.xz", data: packed(t, good)},
		{name: release + ".btf.tar.xz", data: archived(t, release+".btf", good)},
		{name: "kernel.btf", data: good, note: "could not be checked"},
		{name: "vmlinux", data: packed(t, inELF(".BTF", good)), note: "could not be checked"},
		{name: "5.10.0-8-amd64.btf", data: good, err: "they are for the kernel 5.10.0-8-amd64, this one is 5.10.0-9-amd64"},
		{name: "5.10.0-8-amd64.btf.tar.xz", data: archived(t, "x.btf", good), err: "this one is 5.10.0-9-amd64"},
		{name: release + ".btf", data: nil, err: "it is empty"},
		{name: release + ".btf", data: []byte("#!/bin/sh\n"), err: "neither BTF nor an ELF file"},
		{name: release + ".btf", data: good[:len(good)-5], err: "read the types"},
		{name: release + ".btf", data: types(t, map[string]string{"sk_buff": "len"}), err: "no struct task_struct, so it is not a kernel's"},
		{name: release + ".btf", data: types(t, kernelOfARM), err: "struct pt_regs is not that of x86_64"},
		{name: release, data: inELF(".text", good), err: "no section .BTF"},
		{name: release, data: inELF(".BTF", good)[:70], err: "read the ELF file"},
		{name: release + ".btf.xz", data: packed(t, good)[:40], err: "unpack"},
		{name: release + ".btf.tar.xz", data: archived(t, "README", good), err: "no file *.btf in the archive"},
		{name: release + ".btf.xz", data: packed(t, make([]byte, maxBTF+1)), err: "more than 64 MiB"},
	} {
		path := filepath.Join(t.TempDir(), c.name)
		if err := os.WriteFile(path, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		spec, source, err := FindBTF(path, release, machine)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: error %v, want one with %q and the path", c.name, err, c.err)
			}
		case err != nil || spec == nil || source.Source != path || !strings.Contains(source.Reason, c.note) || c.note == "" && source.Reason != "":
			t.Errorf("%s: %+v, %v", c.name, source, err)
		}
	}
}

func TestFindBTFDirectory(t *testing.T) {
	const release = "5.10.0-9-amd64"
	for _, c := range []struct {
		name    string
		machine string
		files   []string
		distro  []string
		want    string
		err     string
	}{
		{name: "flat", files: []string{release + ".btf", "5.10.0-8-amd64.btf"}, want: release + ".btf"},
		{name: "as BTFHub", files: []string{"debian/11/x86_64/" + release + ".btf.tar.xz", "debian/11/x86_64/5.10.0-8-amd64.btf.tar.xz"}, want: "debian/11/x86_64/" + release + ".btf.tar.xz"},
		{name: "unpacked first", files: []string{release + ".btf.tar.xz", release + ".btf"}, want: release + ".btf"},
		{name: "of another machine", files: []string{"arm64/" + release + ".btf"}, err: "none for the kernel"},
		{name: "arm64 is aarch64", machine: "aarch64", files: []string{"x86_64/" + release + ".btf", "arm64/" + release + ".btf"}, want: "arm64/" + release + ".btf"},
		{
			name: "the distribution decides", distro: []string{"debian", "11"},
			files: []string{"debian/10/x86_64/" + release + ".btf", "debian/11/x86_64/" + release + ".btf", "ol/11/x86_64/" + release + ".btf"},
			want:  "debian/11/x86_64/" + release + ".btf",
		},
		{name: "two and no way to tell", files: []string{"a/" + release + ".btf", "b/" + release + ".btf"}, err: "a/" + release + ".btf, b/" + release + ".btf are all for"},
		{name: "none", files: []string{"5.10.0-8-amd64.btf"}, err: "none for the kernel " + release + " on x86_64"},
		{name: "too deep", files: []string{"1/2/3/4/5/6/7/" + release + ".btf"}, err: "none for the kernel"},
	} {
		dir := t.TempDir()
		for _, f := range c.files {
			p := filepath.Join(dir, f)
			if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if c.machine == "" {
			c.machine = "x86_64"
		}
		got, err := inArchive(dir, release, c.machine, c.distro)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %q, error %v, want one with %q", c.name, got, err, c.err)
			}
		case err != nil || got != filepath.Join(dir, c.want):
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
	if _, _, err := FindBTF(filepath.Join(t.TempDir(), "absent"), release, "x86_64"); !os.IsNotExist(err) && (err == nil || !strings.Contains(err.Error(), "no such file")) {
		t.Errorf("what is not there: %v", err)
	}
}

// TestOpenBTF takes the types of this kernel from where a user would put them,
// as if it did not offer them.
func TestOpenBTF(t *testing.T) {
	raw := need.KernelBTF(t)
	f := Facts{KernelBTF: Answer{Yes: true}}
	if spec, source, err := f.OpenBTF("/absent"); spec != nil || err != nil || source.Source != ownBTFPath || !strings.Contains(source.Reason, "not needed") {
		t.Errorf("a kernel with types of its own: %+v, %v", source, err)
	}
	need.NoKernelBTF(t)
	f, _ = Look()
	if f.KernelBTF.Yes || f.BTF.Source != noBTF {
		t.Fatalf("they are not hidden: %+v", f.BTF)
	}
	if spec, source, err := f.OpenBTF(""); spec != nil || err != nil || source.Source != noBTF || source.Reason == "" {
		t.Errorf("without any: %+v, %v", source, err)
	}
	if spec, source, err := f.OpenBTF("/absent"); spec != nil || err == nil || source.Source != noBTF {
		t.Errorf("a path that is not there: %+v, %v", source, err)
	}
	path := filepath.Join(t.TempDir(), f.Release+".btf")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if spec, source, err := f.OpenBTF(path); spec == nil || err != nil || source != (BTFSource{Source: path}) {
		t.Errorf("a copy: %+v, %v", source, err)
	}
	other := map[string]string{"x86_64": "aarch64", "aarch64": "x86_64"}[f.Machine]
	if _, _, err := FindBTF(path, f.Release, other); err == nil || !strings.Contains(err.Error(), "struct pt_regs is not that of") {
		t.Errorf("for another machine: %v", err)
	}
}

func TestReleaseOf(t *testing.T) {
	for name, want := range map[string]string{
		"/a/5.4.0-1009-aws.btf.tar.xz": "5.4.0-1009-aws", "vmlinux-6.1.0": "6.1.0", "6.1.0": "6.1.0", "4.18.0-80.el8.x86_64.btf": "4.18.0-80.el8.x86_64",
		"vmlinux": "", "kernel.btf": "", "": "",
	} {
		if got := releaseOf(name); got != want {
			t.Errorf("releaseOf(%q) = %q, want %q", name, got, want)
		}
	}
}

func FuzzLoadBTF(f *testing.F) {
	good := types(f, kernelOfX86)
	f.Add(good)
	f.Add(inELF(".BTF", good))
	f.Fuzz(func(t *testing.T, b []byte) {
		spec, err := loadBTF(bytes.NewReader(b))
		if err != nil {
			if spec != nil {
				t.Fatal("types and an error")
			}
			return
		}
		_ = fmt.Sprint(plausible(spec, "x86_64"))
	})
}
