package bpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"
)

// A container can fill its own share, and what found no room is counted.
func TestSetFull(t *testing.T) {
	for name, o := range map[string]Options{"memory on use": {}, "memory beforehand": {ForceSetMemory: true}} {
		t.Run(name, func(t *testing.T) {
			r := newSetRoom(t, o, map[Set]uint32{SetFiles: 8, SetExec: 4})
			inner := newRoom(t, r.obj, r.dir) // a container in the container has a share of its own
			must(t, r.obj.SetLevels(1<<r.level|1<<inner.level))
			must(t, r.obj.PutSets(inner.id, map[Set]uint32{SetFiles: 100}))
			dir := t.TempDir()
			act(t, inner.shell(t), "many", dir)
			c := r.counts(t, SetFiles)
			if n := uint64(len(r.entries(t, SetFiles))); c.Used != n || n != 8 || c.Full < 32 || c.Lost != 0 {
				t.Errorf("%d entries, %+v", n, c)
			}
			if n := len(r.entries(t, SetExec)); n != 2 {
				t.Errorf("%d execs, want the shell's and the program's", n)
			}
			if c := (setRoomT{inner, r.obj}).counts(t, SetFiles); c.Used < 40 || c.Full != 0 {
				t.Errorf("the inner one: %+v", c)
			}
		})
	}
}

// Each event of distinct things is an entry or is counted, also when many
// processors come to the last places at once.
func TestSetFullExact(t *testing.T) {
	eachWay(t, []Set{SetNetwork}, func(t *testing.T, o Options) {
		const each, shells, quota = 3000, 4, 500
		r := newSetRoom(t, o, map[Set]uint32{SetNetwork: quota})
		var work sync.WaitGroup
		for i := range shells {
			s := r.shell(t)
			work.Go(func() { act(t, s, "flood", strconv.Itoa(each), strconv.Itoa(i*each)) })
		}
		work.Wait()
		c := r.counts(t, SetNetwork)
		n := uint64(0)
		for _, e := range r.entries(t, SetNetwork) {
			if e.Count != 1 {
				t.Errorf("%s: %d times", brief(&e), e.Count)
			}
			n++
		}
		if n != c.Used || c.Used < quota || c.Used > quota+uint64(runtime.NumCPU()) {
			t.Errorf("%d entries, %+v: want no more than one each more than %d", n, c, quota)
		}
		// Where a program can be preempted, the kernel skips it for all other tasks
		// of the processor meanwhile. Of one system call both ends can be skipped.
		skipped, err := r.obj.SetMisses(r.obj.sets.attached[SetNetwork].typ)
		must(t, err)
		t.Logf("%+v, %d skipped", c, skipped)
		seen := c.Used + c.Full + c.Lost
		if o.ForceSet == "rawTracepoint" && (seen > each*shells || seen+skipped < each*shells) || o.ForceSet != "rawTracepoint" && seen+skipped != each*shells {
			t.Errorf("%+v and %d skipped, want %d", c, skipped, each*shells)
		}
	})
}

// Nothing is lost when the ring is full: the map has it.
func TestSetRingFull(t *testing.T) {
	r := newSetRoom(t, Options{RingBytes: uint32(os.Getpagesize())}, map[Set]uint32{SetFiles: 0})
	dir := real(t, t.TempDir())
	act(t, r.shell(t), "many", dir)
	run, err := r.obj.Run(r.id)
	must(t, err)
	if run.RingFull == 0 {
		t.Error("the ring had room")
	}
	want := map[string]uint64{}
	for i := range 40 {
		want["write "+dir+fmt.Sprint("/file", i)] = 1
	}
	r.want(t, SetFiles, want)
}

// What the ring tells is what the map has.
func TestSetEvent(t *testing.T) {
	r := newSetRoom(t, Options{}, map[Set]uint32{SetExec: 0, SetFiles: 0, SetNetwork: 0})
	events, err := r.obj.Reader()
	must(t, err)
	defer events.Close()
	l, err := net.Listen("unix", t.TempDir()+"/socket")
	must(t, err)
	defer l.Close()
	act(t, r.shell(t), "network", l.Addr().String())
	told := map[SetKey]SetEntry{}
	events.SetDeadline(time.Now())
	for {
		rec, err := events.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		must(t, err)
		if !IsSetEvent(rec.RawSample) {
			continue
		}
		var e SetEntry
		must(t, e.Decode(rec.RawSample))
		if e.Cgroup != r.id || e.Count != 1 || told[e.SetKey].Count != 0 {
			t.Errorf("told of %s: %+v", brief(&e), e)
		}
		told[e.SetKey] = e
	}
	n := 0
	must(t, r.obj.SetEntries(r.id, func(e *SetEntry) bool {
		n++
		was := told[e.SetKey]
		if was.Count == 0 || brief(&was) != brief(e) || was.FirstNs != e.FirstNs || was.Comm() != e.Comm() || was.Pid != e.Pid {
			t.Errorf("%s was not told of, or not so", brief(e))
		}
		return true
	}))
	if n == 0 || n != len(told) {
		t.Errorf("%d entries, %d were told of", n, len(told))
	}
}

// Sets are in the kernel as long as some container has them.
func TestPutSets(t *testing.T) {
	obj := load(t, Options{SetEntries: 100})
	if _, err := obj.ArmSet(Set(9)); err == nil {
		t.Error("there is no set 9")
	}
	for range 2 {
		way, err := obj.ArmSet(SetExec)
		must(t, err)
		if way != (SetWay{Type: "rawTracepoint"}) {
			t.Errorf("exec is seen by %+v", way)
		}
	}
	attached := func() bool { return len(obj.sets.attached[SetExec].links) > 0 }
	must(t, obj.TrimSets(time.Hour))
	if !attached() {
		t.Error("detached before its time")
	}
	must(t, obj.TrimSets(0))
	if attached() {
		t.Error("attached although no container has it")
	}
	must(t, obj.PutSets(1, map[Set]uint32{SetExec: 60}))
	if err := obj.PutSets(1, map[Set]uint32{SetExec: 1}); !errors.Is(err, ErrTaken) {
		t.Errorf("twice: %v", err)
	}
	if err := obj.PutSets(2, map[Set]uint32{SetExec: 60}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("more than there is: %v", err)
	}
	must(t, obj.PutSets(2, map[Set]uint32{SetExec: 40}))
	must(t, obj.DeleteSets(1))
	must(t, obj.DeleteSets(1))
	must(t, obj.TrimSets(0))
	if !attached() {
		t.Error("detached while a container has it")
	}
	if _, err := obj.SetCounts(1); err == nil {
		t.Error("a container that was deleted has counts")
	}
	must(t, obj.DeleteSets(2))
	must(t, obj.TrimSets(0))
	if attached() || obj.sets.promised != 0 {
		t.Error("attached although no container has it")
	}
	must(t, obj.PutSets(1, map[Set]uint32{SetExec: 100}))
	must(t, obj.DeleteSets(1))
	if _, err := obj.Misses(KindRawTracepoint); err != nil {
		t.Error(err)
	}
}
