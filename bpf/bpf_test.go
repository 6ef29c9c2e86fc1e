package bpf

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"

	"probity/tests/leak"
	"probity/tests/need"
)

func TestMain(m *testing.M) { leak.Main(m) }

func load(t testing.TB, o Options) *Objects {
	t.Helper()
	need.BPF(t)
	obj, err := Load(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { obj.Close() })
	return obj
}

func TestLoadEachRung(t *testing.T) {
	cookies := features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetAttachCookie) == nil
	for _, c := range []struct {
		name string
		o    Options
	}{{"best", Options{}}, {"no uprobe_multi", Options{ForceSingle: true}}, {"no cookies", Options{ForceSingle: true, ForceFixedSite: true}}} {
		t.Run(c.name, func(t *testing.T) {
			obj := load(t, c.o)
			for name, load := range map[string]func(At) (*Program, error){"uprobe": obj.UprobeSingle, "kprobe": obj.Kprobe, "tracepoint": obj.Tracepoint} {
				for _, pair := range []bool{false, true} {
					prog, err := load(At{Site: 7, Pair: pair})
					if err != nil {
						t.Fatalf("%s, pair %v: %v", name, pair, err)
					}
					if prog.Cookie != (cookies && !c.o.ForceFixedSite) {
						t.Errorf("%s: by cookie = %v with ForceFixedSite %v, and the kernel has them: %v", name, prog.Cookie, c.o.ForceFixedSite, cookies)
					}
					for range 2 {
						if err := prog.Close(); err != nil {
							t.Errorf("%s: close: %v", name, err)
						}
					}
				}
			}
			if n := len(obj.progs.copies); n != 0 {
				t.Errorf("%d copies are still held", n)
			}
			if _, err := obj.UprobeMulti(false); c.o.ForceSingle && err == nil {
				t.Error("uprobe_multi is there although it was switched off")
			}
		})
	}
}

func TestSlots(t *testing.T) {
	obj := load(t, Options{Slots: 4, Runs: 2})
	if err := obj.PutSlots(1, []Slot{{Site: 1}, {Site: 2}, {Site: 3}}); err != nil {
		t.Fatal(err)
	}
	if c, err := obj.Slot(1, 2); err != nil || c != (Counter{}) {
		t.Fatalf("fresh counter = %+v, %v", c, err)
	}
	if err := obj.PutSlots(2, []Slot{{Site: 1}, {Site: 2}}); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("fifth of four counters: %v, want ErrNoSpace", err)
	}
	if _, err := obj.Slot(2, 1); err == nil {
		t.Fatal("a counter of a batch that did not fit remains")
	}
	if err := obj.DeleteSlots(1, []uint32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if err := obj.DeleteSlots(1, []uint32{1}); err != nil {
		t.Fatalf("deleting twice: %v", err)
	}
}

func TestSharedConstants(t *testing.T) {
	h, err := os.ReadFile("c/probity.h")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(h), "#define MAX_LEVEL 32\t") || MaxLevel != 32 {
		t.Errorf("MaxLevel is %d, c/probity.h says otherwise", MaxLevel)
	}
}

func hitBytes() []byte {
	b := make([]byte, 56)
	binary.NativeEndian.PutUint32(b[0:], uint32(EventHit))
	binary.NativeEndian.PutUint32(b[4:], 9)
	binary.NativeEndian.PutUint64(b[8:], 77)
	binary.NativeEndian.PutUint64(b[16:], 5)
	binary.NativeEndian.PutUint32(b[24:], 100)
	binary.NativeEndian.PutUint32(b[28:], 101)
	binary.NativeEndian.PutUint32(b[32:], uint32(SessionExec))
	copy(b[40:], "na\xffme\x00rest")
	return b
}

func TestDecode(t *testing.T) {
	e, err := Decode(hitBytes())
	want := Event{Kind: EventHit, Cgroup: 77, Site: 9, Ns: 5, Pid: 100, Tid: 101, Session: SessionExec, Comm: "na\uFFFDme"}
	if err != nil || e != want {
		t.Fatalf("Decode = %+v, %v; want %+v", e, err, want)
	}
	for n := range hitBytes() {
		if _, err := Decode(hitBytes()[:n]); !errors.Is(err, ErrDecode) {
			t.Fatalf("%d bytes: %v, want ErrDecode", n, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(hitBytes())
	f.Add([]byte{2, 0, 0, 0})
	f.Add([]byte{3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := Decode(b); err != nil && e != (Event{}) {
			t.Fatalf("an error and an event: %+v", e)
		}
	})
}
