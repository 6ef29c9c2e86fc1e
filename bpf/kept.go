package bpf

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Kept are kernel objects that an earlier process made, and that something held while
// there was none: the service manager's file descriptor store. Their programs went on
// counting.
type Kept struct {
	maps    map[string]*ebpf.Map
	progs   map[string]*ebpf.Program
	lineage []link.Link
	follow  []*ebpf.Program // of lineage
}

// What there is in a name of [Objects.Keep].
const (
	keptMap     = "map-"
	keptProgram = "program-"
	keptLineage = "lineage"
)

// Layout says what kept objects must have been made from to be gone on with: the very
// same programs, whose maps mean the same.
func Layout() string {
	h := sha256.New()
	for _, b := range [][]byte{_ProbesBytes, _LineageBytes, _PairsBytes} {
		fmt.Fprintf(h, "%d\n", len(b))
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Descriptors are what has to be kept of something, under one name. They belong to who
// made them.
type Descriptors struct {
	Name string
	FDs  []int
}

// Dup returns another descriptor of what fd is of, which is the caller's to close.
func Dup(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3) }

// Object is a map, a program or a link.
type Object interface {
	Close() error
	Pin(path string) error
}

// ErrNoObject says that a descriptor is of something else.
var ErrNoObject = errors.New("no map, program or link")

// ObjectOf returns what fd is of, with a descriptor of its own: an [*ebpf.Map], an
// [*ebpf.Program] or a [link.Link].
func ObjectOf(fd int) (Object, error) {
	what, err := kernelName(fd)
	if err != nil {
		return nil, err
	}
	own, err := Dup(fd)
	if err != nil {
		return nil, err
	}
	switch strings.TrimPrefix(path.Base(what), "anon_inode:") {
	case "bpf-map":
		return ebpf.NewMapFromFD(own)
	case "bpf-prog":
		return ebpf.NewProgramFromFD(own)
	case "bpf-link", "bpf_link":
		return link.NewFromFD(own)
	}
	return nil, errors.Join(fmt.Errorf("it is %.80q: %w", what, ErrNoObject), unix.Close(own))
}

// kernelName is what the kernel calls what fd is of.
func kernelName(fd int) (string, error) { return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)) }

// MaxRecord bounds a record in bytes.
const MaxRecord = 16 << 20

// Record returns a descriptor of a file in memory with this text, which nobody can
// change any more.
func Record(text []byte) (fd int, err error) {
	if fd, err = unix.MemfdCreate("probity-record", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	if _, err = unix.Pwrite(fd, text, 0); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("write a record: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// Keep lists what must be kept for counters to go on, besides the links of sites: maps,
// the programs of those links, and what follows processes. It is nil where this
// kernel's links of sites are not such that they can be kept (before Linux 6.6).
func (o *Objects) Keep(l *Lineage) []Descriptors {
	o.progs.mu.Lock()
	defer o.progs.mu.Unlock()
	multi := o.progs.shared[sharedKey{name: probesProgUprobeMulti}]
	if o.missing != nil || multi == nil {
		return nil
	}
	out := []Descriptors{{keptProgram + probesProgUprobeMulti, []int{multi.FD()}}}
	for _, name := range shared {
		out = append(out, Descriptors{keptMap + name, []int{o.coll.Maps[name].FD()}})
	}
	var fds []int
	for _, k := range l.links {
		for _, one := range []link.Link{k, secondOf(k)} {
			if one == nil {
				continue
			}
			fd, err := FD(one)
			if err != nil {
				return nil // of a kind that is not the kernel's own
			}
			fds = append(fds, fd)
		}
	}
	for _, p := range l.progs {
		fds = append(fds, p.FD())
	}
	if l.ExecErr != nil || l.ProcessErr != nil || l.MoveErr != nil || l.Exec != ExecRawTracepoint {
		return nil // what is not seen now would be taken for seen
	}
	return append(out, Descriptors{keptLineage, fds})
}

func secondOf(k link.Link) link.Link {
	if p, ok := k.(pair); ok {
		return p.second
	}
	return nil
}

// FD is a link's descriptor. It belongs to the link.
func FD(l link.Link) (int, error) {
	switch k := l.(type) {
	case pair:
		return FD(k.Link)
	case interface{ FD() int }:
		return k.FD(), nil
	}
	return 0, fmt.Errorf("a %T has no descriptor of its own", l)
}

// TakeKept takes descriptors that were listed by [Objects.Keep], by their names, and
// takes them over: also with an error they are closed. Names that are not of Keep are
// left alone.
func TakeKept(files map[string][]*os.File) (_ *Kept, err error) {
	k := &Kept{maps: map[string]*ebpf.Map{}, progs: map[string]*ebpf.Program{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("take over kernel objects: %w", err), k.Close())
		}
	}()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		own := name == keptLineage || strings.HasPrefix(name, keptMap) || strings.HasPrefix(name, keptProgram)
		for _, f := range files[name] {
			if !own {
				continue
			}
			if e := k.take(name, f); e != nil && err == nil {
				err = fmt.Errorf("%s: %w", name, e)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	for _, name := range shared {
		if k.maps[name] == nil {
			return nil, fmt.Errorf("the map %s is not among them", name)
		}
	}
	switch {
	case k.progs[probesProgUprobeMulti] == nil:
		return nil, errors.New("the program is not among them")
	case len(k.lineage) < 5 || len(k.follow) < len(k.lineage):
		return nil, fmt.Errorf("%d links and %d programs follow processes", len(k.lineage), len(k.follow))
	}
	return k, nil
}

func (k *Kept) take(name string, f *os.File) error {
	defer f.Close()
	o, err := ObjectOf(int(f.Fd()))
	if err != nil {
		return err
	}
	// A second one of a name would take the first one's place, and nobody would close it.
	switch o := o.(type) {
	case *ebpf.Map:
		if of, ok := strings.CutPrefix(name, keptMap); ok && k.maps[of] == nil {
			k.maps[of] = o
			return nil
		}
	case *ebpf.Program:
		if name == keptLineage {
			k.follow = append(k.follow, o)
			return nil
		}
		if of, ok := strings.CutPrefix(name, keptProgram); ok && k.progs[of] == nil {
			k.progs[of] = o
			return nil
		}
	case link.Link:
		if name == keptLineage {
			k.lineage = append(k.lineage, o)
			return nil
		}
	}
	what, err := kernelName(int(f.Fd()))
	return errors.Join(fmt.Errorf("it is %.80q", what), err, o.Close())
}

// Close lets go of all that was not taken over. It is idempotent.
func (k *Kept) Close() error {
	if k == nil {
		return nil
	}
	var errs []error
	for _, l := range k.lineage {
		errs = append(errs, l.Close())
	}
	for _, p := range slices.Concat(k.follow, slices.Collect(maps.Values(k.progs))) {
		errs = append(errs, p.Close())
	}
	for _, m := range k.maps {
		errs = append(errs, m.Close())
	}
	*k = Kept{}
	return errors.Join(errs...)
}

// into has a collection that is about to be loaded use the kept maps and programs.
func (k *Kept) into(spec *ebpf.CollectionSpec) map[string]*ebpf.Map {
	for name, m := range k.maps {
		spec.Maps[name].MaxEntries, spec.Maps[name].Flags = m.MaxEntries(), m.Flags()
	}
	for name := range k.progs {
		delete(spec.Programs, name)
	}
	return k.maps
}

// KeptState is what an earlier process left in the kernel.
type KeptState struct {
	Runs   map[uint64][]uint32 // by cgroup of which it counts, the sites that have a counter
	Last   uint32              // the highest number of those
	Levels uint32              // as SetLevels
}

// Inherited returns what an earlier process had left when these objects were loaded, or
// nil if they are new.
func (o *Objects) Inherited() *KeptState { return o.left }

// readLeft reads that from the maps. The counters of all of it count as made.
func (o *Objects) readLeft() (*KeptState, error) {
	st := &KeptState{Runs: map[uint64][]uint32{}}
	var id uint64
	var run probesRun
	runs := o.coll.Maps[probesMapRuns].Iterate()
	for runs.Next(&id, &run) {
		st.Runs[id] = nil
	}
	var key probesSlotKey
	var slot probesSlot
	n, orphans := 0, map[uint64][]uint32{} // of a run that was being taken away
	slots := o.coll.Maps[probesMapSlots].Iterate()
	for slots.Next(&key, &slot) {
		st.Last = max(st.Last, key.Site)
		n++
		if sites, ok := st.Runs[key.Cgroup]; ok {
			st.Runs[key.Cgroup] = append(sites, key.Site)
		} else {
			orphans[key.Cgroup] = append(orphans[key.Cgroup], key.Site)
		}
	}
	if err := errors.Join(runs.Err(), slots.Err()); err != nil {
		return nil, fmt.Errorf("read kept counters: %w", err)
	}
	var s probesSettings
	if err := o.coll.Maps[probesMapSettings].Lookup(uint32(0), &s); err != nil {
		return nil, fmt.Errorf("read kept depths: %w", err)
	}
	st.Levels = s.Levels
	o.slots.Store(int64(n))
	for cgroup, sites := range orphans {
		if err := o.DeleteSlots(cgroup, sites); err != nil {
			return nil, fmt.Errorf("take away kept counters: %w", err)
		}
	}
	return st, nil
}

// Forget takes away what an earlier process counted for a container that nobody has
// taken up. Which processes are the container's stays known until they end.
func (o *Objects) Forget(cgroup uint64, sites []uint32) error {
	return errors.Join(o.DeleteSlots(cgroup, sites), o.DeleteRun(cgroup))
}

// HasSlots tells the counters of a container that are there, which an earlier process
// has made, from those that are to be made.
func (o *Objects) HasSlots(cgroup uint64, slots []Slot) (had map[uint32]bool, fresh []Slot, err error) {
	had = map[uint32]bool{}
	for _, s := range slots {
		var v probesSlot
		switch err := o.coll.Maps[probesMapSlots].Lookup(&probesSlotKey{Cgroup: cgroup, Site: s.Site}, &v); {
		case err == nil:
			had[s.Site] = true
		case errors.Is(err, ebpf.ErrKeyNotExist):
			fresh = append(fresh, s)
		default:
			return nil, nil, mapError("read counter", err)
		}
	}
	return had, fresh, nil
}

// takeUpLineage is AttachLineage with what an earlier process attached.
func (o *Objects) takeUpLineage() *Lineage {
	l := &Lineage{Exec: ExecRawTracepoint, links: o.kept.lineage, progs: o.kept.follow}
	o.kept.lineage, o.kept.follow = nil, nil
	return l
}
