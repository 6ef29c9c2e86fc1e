package bpf

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/ulikunitz/xz"

	"probity/bpf/kernel"
	"probity/tests/need"
)

// TestWithoutKernelTypes loads everything on a kernel whose own types are
// hidden: without any, then with those of a file, and of an archive.
func TestWithoutKernelTypes(t *testing.T) {
	need.BPF(t)
	need.Tracefs(t)
	raw := need.KernelBTF(t)
	need.NoKernelBTF(t)
	facts, err := kernel.Look()
	if err != nil {
		t.Fatal(err)
	}

	if features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetCurrentAncestorCgroupId) == nil {
		loadsWithoutTypes(t)
	} else if obj, err := Load(Options{}); err == nil {
		t.Error("loaded without types, on a kernel that says only by them whose a process is")
		must(t, obj.Close())
	} else if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "BTF") {
		t.Errorf("without types: %v; want it to name what is missing", err)
	}

	flat, archives := t.TempDir(), t.TempDir()
	plain := filepath.Join(flat, facts.Release+".btf")
	write(t, plain, raw)
	write(t, filepath.Join(archives, "debian/12", facts.Machine, facts.Release+".btf.tar.xz"), archive(t, facts.Release+".btf", raw))
	for _, path := range []string{plain, flat, archives} {
		types, source, err := facts.OpenBTF(path)
		if err != nil {
			t.Fatal(err)
		}
		obj, err := Load(Options{KernelTypes: types})
		if err != nil {
			t.Fatalf("with %s: %v", source.Source, err)
		}
		l := obj.AttachLineage()
		if l.ExecErr != nil || l.ProcessErr != nil || l.MoveErr != nil {
			t.Errorf("with %s: %+v", source.Source, l)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := obj.Close(); err != nil {
			t.Error(err)
		}
	}
}

// loadsWithoutTypes wants that what needs no types works without, and that what
// does says so.
func loadsWithoutTypes(t *testing.T) {
	without, err := Load(Options{})
	if err != nil {
		t.Fatalf("without types: %v", err)
	}
	for name, load := range map[string]func(At) (*Program, error){
		"uprobe": without.UprobeSingle, "kprobe": without.Kprobe, "tracepoint": without.Tracepoint, "raw tracepoint": without.RawTracepoint,
	} {
		if prog, err := load(At{Site: 7}); err != nil {
			t.Errorf("%s without types: %v", name, err)
		} else if err := prog.Close(); err != nil {
			t.Error(err)
		}
	}
	l := without.AttachLineage()
	if l.ExecErr != nil || l.Exec != ExecTracepoint || l.ProcessErr != nil {
		t.Errorf("tracepoints without types: %+v", l)
	}
	if l.MoveErr == nil || !strings.Contains(l.MoveErr.Error(), "BTF") {
		t.Errorf("what reads kernel structures was attached without types, or does not say what it lacks: %v", l.MoveErr)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := without.Close(); err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func archive(t *testing.T, name string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	x, err := xz.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(x)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
