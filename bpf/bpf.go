// Package bpf holds the kernel side of Probity (the C programs below c/, their
// compiled objects) and the thin Go side that loads them and reads what they
// wrote.
//
// In: nothing but the running kernel. Out: [Objects], loaded maps and programs
// with typed access, and [Event]s decoded from the ring buffer. On return from
// Load everything is in the kernel and nothing is attached yet; Close takes it
// all away. The package trusts the kernel. It does not decide what to attach
// where: bpf/probe does.
//
// Counters are the truth and the ring carries detail only: a full ring loses
// the process name of a first hit, which is counted, and never a count.
package bpf

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
)

// Options sizes the maps. The zero value is the default in parentheses.
type Options struct {
	Slots     uint32 // (container, site) counters (131072: 22 MiB, before Linux 6.1 also without any counter)
	Runs      uint32 // armed containers (4096)
	Processes uint32 // processes of all armed containers (32768), of which one may have a quarter
	RingBytes uint32 // ring buffer, a power of two and a multiple of the page size (1 MiB)
	// KernelTypes are the types of this kernel's structures, for kernels that
	// do not offer their own (nil: the kernel's own). Without any, what reads
	// such structures is not loaded, and the rest is.
	KernelTypes *btf.Spec
	// SetEntries bounds what all containers' quotas of set entries may come to,
	// about 600 bytes each (1048576 where the kernel takes the memory when an
	// entry is made, 131072 before Linux 6.1, where it is taken beforehand).
	SetEntries uint32
	// ForceSet leaves only one way to see sets: "fentry", "kprobe",
	// "rawTracepoint" or "tracepoint".
	ForceSet string
	// ForceSetMemory acts as if the kernel took the entries' memory beforehand.
	ForceSetMemory bool
	// ForceSingle acts as if the kernel had no uprobe_multi links, so that the
	// other rung of the ladder can be tested on any kernel.
	ForceSingle bool
	// ForceFixedSite acts as if the kernel had no attach cookies. Only for
	// tests: kernels that have them may preempt a uprobe's program, and then
	// two stubs on one processor could be taken for each other.
	ForceFixedSite bool
	// ForceNoExec acts as if the kernel had neither way to see execs.
	ForceNoExec bool
	// ForceNoMoves acts as if it could not be seen that a process leaves its
	// container's cgroup, as without kernel types.
	ForceNoMoves bool
	// Kept are an earlier process's objects, to be gone on with. Load takes them over.
	Kept *Kept
}

// MaxLevel is the depth of a container's cgroup that can be armed, exclusive.
const MaxLevel = 32 // MAX_LEVEL in c/probity.h; pinned by a test

// Objects are the loaded maps and programs. Safe for concurrent use.
type Objects struct {
	coll    *ebpf.Collection
	sites   object
	pairs   object
	lineage object
	missing error // why there is no uprobe_multi
	cookies bool  // a perf link can tell a program its site
	noExec  bool
	noMoves bool
	kept    *Kept        // what was taken over; nil if all is new
	left    *KeptState   // what it had counted
	slots   atomic.Int64 // counters that were made

	progs programs
	sets  setHooks
}

// shared are the maps that the programs of several objects use (c/maps.h).
var shared = []string{probesMapStubCookie, probesMapSlots, probesMapRuns, probesMapOuters, probesMapProcesses, probesMapSettings, probesMapTotals, probesMapEvents}

// object is one compiled file of c/, whose programs are loaded one by one.
type object struct {
	spec *ebpf.CollectionSpec
	maps map[string]*ebpf.Map // the shared ones

	types *btf.Spec  // Options.KernelTypes
	cache *btf.Cache // of the kernel's own types, for several loads; nil: each reads them
}

// ErrUnsupported is wrapped by Load when the kernel refuses what every probe
// type needs.
var ErrUnsupported = errors.New("kernel refuses eBPF")

// Load loads the programs and maps into the kernel. It needs CAP_BPF and
// CAP_PERFMON, or CAP_SYS_ADMIN before Linux 5.8.
func Load(o Options) (*Objects, error) {
	if err := rlimit.RemoveMemlock(); err != nil { // a no-op from 5.11 on
		return nil, fmt.Errorf("raise the memory lock limit: %w", err)
	}
	spec, err := loadProbes()
	if err != nil {
		return nil, fmt.Errorf("read the embedded programs: %w", err)
	}
	resize(spec.Maps[probesMapSlots], o.Slots)
	if memoryOnUse() { // a counter is made before its site is armed, and never by a program
		spec.Maps[probesMapSlots].Flags |= noPrealloc
	}
	resize(spec.Maps[probesMapRuns], o.Runs)
	resize(spec.Maps[probesMapOuters], o.Runs)
	resize(spec.Maps[probesMapProcesses], o.Processes)
	resize(spec.Maps[probesMapEvents], o.RingBytes)

	lineage, err := loadLineage()
	if err != nil {
		return nil, fmt.Errorf("read the embedded programs: %w", err)
	}
	pairs, err := loadPairs()
	if err != nil {
		return nil, fmt.Errorf("read the embedded programs: %w", err)
	}
	if err := tellAncestors(o.KernelTypes, spec, lineage, pairs); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	first := spec.Copy()
	for name := range first.Programs {
		if name != probesProgUprobeMulti && name != probesProgUprobeSingle {
			delete(first.Programs, name) // loaded when first asked for
		}
	}
	obj := &Objects{noExec: o.ForceNoExec, noMoves: o.ForceNoMoves}
	if o.ForceSingle {
		obj.missing = errors.New("switched off by option")
	} else if err := features.HaveBPFLinkUprobeMulti(); err != nil {
		obj.missing = err
	}
	if obj.missing != nil {
		delete(first.Programs, probesProgUprobeMulti)
	}
	obj.cookies = !o.ForceFixedSite && features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetAttachCookie) == nil
	if !obj.cookies {
		delete(first.Programs, probesProgUprobeSingle)
	}
	options := ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{KernelTypes: o.KernelTypes}}
	if obj.kept = o.Kept; obj.kept != nil {
		if obj.missing != nil {
			return nil, fmt.Errorf("go on with kept objects: %w", obj.missing)
		}
		options.MapReplacements = obj.kept.into(first)
	}
	coll, err := ebpf.NewCollectionWithOptions(first, options)
	if err != nil {
		return nil, fmt.Errorf("%w: load programs: %w", ErrUnsupported, err)
	}
	// The programs hold what they need of .rodata; the descriptors and their
	// memory mappings are of no use to us.
	coll.Variables = nil
	for name, m := range coll.Maps {
		if !slices.Contains(shared, name) {
			m.Close()
			delete(coll.Maps, name)
		}
	}
	obj.coll = coll
	obj.progs.shared = map[sharedKey]*ebpf.Program{}
	for name, p := range coll.Programs {
		obj.progs.shared[sharedKey{name: name}] = p
	}
	coll.Programs = nil
	if obj.kept != nil {
		for name, p := range obj.kept.progs {
			obj.progs.shared[sharedKey{name: name}] = p
		}
		for _, m := range obj.kept.maps { // the collection has its own descriptors
			m.Close()
		}
		obj.kept.progs, obj.kept.maps = nil, nil
	}
	obj.sites = object{spec: spec, maps: coll.Maps, types: o.KernelTypes}
	obj.pairs = object{spec: pairs, maps: maps.Clone(coll.Maps), types: o.KernelTypes}
	obj.lineage = object{spec: lineage, maps: coll.Maps, types: o.KernelTypes}
	obj.sets.init(coll.Maps, o)
	if obj.kept != nil {
		if obj.left, err = obj.readLeft(); err != nil {
			return nil, errors.Join(err, obj.Close())
		}
	}
	return obj, nil
}

func resize(m *ebpf.MapSpec, n uint32) {
	if n != 0 {
		m.MaxEntries = n
	}
}

// Close unloads everything. Links made with these programs must be closed
// first, or they keep the programs alive.
func (o *Objects) Close() error {
	err := errors.Join(o.sets.close(), o.kept.Close())
	o.progs.mu.Lock()
	defer o.progs.mu.Unlock()
	for _, p := range o.progs.shared {
		p.Close()
	}
	for _, m := range o.progs.stubbed {
		m.Close()
	}
	for _, name := range []string{pairsMapDurations, pairsMapCalls} {
		if m := o.pairs.maps[name]; m != nil {
			m.Close()
		}
	}
	o.coll.Close()
	return err
}

// load loads one program that shares the maps.
func (o object) load(name string, adjust func(*ebpf.CollectionSpec) error) (*ebpf.Program, error) {
	spec := o.spec.Copy()
	for n := range spec.Programs {
		if n != name {
			delete(spec.Programs, n)
		}
	}
	if adjust != nil {
		if err := adjust(spec); err != nil {
			return nil, fmt.Errorf("adjust %s: %w", name, err)
		}
	}
	maps := map[string]*ebpf.Map{}
	for n := range spec.Maps {
		if m := o.maps[n]; m != nil {
			maps[n] = m
			spec.Maps[n].MaxEntries, spec.Maps[n].Flags = m.MaxEntries(), m.Flags() // as Load made it
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps, Cache: o.cache, Programs: ebpf.ProgramOptions{KernelTypes: o.types}})
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", name, err)
	}
	prog := coll.DetachProgram(name)
	coll.Close()
	return prog, nil
}
