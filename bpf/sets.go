package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
)

// Set is a ready-made set: the distinct things of one kind that a container
// did.
type Set uint8

// The sets, as in c/sets.h.
const (
	SetExec      = Set(setsSetSET_EXEC)
	SetLibraries = Set(setsSetSET_LIBRARIES)
	SetSyscalls  = Set(setsSetSET_SYSCALLS)
	SetNetwork   = Set(setsSetSET_NETWORK)
	SetFiles     = Set(setsSetSET_FILES)

	numSets = int(setsSetSETS)
)

var setNames = [numSets]string{"exec", "libraries", "syscalls", "network", "files"}

func (s Set) String() string {
	if int(s) < numSets {
		return setNames[s]
	}
	return fmt.Sprintf("set %d", uint8(s))
}

// ParseSet returns the set of that name.
func ParseSet(name string) (Set, bool) {
	i := slices.Index(setNames[:], name)
	return Set(max(i, 0)), i >= 0
}

// DefaultQuota is how many entries a container may have in the set. The set of
// system calls has none: its memory is what it is.
func (s Set) DefaultQuota() uint32 {
	switch s {
	case SetSyscalls:
		return 0
	case SetFiles:
		return 1024
	}
	return 256
}

// SetCounts is what the kernel counts of one set of one container.
type SetCounts struct {
	Used uint64 // entries; of syscalls, distinct numbers
	// Full: events that would have been new entries, past the quota. The same
	// thing done twice counts twice.
	Full uint64
	// Lost: events whose file or address could not be read, or for which the
	// kernel had no memory.
	Lost uint64
	// Around: operations that were handed to io_uring, where the hooks do not
	// see what is done that way.
	Around uint64
}

// SystemCalls are the system calls of one architecture that a container made.
type SystemCalls struct {
	Arch    string // x86_64, i386, x32, aarch64, arm
	Numbers []int  // rising
	Beyond  bool   // a number past those that are kept was used too
	FirstNs int64  // CLOCK_BOOTTIME of the first
	LastNs  int64  // and of the last that was new
}

// IOUring reports whether the calls set up a ring of io_uring, or used one:
// then there may be operations that no system call tells of.
func (c SystemCalls) IOUring() bool {
	for _, n := range []int{425, 426, 427} { // io_uring_setup, _enter, _register, on every architecture
		if _, ok := slices.BinarySearch(c.Numbers, n); ok {
			return true
		}
	}
	return false
}

// setHooks are the loaded and attached programs of sets, and the containers'
// maps. Nothing of it is in the kernel before the first container has a set.
type setHooks struct {
	opts    Options
	hashKey [2]uint64 // of what tells entries apart by their texts: nobody else knows it

	mu       sync.Mutex
	obj      object // spec is nil before the first use
	bare     object // the same maps, and programs that need no kernel types
	onUse    bool   // memory is taken when an entry is made
	promised uint64 // sum of the quotas
	attached [numSets]*setLinks
	rooms    map[uint64]*setRoom // by cgroup
}

// setRoom is one container's maps.
type setRoom struct {
	quotas  map[Set]uint32
	total   uint32
	state   *ebpf.Map
	entries *ebpf.Map // nil if it only has the set of system calls
}

func (h *setHooks) init(shared map[string]*ebpf.Map, o Options) {
	h.opts = o
	h.obj = object{maps: maps.Clone(shared), types: o.KernelTypes}
	var key [16]byte
	_, _ = rand.Read(key[:]) // never fails
	h.hashKey = [2]uint64{binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])}
	h.rooms = map[uint64]*setRoom{}
}

// prepare makes the maps that the programs of all sets share. With h.mu.
func (h *setHooks) prepare() error {
	if h.obj.spec != nil {
		return nil
	}
	spec, err := loadSets()
	if err != nil {
		return fmt.Errorf("read the embedded programs: %w", err)
	}
	bare, err := loadBare()
	if err != nil {
		return fmt.Errorf("read the embedded programs: %w", err)
	}
	if err := tellAncestors(h.opts.KernelTypes, spec, bare); err != nil {
		return err
	}
	for _, s := range []*ebpf.CollectionSpec{spec, bare} {
		if err := s.Variables[setsVarHashKey].Set(h.hashKey); err != nil {
			return fmt.Errorf("set the key of hashes: %w", err)
		}
	}
	h.onUse = !h.opts.ForceSetMemory && memoryOnUse()
	if h.onUse {
		spec.Maps[setsMapSetEntries].InnerMap.Flags |= noPrealloc
	}
	if h.opts.SetEntries == 0 {
		h.opts.SetEntries = 131072
		if h.onUse {
			h.opts.SetEntries = 1 << 20
		}
	}
	made := map[string]*ebpf.Map{}
	for _, name := range setMaps {
		if name == setsMapSetStates || name == setsMapSetEntries {
			resize(spec.Maps[name], h.opts.Runs)
		}
		m, err := ebpf.NewMap(spec.Maps[name])
		if err != nil {
			for _, m := range made {
				m.Close()
			}
			return fmt.Errorf("make the map %s: %w", name, err)
		}
		made[name] = m
	}
	maps.Copy(h.obj.maps, made)
	h.obj.spec = spec
	h.bare = object{spec: bare, maps: h.obj.maps, types: h.obj.types}
	return nil
}

// setMaps are the maps that the programs of all sets share, and nobody else.
var setMaps = []string{setsMapSetStates, setsMapSetEntries, setsMapDrafts, setsMapPending}

const noPrealloc = 1 // BPF_F_NO_PREALLOC of linux/bpf.h

// memoryOnUse reports whether a map may take the memory of its elements when they
// are made. From 6.1 on the kernel has an allocator that programs may use
// anywhere. It came with this map type; before, such a map makes the kernel warn.
func memoryOnUse() bool { return features.HaveMapType(ebpf.UserRingbuf) == nil }

// PutSets begins to fill the sets of a container. quotas has the sets with the
// most entries that each may have; 0 is the default. Those that are not armed are
// armed now. It is [ErrNoSpace] if all containers together would be promised more
// than there is, and [ErrTaken] if the cgroup has sets already.
func (o *Objects) PutSets(cgroup uint64, quotas map[Set]uint32) (err error) {
	h := &o.sets
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.prepare(); err != nil {
		return err
	}
	if h.rooms[cgroup] != nil {
		return fmt.Errorf("add sets: %w", ErrTaken)
	}
	room := &setRoom{quotas: map[Set]uint32{}}
	var state setsSetState
	for s, q := range quotas {
		if int(s) >= numSets {
			return fmt.Errorf("add sets: there is no %s", s)
		}
		if _, err := h.arm(s); err != nil {
			return err
		}
		if q == 0 {
			q = s.DefaultQuota()
		}
		room.quotas[s] = q
		if s == SetSyscalls {
			state.Sets[s].Quota = 1
			continue
		}
		if uint64(room.total)+uint64(q) > math.MaxUint32 {
			return fmt.Errorf("add sets: %w", ErrNoSpace)
		}
		room.total += q
		state.Sets[s].Quota = q
	}
	if h.promised+uint64(room.total) > uint64(h.opts.SetEntries) {
		return fmt.Errorf("add sets of %d entries to %d of at most %d: %w", room.total, h.promised, h.opts.SetEntries, ErrNoSpace)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.forget(cgroup, room))
		}
	}()
	if room.state, err = ebpf.NewMap(h.obj.spec.Maps[setsMapSetStates].InnerMap); err != nil {
		return fmt.Errorf("make a container's map of sets: %w", err)
	}
	if err := room.state.Put(uint32(0), &state); err != nil {
		return fmt.Errorf("set quotas: %w", err)
	}
	if room.total > 0 {
		spec := h.obj.spec.Maps[setsMapSetEntries].InnerMap.Copy()
		spec.MaxEntries = room.total
		if room.entries, err = ebpf.NewMap(spec); err != nil {
			return fmt.Errorf("make a container's map of entries: %w", err)
		}
		if err := h.obj.maps[setsMapSetEntries].Update(cgroup, room.entries, ebpf.UpdateNoExist); err != nil {
			return mapError("add a container's entries", err)
		}
	}
	if err := h.obj.maps[setsMapSetStates].Update(cgroup, room.state, ebpf.UpdateNoExist); err != nil {
		return mapError("add a container's sets", err)
	}
	h.rooms[cgroup] = room
	h.promised += uint64(room.total)
	for s := range room.quotas {
		h.attached[s].refs++
	}
	return nil
}

// DeleteSets forgets the sets of a container. Deleting those that are not there
// is no error. What saw them stays attached until [Objects.TrimSets].
func (o *Objects) DeleteSets(cgroup uint64) error {
	h := &o.sets
	h.mu.Lock()
	defer h.mu.Unlock()
	room := h.rooms[cgroup]
	if room == nil {
		return nil
	}
	delete(h.rooms, cgroup)
	h.promised -= uint64(room.total)
	for s := range room.quotas {
		h.attached[s].refs--
		h.attached[s].idle = time.Now()
	}
	return h.forget(cgroup, room)
}

func (h *setHooks) forget(cgroup uint64, room *setRoom) error {
	var errs []error
	for name, m := range map[string]*ebpf.Map{setsMapSetStates: room.state, setsMapSetEntries: room.entries} {
		if m == nil {
			continue
		}
		errs = append(errs, ignoreMissing(h.obj.maps[name].Delete(cgroup)), m.Close())
	}
	return errors.Join(errs...)
}

func (o *Objects) setRoom(cgroup uint64) (*setRoom, error) {
	o.sets.mu.Lock()
	defer o.sets.mu.Unlock()
	room := o.sets.rooms[cgroup]
	if room == nil {
		return nil, fmt.Errorf("read sets: %w", ebpf.ErrKeyNotExist)
	}
	return room, nil
}

// SetCounts reads what the kernel counts of a container's sets.
func (o *Objects) SetCounts(cgroup uint64) (map[Set]SetCounts, error) {
	room, err := o.setRoom(cgroup)
	if err != nil {
		return nil, err
	}
	var st setsSetState
	if err := room.state.Lookup(uint32(0), &st); err != nil {
		return nil, fmt.Errorf("read sets: %w", err)
	}
	counts := map[Set]SetCounts{}
	for s := range room.quotas {
		c := st.Sets[s]
		counts[s] = SetCounts{uint64(c.Used), c.Full, c.Lost, c.Around}
	}
	return counts, nil
}

// SetEntries hands each entry of a container's sets to yield until that
// returns false. The entry is only good during the call.
func (o *Objects) SetEntries(cgroup uint64, yield func(*SetEntry) bool) error {
	room, err := o.setRoom(cgroup)
	if err != nil || room.entries == nil {
		return err
	}
	// Many by one call, and each that is there throughout exactly once: one after
	// the other would begin again where one goes meanwhile.
	n := min(max(int(room.total), 16), entriesAtOnce)
	keys, values := make([]setsSetKey, n), make([]rawEntry, n)
	var e SetEntry
	var bad error // of an entry; the others are none the worse for it
	var at ebpf.MapBatchCursor
	for {
		got, err := room.entries.BatchLookup(&at, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return errors.Join(bad, fmt.Errorf("read set entries: %w", err))
		}
		for i := range got {
			if err := e.set(cgroup, &keys[i], &values[i]); err != nil {
				bad = err
				continue
			}
			if !yield(&e) {
				return nil
			}
		}
		if err != nil { // these were the last
			return bad
		}
	}
}

// entriesAtOnce is how many entries are read by one call. The kernel wants room for
// all of one bucket of its table, which are one or two.
const entriesAtOnce = 256

// SystemCalls reads the set of system calls of a container: one value per
// architecture of which any was made.
func (o *Objects) SystemCalls(cgroup uint64) ([]SystemCalls, error) {
	room, err := o.setRoom(cgroup)
	if err != nil {
		return nil, err
	}
	var st setsSetState
	if err := room.state.Lookup(uint32(0), &st); err != nil {
		return nil, fmt.Errorf("read system calls: %w", err)
	}
	var out []SystemCalls
	for abi, arch := range callArchs {
		kept := &st.Calls[abi]
		c := SystemCalls{Arch: arch, Beyond: kept.Beyond != 0, FirstNs: int64(kept.FirstNs), LastNs: int64(kept.LastNs)}
		for n, seen := range kept.Seen {
			if seen != 0 {
				c.Numbers = append(c.Numbers, n)
			}
		}
		if len(c.Numbers) > 0 || c.Beyond {
			out = append(out, c)
		}
	}
	return out, nil
}
