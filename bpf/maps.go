package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// Counter is the kernel's counter of one (container, site).
type Counter struct {
	Count   uint64
	FirstNs int64 // CLOCK_BOOTTIME; 0 while Count is 0
	LastNs  int64
}

// Run is what the kernel counts per container.
type Run struct {
	Execs       uint64
	FirstExecNs int64 // CLOCK_BOOTTIME; 0 while Execs is 0
	LastExecNs  int64
	RingFull    uint64 // events of this container that the ring had no room for
	Left        uint64 // processes that left its cgroup's subtree alive
	Untracked   uint64 // processes that could not be followed: see Options.Processes
}

// ErrNoSpace reports that a map is full: the site or container is over budget.
var ErrNoSpace = errors.New("map is full")

// ErrTaken reports that there are counters already: two containers in one
// cgroup could not be told apart.
var ErrTaken = errors.New("counters are there already")

// PutRun begins to count for the container. From now on its execs are told.
// It is [ErrTaken] if the cgroup has a container that counts already.
func (o *Objects) PutRun(cgroup uint64) error {
	if err := o.coll.Maps[probesMapRuns].Update(cgroup, probesRun{}, ebpf.UpdateNoExist); err != nil {
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
	return Run{r.Execs, int64(r.FirstExecNs), int64(r.LastExecNs), r.RingFull, r.Left, r.Untracked}, nil
}

// DeleteRun forgets the container. Deleting one that is not there is no error.
func (o *Objects) DeleteRun(cgroup uint64) error {
	return ignoreMissing(o.coll.Maps[probesMapRuns].Delete(cgroup))
}

// PutSlots makes a zero counter for each (container, site). On error none of
// them remains.
func (o *Objects) PutSlots(cgroup uint64, sites []uint32) error {
	m := o.coll.Maps[probesMapSlots]
	for i, s := range sites {
		if err := m.Update(probesSlotKey{Cgroup: cgroup, Site: s}, probesSlot{}, ebpf.UpdateNoExist); err != nil {
			return errors.Join(mapError("add counter", err), o.DeleteSlots(cgroup, sites[:i]))
		}
	}
	return nil
}

// Slot reads one counter.
func (o *Objects) Slot(cgroup uint64, site uint32) (Counter, error) {
	var s probesSlot
	if err := o.coll.Maps[probesMapSlots].Lookup(probesSlotKey{Cgroup: cgroup, Site: site}, &s); err != nil {
		return Counter{}, mapError("read counter", err)
	}
	return Counter{s.Count, int64(s.FirstNs), int64(s.LastNs)}, nil
}

// DeleteSlots forgets counters. Deleting one that is not there is no error.
func (o *Objects) DeleteSlots(cgroup uint64, sites []uint32) error {
	var errs []error
	for _, s := range sites {
		errs = append(errs, ignoreMissing(o.coll.Maps[probesMapSlots].Delete(probesSlotKey{Cgroup: cgroup, Site: s})))
	}
	return errors.Join(errs...)
}

// SetLevels says at which depths below the root of the cgroup tree there are
// armed containers: bit n for depth n.
func (o *Objects) SetLevels(mask uint32) error {
	if err := o.coll.Maps[probesMapSettings].Put(uint32(0), probesSettings{Levels: mask}); err != nil {
		return fmt.Errorf("set cgroup depths: %w", err)
	}
	return nil
}

// RingFull is how many events the ring had no room for, all containers
// together, since Load.
func (o *Objects) RingFull() (uint64, error) {
	var t probesTotals
	if err := o.coll.Maps[probesMapTotals].Lookup(uint32(0), &t); err != nil {
		return 0, fmt.Errorf("read totals: %w", err)
	}
	return t.RingFull, nil
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
