package bpf

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"

	"probity/tests/need"
)

// What sets there are on a kernel that does not tell its types, and that they
// say what they do not know.
func TestSetsWithoutKernelTypes(t *testing.T) {
	need.KernelBTF(t)
	need.Tracefs(t)
	loadable(t)
	_ = offers("fentry") // remembered for the whole process: other tests want the answer of a kernel with types
	need.NoKernelBTF(t)
	r := newSetRoom(t, Options{}, map[Set]uint32{SetExec: 0, SetFiles: 0, SetNetwork: 0, SetSyscalls: 0})
	for _, s := range []Set{SetExec, SetFiles, SetNetwork, SetSyscalls} {
		way, err := r.obj.ArmSet(s)
		if err != nil || way.Type != "tracepoint" || !strings.Contains(way.Note, "BTF") && !strings.Contains(way.Note, "types") {
			t.Errorf("%s: %+v, %v", s, way, err)
		}
	}
	if _, err := r.obj.ArmSet(SetLibraries); err == nil || !strings.Contains(err.Error(), "BTF") {
		t.Errorf("libraries without types: %v", err)
	}
	bare(t, r)
}

// loadable ends a test of what is without types where nothing is: before 5.15 they
// are needed to tell containers apart (TestWithoutKernelTypes).
func loadable(t *testing.T) {
	t.Helper()
	need.Feature(t, "ancestor_helper", features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetCurrentAncestorCgroupId))
}

// The same programs on a kernel that has better ones.
func TestSetsByTracepoint(t *testing.T) {
	need.Tracefs(t)
	r := newSetRoom(t, Options{ForceSet: "tracepoint"}, map[Set]uint32{SetExec: 0, SetFiles: 0, SetNetwork: 0, SetSyscalls: 0})
	bare(t, r)
}

func bare(t *testing.T, r setRoomT) {
	s := r.shell(t)
	dir := real(t, t.TempDir())
	must(t, os.WriteFile(dir+"/a", nil, 0o600))
	act(t, s, "open", dir+"/a", dir+"/b")
	l, err := net.Listen("unix", dir+"/socket")
	must(t, err)
	defer l.Close()
	ports := strings.Fields(act(t, s, "network", l.Addr().String()))
	e := r.shell(t) // an exec session
	e.do(t, "/bin/true")
	r.want(t, SetExec, map[string]uint64{"/bin/true  2": 1, self(t) + "  1": 2})
	r.want(t, SetFiles, map[string]uint64{
		"read " + dir + "/a": 1, "read " + dir + "/b": 1, "write " + dir + "/b": 1, "exec /bin/true": 1,
	})
	for _, x := range append(r.entries(t, SetFiles), r.entries(t, SetExec)...) {
		if strings.Contains(x.Path(), "missing") || x.Access() == "write" && x.Path() == dir+"/a" {
			t.Errorf("it was not opened like that: %s", brief(&x))
		}
		if !x.Given() || x.PathKnown() || !strings.Contains(x.PathDoubt(), "not known") || x.Inode() != 0 || x.Parent != 0 {
			t.Errorf("%s claims to be known: %q", brief(&x), x.PathDoubt())
		}
	}
	// The listeners' peers were not asked for, so they are lost and not left out.
	lost := r.counts(t, SetNetwork).Lost
	have := map[string]bool{}
	for _, x := range r.entries(t, SetNetwork) {
		have[brief(&x)] = true
		if tcp := x.Protocol() == "tcp"; x.Given() == tcp {
			t.Errorf("%s: given %v", brief(&x), x.Given())
		}
	}
	want := []string{
		"connect tcp ipv4 127.0.0.1 1", "connect tcp ipv4 127.0.0.1 2", "connect other ipv4 127.0.0.1 5353",
		"dns other ipv4 127.0.0.1 53", "send other ipv4 127.0.0.1 999", "bind other ipv4 127.0.0.2 7777",
		"bind other unix @probity-abstract 0", "connect other unix " + l.Addr().String() + " 0",
	}
	for _, p := range ports {
		family, port, _ := strings.Cut(p, "/")
		addr := map[string]string{"ipv4": "127.0.0.1", "ipv6": "::1"}[family]
		want = append(want, "connect tcp "+family+" "+addr+" "+port)
		if !have["accept other "+family+" "+addr+" 0"] && lost == 0 {
			t.Errorf("who connected over %s is neither there nor lost", family)
		}
	}
	for _, w := range want {
		if !have[w] {
			t.Errorf("no %q", w)
		}
	}
	if t.Failed() {
		t.Logf("%v", have)
	}
	calls, err := r.obj.SystemCalls(r.id)
	must(t, err)
	if len(calls) != 1 || calls[0].Arch != callArchs[0] || len(calls[0].Numbers) < 10 {
		t.Errorf("%+v", calls)
	}
}

// Whether a call is a 32-bit one is read without types, where every kernel of
// 5.15 and later has it.
func TestBareOffsets(t *testing.T) {
	need.KernelBTF(t)
	loadable(t)
	types, err := btf.LoadKernelSpec()
	must(t, err)
	var info *btf.Struct
	must(t, types.TypeByName("thread_info", &info))
	member, at := "status", uint32(16) // c/kernel_drift.h
	if callArchs[0] != "x86_64" {
		member, at = "flags", 0
	}
	for _, m := range info.Members {
		if m.Name == member {
			if m.Offset.Bytes() != at {
				t.Errorf("%s is at %d, the programs read %d", member, m.Offset.Bytes(), at)
			}
			return
		}
	}
	t.Errorf("thread_info has no member %s", member)
}
