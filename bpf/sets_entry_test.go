package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	stdutf8 "unicode/utf8"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"

	"probity/tests/need"
)

func entryBytes(path, arg string) []byte {
	b := make([]byte, atText, atText+setTextLen)
	u32 := func(at uintptr, v uint32) { binary.NativeEndian.PutUint32(b[at:], v) }
	u64 := func(at uintptr, v uint64) { binary.NativeEndian.PutUint64(b[at:], v) }
	var e setsSetEntry
	u32(0, uint32(EventSet))
	u64(atCgroup, 77)
	b[atKey] = uint8(SetExec)
	b[atKey+unsafe.Offsetof(setsSetKey{}.What)] = uint8(SessionExec)
	u64(atKey+unsafe.Offsetof(setsSetKey{}.Id), 254<<20|3)
	u64(atKey+unsafe.Offsetof(setsSetKey{}.Id)+8, 4711)
	u64(atEntry+unsafe.Offsetof(e.Count), 1)
	u64(atEntry+unsafe.Offsetof(e.FirstNs), 5)
	u32(atEntry+unsafe.Offsetof(e.Pid), 100)
	binary.NativeEndian.PutUint16(b[atEntry+unsafe.Offsetof(e.PathLen):], uint16(len(path)))
	binary.NativeEndian.PutUint16(b[atEntry+unsafe.Offsetof(e.ArgLen):], uint16(len(arg)))
	copy(b[atEntry+unsafe.Offsetof(e.Comm):], "na\xffme")
	return append(append(b, path...), arg...)
}

func TestSetEntryDecode(t *testing.T) {
	good := entryBytes("/bin/a\xff", "a")
	var e SetEntry
	must(t, e.Decode(good))
	major, minor := e.Device()
	if e.Cgroup != 77 || e.Set != SetExec || e.Path() != "/bin/a\uFFFD" || e.Argument() != "a" || e.Comm() != "na\uFFFDme" || major != 254 || minor != 3 || e.Inode() != 4711 || e.Pid != 100 {
		t.Errorf("%+v", e)
	}
	for n := range good {
		if err := e.Decode(good[:n]); !errors.Is(err, ErrDecode) || e != (SetEntry{}) {
			t.Fatalf("%d bytes: %v, want ErrDecode", n, err)
		}
	}
	var x setsSetEntry
	for what, bad := range map[string]func([]byte){
		"set":           func(b []byte) { b[atKey] = 5 },
		"syscalls":      func(b []byte) { b[atKey] = uint8(SetSyscalls) },
		"session":       func(b []byte) { b[atKey+unsafe.Offsetof(setsSetKey{}.What)] = 3 },
		"count":         func(b []byte) { b[atEntry+unsafe.Offsetof(x.Count)] = 0 },
		"time":          func(b []byte) { b[atEntry+unsafe.Offsetof(x.FirstNs)] = 0 },
		"flags":         func(b []byte) { b[atEntry+unsafe.Offsetof(x.PathFlags)+1] = 1 },
		"comm":          func(b []byte) { b[atEntry+unsafe.Offsetof(x.Comm)+15] = 'x' },
		"length":        func(b []byte) { b[atEntry+unsafe.Offsetof(x.PathLen)]++ },
		"other session": func(b []byte) { b[atEntry+unsafe.Offsetof(x.Session)] = 9 },
	} {
		b := bytes.Clone(good)
		bad(b)
		if err := e.Decode(b); !errors.Is(err, ErrDecode) {
			t.Errorf("%s: %v, want ErrDecode", what, err)
		}
	}
	if err := e.Decode(append(bytes.Clone(good), 0)); !errors.Is(err, ErrDecode) {
		t.Errorf("a byte too many: %v", err)
	}
	if n := testing.AllocsPerRun(100, func() { must(t, e.Decode(good)) }); n != 0 {
		t.Errorf("%v allocations for one entry", n)
	}
}

func FuzzSetEntryDecode(f *testing.F) {
	f.Add(entryBytes("/bin/a", "a"))
	f.Add(entryBytes(strings.Repeat("x", setTextLen), ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		var e SetEntry
		if err := e.Decode(b); err != nil {
			if e != (SetEntry{}) {
				t.Fatalf("an error and an entry: %+v", e)
			}
			return
		}
		for _, s := range []string{e.Path(), e.Argument(), e.Address(), e.Comm(), e.ParentComm(), e.Protocol() + e.Family() + e.Operation() + e.Access() + e.Mapping()} {
			if !stdutf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
				t.Fatalf("%q", s)
			}
		}
		if e.Argument() != "" && e.Set != SetExec || e.Count == 0 {
			t.Fatalf("%+v", e)
		}
	})
}

func BenchmarkSetEntryDecode(b *testing.B) {
	record := entryBytes("/usr/lib/x86_64-linux-gnu/libc.so.6", "")
	var e SetEntry
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Decode(record); err != nil {
			b.Fatal(err)
		}
	}
}

// Distinct entries from the system call to the decoded entry, from processes
// that do nothing else, with the reader beside them.
func BenchmarkSetEntries(b *testing.B) {
	const each, containers = 50_000, 2
	for b.Loop() {
		b.StopTimer()
		r := newSetRoom(b, Options{}, map[Set]uint32{SetNetwork: each + 10})
		rooms := []room{r.room, newRoom(b, r.obj, need.Cgroup2(b))}
		must(b, r.obj.PutSets(rooms[1].id, map[Set]uint32{SetNetwork: each + 10}))
		events, err := r.obj.Reader()
		must(b, err)
		var shells []*shell
		for _, m := range rooms {
			shells = append(shells, m.shell(b))
			shells[len(shells)-1].do(b, "true")
		}
		b.StartTimer()
		var work sync.WaitGroup
		began := time.Now()
		for _, s := range shells {
			work.Go(func() { act(b, s, "flood", strconv.Itoa(each)) })
		}
		go func() {
			work.Wait()
			_ = events.Flush()
		}()
		var rec ringbuf.Record
		var e SetEntry
		told := 0
		for {
			err := events.ReadInto(&rec)
			if errors.Is(err, ringbuf.ErrFlushed) {
				break
			}
			must(b, err)
			if IsSetEvent(rec.RawSample) {
				must(b, e.Decode(rec.RawSample))
				told++
			}
		}
		took := time.Since(began)
		b.StopTimer()
		full, err := r.obj.RingFull()
		must(b, err)
		kept, lost := 0, uint64(0)
		for _, m := range rooms {
			c := (setRoomT{m, r.obj}).counts(b, SetNetwork)
			kept += int(c.Used)
			lost += c.Lost + c.Full
		}
		if kept < each*containers || lost != 0 {
			b.Errorf("%d entries, %d lost", kept, lost)
		}
		b.ReportMetric(float64(kept)/took.Seconds(), "entries/s")
		b.ReportMetric(float64(told), "told")
		b.ReportMetric(float64(full), "ringFull")
		must(b, events.Close())
		for _, s := range shells {
			s.end()
		}
		for _, m := range rooms {
			must(b, r.obj.DeleteSets(m.id))
		}
		b.StartTimer()
	}
}

// An entry that cannot be read costs none of the others, and is said to be there.
func TestUnreadableEntry(t *testing.T) {
	need.BPF(t)
	obj := load(t, Options{})
	must(t, obj.PutRun(1, 0))
	must(t, obj.PutSets(1, map[Set]uint32{SetExec: 100}))
	room, err := obj.setRoom(1)
	must(t, err)
	var v rawEntry
	copy(v[:], entryBytes("/bin/x", "")[atEntry:])
	for i := range uint64(10) {
		k := setsSetKey{Set: uint8(SetExec), What: uint8(SessionExec)}
		k.Id[1] = i + 1
		if i == 3 {
			k.Set = 99
		}
		must(t, room.entries.Put(&k, &v))
	}
	n := 0
	if err := obj.SetEntries(1, func(*SetEntry) bool { n++; return true }); !errors.Is(err, ErrDecode) || n != 9 {
		t.Errorf("%d entries, %v", n, err)
	}
}
