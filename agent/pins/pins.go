// Package pins has the kernel hold BPF objects for the next process of this service,
// where no service manager does: as pins in a directory of a BPF file system.
//
// In: descriptors of maps, programs and links, and of records in memory ([bpf.Record]),
// under a name. Out: a directory for each name, with a pin for each descriptor; of a
// record a map with its text, frozen. All of it is gone with the boot, or with [Store.Drop].
// Unlike the service manager it cannot hold sockets.
//
// It trusts root: the directory must be its process's own, 0700, below one in which
// nobody else can replace it. It is not a control: what comes back is what somebody put
// there who could.
package pins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/pin"
	"golang.org/x/sys/unix"

	"probity/bpf"
)

const (
	maxNames = 1 << 16
	record   = "record" // the pin of a record's text
	unready  = "new-"   // begins the names of what is not complete
)

// Store pins below a directory, which no other process uses while it is open.
type Store struct {
	dir string
	own *os.File // the directory, locked
	log *slog.Logger
	mu  sync.Mutex
}

// Open makes the directory if it is not there. Its parent must be on a BPF file system.
func Open(dir string, log *slog.Logger) (_ *Store, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("keep BPF objects in %s: %w", dir, err)
		}
	}()
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
		return nil, errors.New("want an absolute path, as short as it can be")
	}
	parent := filepath.Dir(dir)
	var fsys unix.Statfs_t
	if err := unix.Statfs(parent, &fsys); err != nil {
		return nil, fmt.Errorf("look at %s: %w", parent, err)
	}
	if fsys.Type != unix.BPF_FS_MAGIC {
		return nil, fmt.Errorf("%s is not on a BPF file system: mount one (mount -t bpf bpf /sys/fs/bpf)", parent)
	}
	if err := checkOwner(parent, func(mode uint32) bool { return mode&0o022 == 0 || mode&unix.S_ISVTX != 0 }); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := checkOwner(dir, func(mode uint32) bool { return mode&0o077 == 0 }); err != nil {
		return nil, err
	}
	own, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(own.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock it, which another agent may have done: %w", err), own.Close())
	}
	return &Store{dir: dir, own: own, log: log}, nil
}

// checkOwner checks that a directory is root's or this process's, and its mode.
func checkOwner(dir string, mode func(uint32) bool) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is no directory", dir)
	case st.Uid != 0 && st.Uid != uint32(os.Geteuid()):
		return fmt.Errorf("%s belongs to uid %d", dir, st.Uid)
	case !mode(st.Mode):
		return fmt.Errorf("others than its owner may change %s (mode %04o)", dir, st.Mode&0o7777)
	}
	return nil
}

// Take returns what is there, by name. Pins stay where they are. What cannot be opened is
// left out, and is for who misses it to say; what is not complete is removed.
func (s *Store) Take() (map[string][]*os.File, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	out := map[string][]*os.File{}
	for _, name := range names {
		if strings.HasPrefix(name, unready) {
			s.remove(name)
			continue
		}
		files, err := s.take(name)
		if err != nil {
			s.log.Warn("what was kept cannot be opened", "name", name, "err", err)
		}
		out[name] = files
	}
	return out, nil
}

func (s *Store) names() ([]string, error) {
	d, err := os.Open(s.dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxNames + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("list %s: %w", s.dir, err)
	}
	if len(names) > maxNames {
		return nil, fmt.Errorf("list %s: more than %d names", s.dir, maxNames)
	}
	slices.Sort(names)
	return names, nil
}

func (s *Store) take(name string) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			files = nil
		}
	}()
	path := filepath.Join(s.dir, name)
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	// A link's place among the others means something.
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return number(a.Name()) - number(b.Name()) })
	for _, e := range entries {
		o, err := pin.Load(filepath.Join(path, e.Name()), nil)
		if err != nil {
			return files, err
		}
		f, err := fileOf(o, e.Name() == record)
		if err = errors.Join(err, o.Close()); err != nil {
			return files, fmt.Errorf("%s: %w", e.Name(), err)
		}
		files = append(files, f)
	}
	return files, nil
}

// number is a pin's place; a record is before all others.
func number(name string) int {
	n, err := strconv.Atoi(name)
	if err != nil {
		return -1
	}
	return n
}

// fileOf returns what is pinned as a file: the object itself, or the record in it.
func fileOf(o pin.Pinner, isRecord bool) (*os.File, error) {
	if m, ok := o.(*ebpf.Map); ok && isRecord {
		if m.ValueSize() > bpf.MaxRecord {
			return nil, fmt.Errorf("a record of %d bytes", m.ValueSize())
		}
		text, err := m.LookupBytes(uint32(0))
		if err != nil {
			return nil, err
		}
		fd, err := bpf.Record(text)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), record), nil
	}
	with, ok := o.(interface{ FD() int })
	if !ok || isRecord {
		return nil, fmt.Errorf("a %T, which nobody keeps", o)
	}
	fd, err := bpf.Dup(with.FD())
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "kept"), nil
}

// Keep pins copies of the descriptors under their name, all or none.
func (s *Store) Keep(d bpf.Descriptors) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.keep(d); err != nil {
		s.remove(unready + d.Name)
		s.log.Warn("not kept for the next agent", "name", d.Name, "descriptors", len(d.FDs), "err", err)
	}
}

func (s *Store) keep(d bpf.Descriptors) error {
	if d.Name == "" || strings.ContainsAny(d.Name, "./") || strings.HasPrefix(d.Name, unready) {
		return errors.New("no name for a directory")
	}
	dir := filepath.Join(s.dir, unready+d.Name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for i, fd := range d.FDs {
		if err := pinTo(dir, strconv.Itoa(i), fd); err != nil {
			return err
		}
	}
	s.remove(d.Name)
	return os.Rename(dir, filepath.Join(s.dir, d.Name))
}

func pinTo(dir, name string, fd int) error {
	o, err := bpf.ObjectOf(fd)
	if errors.Is(err, bpf.ErrNoObject) {
		name = record
		o, err = textMap(fd)
	}
	if err != nil {
		return err
	}
	return errors.Join(o.Pin(filepath.Join(dir, name)), o.Close())
}

// textMap makes a map of a record's text, which nobody can change any more.
func textMap(fd int) (*ebpf.Map, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > bpf.MaxRecord {
		return nil, fmt.Errorf("what is no record (mode %o, %d bytes) cannot be kept", st.Mode, st.Size)
	}
	text := make([]byte, max(1, st.Size))
	if n, err := unix.Pread(fd, text[:st.Size], 0); err != nil {
		return nil, err
	} else if int64(n) != st.Size {
		return nil, io.ErrUnexpectedEOF
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "record", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(text)), MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(m.Put(uint32(0), text), m.Freeze()); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// Unkeep lets go of what was kept under the names.
func (s *Store) Unkeep(names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		s.remove(name)
	}
}

func (s *Store) remove(name string) {
	if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
		s.log.Warn("what was kept is not let go of", "name", name, "err", err)
	}
}

// Sync does nothing: what was kept is.
func (s *Store) Sync() {}

// Run has nothing to do until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Drop lets go of all, as the end of a service does.
func (s *Store) Drop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, err := s.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir, name)))
	}
	return err
}

// Close lets another process have the directory. What is in it stays.
func (s *Store) Close() error { return s.own.Close() }
