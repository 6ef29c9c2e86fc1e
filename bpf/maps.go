package bpf

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// Slot is a counter to be made for one (container, site).
type Slot struct {
	Site       uint32
	StopAfter  uint64        // stand down after so many hits; 0: never
	MaxRate    uint32        // stand down past so many hits within a second; 0: never
	RearmAfter time.Duration // count again so long after standing down; 0: not
	Stack      bool          // tell the user stack of the first hit
	Caller     bool          // the instruction is the first of a function, or returns from one
}

// Counter is the kernel's counter of one (container, site).
type Counter struct {
	Count   uint64
	FirstNs int64 // CLOCK_BOOTTIME; 0 while Count is 0
	LastNs  int64

	// StoodNs is since when it does not count; 0 if it does. Where it is to be
	// armed again that shows at the first hit after its time.
	StoodNs  int64
	Stood    uint32 // how often it stood down
	Standing Standing
}

// Plus is both together. Whether it counts now is c's.
func (c Counter) Plus(o Counter) Counter {
	c.Count += o.Count
	c.LastNs = max(c.LastNs, o.LastNs)
	if o.FirstNs != 0 && (c.FirstNs == 0 || o.FirstNs < c.FirstNs) {
		c.FirstNs = o.FirstNs
	}
	return c
}

// Standing says why a counter stood down the last time.
type Standing uint32

// The reasons, as in c/probity.h.
const (
	StandingAnswered = Standing(probesStandingSTANDING_ANSWERED)  // StopAfter hits were counted
	StandingTooOften = Standing(probesStandingSTANDING_TOO_OFTEN) // more than MaxRate hits came within a second
)

// Run is what the kernel counts per container.
type Run struct {
	Execs       uint64
	FirstExecNs int64 // CLOCK_BOOTTIME; 0 while Execs is 0
	LastExecNs  int64
	RingFull    uint64 // events of this container that the ring had no room for
	ExecsLost   uint64 // of these, execs
	Left        uint64 // processes that left its cgroup's subtree alive
	Untracked   uint64 // processes that could not be followed: see Options.Processes
	Processes   uint64 // that are followed now, but for those of AddProcess
	Stood       uint64 // how often one of its counters stood down
}

// ErrNoSpace reports that a map is full: the site or container is over budget.
var ErrNoSpace = errors.New("map is full")

// ErrTaken reports that there are counters already: two containers in one
// cgroup could not be told apart.
var ErrTaken = errors.New("counters are there already")

// PutRun begins to count for the container whose first process is init, or 0 if that
// is not known. From now on its execs are told.
// It is [ErrTaken] if the cgroup has a container that counts already.
func (o *Objects) PutRun(cgroup uint64, init int) error {
	if err := o.coll.Maps[probesMapRuns].Update(cgroup, &probesRun{Init: uint64(init)}, ebpf.UpdateNoExist); err != nil {
		return mapError("add container", err)
	}
	return nil
}

// Run reads the container's counters.
func (o *Objects) Run(cgroup uint64) (Run, error) {
	var r probesRun
	if err := o.coll.Maps[probesMapRuns].Lookup(cgroup, &r); err != nil {
		return Run{}, mapError("read container", err)
	}
	return Run{r.Execs, int64(r.FirstExecNs), int64(r.LastExecNs), r.RingFull, r.ExecsLost, r.Left, r.Untracked, r.Processes, r.Stood}, nil
}

// DeleteRun forgets the container. Deleting one that is not there is no error.
func (o *Objects) DeleteRun(cgroup uint64) error {
	return errors.Join(ignoreMissing(o.coll.Maps[probesMapRuns].Delete(cgroup)), o.SetOuter(cgroup, 0))
}

// SetOuter says which armed container's cgroup is the innermost around that of
// another: a process that leaves the inner one for it is still the outer one's.
// 0: there is none.
func (o *Objects) SetOuter(cgroup, outer uint64) error {
	m := o.coll.Maps[probesMapOuters]
	if outer == 0 {
		return ignoreMissing(m.Delete(cgroup))
	}
	if err := m.Put(cgroup, outer); err != nil {
		return mapError("add the container around another", err)
	}
	return nil
}

// PutSlots makes a zero counter for each (container, site), of which there must
// be none yet. A start waits for this: all are written by one call. On error none
// of them remains, but for [ErrTaken], which the first one's presence makes.
func (o *Objects) PutSlots(cgroup uint64, slots []Slot) error {
	if len(slots) == 0 {
		return nil
	}
	m := o.coll.Maps[probesMapSlots]
	keys, values := make([]probesSlotKey, len(slots)), make([]probesSlot, len(slots))
	for i, s := range slots {
		keys[i] = probesSlotKey{Cgroup: cgroup, Site: s.Site}
		v := &values[i]
		v.StopAfter, v.MaxRate, v.RearmNs = s.StopAfter, s.MaxRate, uint64(s.RearmAfter)
		if s.Stack {
			v.Flags |= uint32(probesSlotFlagsSLOT_STACK)
		}
		if s.Caller {
			v.Flags |= uint32(probesSlotFlagsSLOT_CALLER)
		}
	}
	// Batches cannot ask that an element be new. The counters of a site are made
	// together, so if one is there, all are.
	if err := m.Update(&keys[0], &values[0], ebpf.UpdateNoExist); err != nil {
		return mapError("add counter", err)
	}
	if len(slots) > 1 {
		if _, err := m.BatchUpdate(keys, values, nil); err != nil {
			return errors.Join(mapError("add counters", err), o.deleteSlots(keys))
		}
	}
	o.slots.Add(int64(len(slots)))
	return nil
}

// Slots is how many counters there are, and how many there can be, all containers
// together.
func (o *Objects) Slots() (used, most int) {
	return int(o.slots.Load()), int(o.coll.Maps[probesMapSlots].MaxEntries())
}

// Slot reads one counter.
func (o *Objects) Slot(cgroup uint64, site uint32) (Counter, error) {
	var s probesSlot
	if err := o.coll.Maps[probesMapSlots].Lookup(&probesSlotKey{Cgroup: cgroup, Site: site}, &s); err != nil {
		return Counter{}, mapError("read counter", err)
	}
	return Counter{s.Count, int64(s.FirstNs), int64(s.LastNs), int64(s.StoodNs), s.Stood, Standing(s.Standing)}, nil
}

// DeleteSlots forgets counters that PutSlots has made, once. That one is not there
// any more is no error.
func (o *Objects) DeleteSlots(cgroup uint64, sites []uint32) error {
	keys := make([]probesSlotKey, len(sites))
	for i, s := range sites {
		keys[i] = probesSlotKey{Cgroup: cgroup, Site: s}
	}
	o.slots.Add(-int64(len(sites)))
	return o.deleteSlots(keys)
}

func (o *Objects) deleteSlots(keys []probesSlotKey) error {
	m := o.coll.Maps[probesMapSlots]
	if len(keys) > 1 {
		if _, err := m.BatchDelete(keys, nil); err == nil {
			return nil
		} // it ends at the first that is not there
	}
	var errs []error
	for i := range keys {
		errs = append(errs, ignoreMissing(m.Delete(&keys[i])))
	}
	return errors.Join(errs...)
}

// Duration are the times between entry and return of one (container, site).
type Duration struct {
	Buckets   []uint64 // [i]: of 2^i to 2^(i+1)-1 ns; [0] has 0 too
	SumNs     uint64
	Count     uint64 // returns with their entry
	Unmatched uint64 // entries and returns without the other, and calls too deep or too many to follow
}

// PutDurations makes a zero duration for each (container, site). On error none
// of them remains.
func (o *Objects) PutDurations(cgroup uint64, sites []uint32) error {
	m, err := o.durations()
	if err != nil {
		return err
	}
	for i, s := range sites {
		if err := m.Update(&probesSlotKey{Cgroup: cgroup, Site: s}, &pairsDuration{}, ebpf.UpdateNoExist); err != nil {
			return errors.Join(mapError("add duration", err), o.DeleteDurations(cgroup, sites[:i]))
		}
	}
	return nil
}

// Duration reads one.
func (o *Objects) Duration(cgroup uint64, site uint32) (Duration, error) {
	m, err := o.durations()
	if err != nil {
		return Duration{}, err
	}
	var d pairsDuration
	if err := m.Lookup(&probesSlotKey{Cgroup: cgroup, Site: site}, &d); err != nil {
		return Duration{}, mapError("read duration", err)
	}
	return Duration{d.Buckets[:], d.SumNs, d.Count, d.Unmatched}, nil
}

// DeleteDurations forgets them. Deleting one that is not there is no error.
func (o *Objects) DeleteDurations(cgroup uint64, sites []uint32) error {
	if len(sites) == 0 {
		return nil
	}
	m, err := o.durations()
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range sites {
		errs = append(errs, ignoreMissing(m.Delete(&probesSlotKey{Cgroup: cgroup, Site: s})))
	}
	return errors.Join(errs...)
}

func (o *Objects) durations() (*ebpf.Map, error) {
	o.progs.mu.Lock()
	defer o.progs.mu.Unlock()
	obj, err := o.object(true)
	return obj.maps[pairsMapDurations], err
}

// SetLevels says at which depths below the root of the cgroup tree there are
// armed containers: bit n for depth n.
func (o *Objects) SetLevels(mask uint32) error {
	if err := o.coll.Maps[probesMapSettings].Put(uint32(0), probesSettings{Levels: mask, Share: o.share()}); err != nil {
		return fmt.Errorf("set cgroup depths: %w", err)
	}
	return nil
}

// Outer returns what SetOuter said.
func (o *Objects) Outer(cgroup uint64) (outer uint64, err error) {
	err = ignoreMissing(o.coll.Maps[probesMapOuters].Lookup(cgroup, &outer))
	return outer, err
}

// share is how many processes of one container are followed.
func (o *Objects) share() uint32 {
	return max(1, o.coll.Maps[probesMapProcesses].MaxEntries()/4)
}

// RingFull is how many events the ring had no room for, all containers
// together, since Load.
func (o *Objects) RingFull() (uint64, error) {
	t, err := o.totals()
	return t.RingFull, err
}

// Stood is how often a counter stood down, all containers together, since Load.
func (o *Objects) Stood() (uint64, error) {
	t, err := o.totals()
	return t.Stood, err
}

func (o *Objects) totals() (t probesTotals, err error) {
	if err := o.coll.Maps[probesMapTotals].Lookup(uint32(0), &t); err != nil {
		return t, fmt.Errorf("read totals: %w", err)
	}
	return t, nil
}

// Reader opens the ring buffer. There must be one reader at most.
func (o *Objects) Reader() (*ringbuf.Reader, error) {
	r, err := ringbuf.NewReader(o.coll.Maps[probesMapEvents])
	if err != nil {
		return nil, fmt.Errorf("open ring buffer: %w", err)
	}
	return r, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

func mapError(what string, err error) error {
	switch {
	case isNoSpace(err):
		return fmt.Errorf("%s: %w", what, ErrNoSpace)
	case errors.Is(err, ebpf.ErrKeyExist):
		return fmt.Errorf("%s: %w", what, ErrTaken)
	}
	return fmt.Errorf("%s: %w", what, err)
}
