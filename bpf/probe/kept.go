package probe

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/evidence"
)

// Keeper has somebody outside hold descriptors, so that what they are of outlives this
// process: the service manager.
type Keeper interface {
	// Keep has copies of them held, under their name. It returns at once.
	Keep(bpf.Descriptors)
	// Unkeep returns when nobody holds what was kept under these names, or after a bound.
	Unkeep(names ...string)
	// Sync returns when all that was to be kept is on its way.
	Sync()
	// Run does what waits to be done until ctx ends.
	Run(ctx context.Context) error
}

// A file's links are kept with what has to be known of them. Kept are those of files of
// layers: one that its container may write is probed under a lease, which ends with
// this process, and nobody would detach before it is written. Links whose hits are
// timed are not, nor are probes on the kernel and sets.

// KeptFiles begins the names of what is kept of files.
const KeptFiles = "file-"

// keptFile is what the next process has to know of links.
type keptFile struct {
	Probe   string      `json:"probe"`
	Path    string      `json:"path"`
	Dev     uint64      `json:"dev"`
	Ino     uint64      `json:"ino"`
	Size    int64       `json:"size"`
	Mtime   [2]int64    `json:"mtime"`
	Ctime   [2]int64    `json:"ctime"`
	Links   int         `json:"links"`
	Points  []keptPoint `json:"points"`
	Refused []keptNo    `json:"refused,omitempty"`
}

type keptPoint struct {
	Offset    uint64 `json:"offset"`
	Ret       bool   `json:"ret,omitempty"`
	Semaphore uint64 `json:"semaphore,omitempty"`
	Site      uint32 `json:"site"`
}

type keptNo struct {
	Offset uint64                  `json:"offset"`
	Ret    bool                    `json:"ret,omitempty"`
	Reason evidence.NotArmedReason `json:"reason"`
	Detail string                  `json:"detail"`
}

// placesKey is the bytes of the points' places.
func placesKey(points []point) string {
	var bytes []byte
	for _, p := range points {
		bytes = binary.LittleEndian.AppendUint64(bytes, p.offset)
		bytes = binary.LittleEndian.AppendUint64(bytes, p.semaphore)
		bytes = strconv.AppendBool(strconv.AppendBool(bytes, p.ret), p.exit)
	}
	return string(bytes)
}

// keep has the file's links held, as they are now. With mu held.
func (s *sharedFile) keep(e *Engine) {
	k := e.cfg.Keeper
	if k == nil || !s.keepable || s.att.kept == len(s.att.links) {
		return
	}
	if s.att.unkeep != nil {
		s.att.unkeep()
		s.att.unkeep, s.att.kept = nil, 0
	}
	d, err := s.descriptors()
	if err != nil {
		e.cfg.Log.Warn("have links kept", "file", s.path, "err", err)
		return
	}
	defer unix.Close(d.FDs[0])
	d.Name = fmt.Sprint(KeptFiles, e.keptFiles.Add(1))
	k.Keep(d)
	s.att.kept, s.att.unkeep = len(s.att.links), func() { k.Unkeep(d.Name) }
}

// descriptors are a new record of the links, which is the caller's to close, and the
// links'.
func (s *sharedFile) descriptors() (d bpf.Descriptors, err error) {
	r := keptFile{
		Probe: s.key.probe, Path: s.path, Dev: s.stamp.dev, Ino: s.stamp.ino, Size: s.stamp.size,
		Mtime: [2]int64{s.stamp.mtime.Sec, s.stamp.mtime.Nsec}, Ctime: [2]int64{s.stamp.ctime.Sec, s.stamp.ctime.Nsec}, Links: len(s.att.links),
	}
	for _, p := range s.points {
		r.Points = append(r.Points, keptPoint{p.offset, p.ret, p.semaphore, p.at.Site})
	}
	for p, no := range s.att.refused {
		r.Refused = append(r.Refused, keptNo{p.offset, p.ret, no.reason, no.detail})
	}
	text, err := json.Marshal(r)
	if err != nil {
		return d, err
	}
	fd, err := bpf.Record(text)
	if err != nil {
		return d, err
	}
	d.FDs = []int{fd}
	for _, l := range s.att.links {
		one, lerr := bpf.FD(l)
		err = errors.Join(err, lerr)
		d.FDs = append(d.FDs, one)
	}
	if err != nil {
		unix.Close(fd)
	}
	return d, err
}

// inherit takes over what an earlier engine left: the runs that it counts for, and the
// links of files. files are closed.
func (e *Engine) inherit(left *bpf.KeptState, files map[string][]*os.File) {
	e.next, e.keptLevels, e.keptRuns = left.Last, left.Levels, left.Runs
	for name, list := range files {
		n, err := strconv.ParseUint(strings.TrimPrefix(name, KeptFiles), 10, 63)
		if !strings.HasPrefix(name, KeptFiles) || err != nil {
			continue
		}
		if n > e.keptFiles.Load() {
			e.keptFiles.Store(n)
		}
		s, err := takeFile(list)
		if err == nil && e.files[s.key] != nil {
			err = errors.Join(errors.New("there are links to the file already"), s.att.close())
		}
		if err != nil {
			e.cfg.Log.Warn("links that were kept are not gone on with", "name", name, "err", err)
			if e.cfg.Keeper != nil {
				e.cfg.Keeper.Unkeep(name)
			}
			continue
		}
		for _, p := range s.points {
			e.next = max(e.next, p.at.Site)
		}
		if k := e.cfg.Keeper; k != nil {
			s.att.kept, s.att.unkeep = len(s.att.links), func() { k.Unkeep(name) }
		}
		s.idleSince = e.cfg.BootTime()
		e.files[s.key] = s
	}
}

// takeFile makes a shared file of what was kept of one. The files are closed.
func takeFile(list []*os.File) (_ *sharedFile, err error) {
	s := &sharedFile{keepable: true, inherited: true}
	defer func() {
		for _, f := range list {
			f.Close()
		}
		if err != nil {
			err = errors.Join(err, s.att.close())
		}
	}()
	var r *keptFile
	for _, f := range list {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return nil, err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			if r != nil {
				return nil, errors.New("it has two records")
			}
			if r, err = readRecord(f, st.Size); err != nil {
				return nil, err
			}
			continue
		}
		o, err := bpf.ObjectOf(int(f.Fd()))
		if err != nil {
			return nil, fmt.Errorf("a link: %w", err)
		}
		l, ok := o.(link.Link)
		if !ok {
			return nil, errors.Join(errors.New("a link that is no uprobe_multi"), o.Close())
		}
		s.att.links = append(s.att.links, l)
		if info, err := l.Info(); err != nil || info.Type != link.UprobeMultiType {
			return nil, errors.Join(errors.New("a link that is no uprobe_multi"), err)
		}
	}
	if r == nil || r.Links != len(s.att.links) || len(s.att.links) == 0 {
		return nil, fmt.Errorf("%d links, and not what its record says", len(s.att.links))
	}
	s.path, s.stamp = r.Path, stamp{r.Dev, r.Ino, r.Size, unix.Timespec{Sec: r.Mtime[0], Nsec: r.Mtime[1]}, unix.Timespec{Sec: r.Ctime[0], Nsec: r.Ctime[1]}}
	s.att.refused = map[place]refusal{}
	for _, p := range r.Points {
		s.points = append(s.points, point{place: place{offset: p.Offset, ret: p.Ret}, semaphore: p.Semaphore, at: bpf.At{Site: p.Site}})
	}
	for _, no := range r.Refused {
		s.att.refused[place{offset: no.Offset, ret: no.Ret}] = refusal{no.Reason, no.Detail}
	}
	s.key = fileKey{r.Dev, r.Ino, r.Probe, placesKey(s.points)}
	return s, nil
}

// readRecord reads what [sharedFile.descriptors] wrote. Only who can be this service can
// have written it; it is bounded all the same.
func readRecord(f *os.File, size int64) (*keptFile, error) {
	if size <= 0 || size > bpf.MaxRecord {
		return nil, fmt.Errorf("a record of %d bytes", size)
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, size))
	if err != nil {
		return nil, err
	}
	r := &keptFile{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("its record: %w", err)
	}
	if len(r.Points) == 0 {
		return nil, errors.New("a record without points")
	}
	return r, nil
}

// takeUp goes on with links that an earlier engine made, if they are proven to be
// armed: nothing can have detached them meanwhile. With mu held.
func (s *sharedFile) takeUp(e *Engine, lower *os.File) error {
	s.inherited = false
	var err error
	if s.canary, err = newCanary(lower, s.offsets(), len(e.machine.breakpoint)); err != nil {
		return fmt.Errorf("map %s: %w", s.path, err)
	}
	lost, err := s.lost(e.machine)
	if err == nil && lost > 0 {
		err = fmt.Errorf("%d of the sites do not read as a breakpoint", lost)
	}
	if err != nil {
		return errors.Join(err, s.att.close(), s.canary.close())
	}
	s.ready, s.goesOn, s.proven = true, true, 0
	return nil
}

// Keep lists what must be held besides links of files; nil if that is of no use here.
func (e *Engine) Keep() []bpf.Descriptors { return e.obj.Keep(e.lineage) }

// Kept reports whether an earlier process counts for a container's cgroup, and nobody has
// taken it up yet.
func (e *Engine) Kept(cgroup uint64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, kept := e.keptRuns[cgroup]
	return kept
}

// claim ends that an earlier process's counters of a cgroup wait for somebody.
func (e *Engine) claim(cgroup uint64) (sites []uint32, kept bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	sites, kept = e.keptRuns[cgroup]
	delete(e.keptRuns, cgroup)
	return sites, kept
}

// KeptCounter is a counter that went on for a container that has ended.
type KeptCounter struct {
	Probe, Path string // of the file by one of its names
	Site        uint32 // its number
	Offset      uint64
	Return      bool // by the kernel's own return probe
	bpf.Counter
}

// ForgetKept takes away what an earlier process counted for a container that has ended,
// and returns it: counters of files, and of its execs.
func (e *Engine) ForgetKept(cgroup uint64) (counters []KeptCounter, execs bpf.Counter, err error) {
	ids, kept := e.claim(cgroup)
	if !kept {
		return nil, execs, nil
	}
	run, err := e.obj.Run(cgroup)
	execs = bpf.Counter{Count: run.Execs, FirstNs: run.FirstExecNs, LastNs: run.LastExecNs}
	errs := []error{err}
	places := map[uint32]KeptCounter{}
	e.mu.Lock()
	for _, s := range e.files {
		for _, p := range s.points { // which never change
			places[p.at.Site] = KeptCounter{Probe: s.key.probe, Path: s.path, Offset: p.offset, Return: p.ret}
		}
	}
	e.mu.Unlock()
	for _, id := range ids {
		k, known := places[id]
		c, err := e.obj.Slot(cgroup, id)
		if errs = append(errs, err); err == nil && (known || c.Count > 0) {
			k.Counter, k.Site = c, id
			counters = append(counters, k)
		}
	}
	return counters, execs, errors.Join(append(errs, e.obj.Forget(cgroup, ids))...)
}

// KeptIsOver takes away all that an earlier process left and nobody has taken up.
func (e *Engine) KeptIsOver() error {
	e.mu.Lock()
	left := e.keptRuns
	e.keptRuns, e.keptLevels = nil, 0
	e.mu.Unlock()
	var errs []error
	for cgroup, sites := range left {
		errs = append(errs, e.obj.Forget(cgroup, sites))
	}
	return errors.Join(append(errs, e.level(AnyLevel, 0))...)
}
