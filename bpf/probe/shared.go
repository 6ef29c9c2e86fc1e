package probe

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/evidence"
)

// fileKey identifies what one set of links is attached to: an inode, by one
// probe, at these offsets. The inode cannot be reused while a link or the
// canary holds it.
type fileKey struct {
	dev, ino uint64
	probe    string
	offsets  string // the offsets' bytes
}

// sharedFile is one armed (inode, probe), shared by every container of the
// image and counted by reference.
type sharedFile struct {
	key  fileKey
	path string // for messages

	// mu serialises attaching; after ready the fields below do not change but
	// for lost.
	mu     sync.Mutex
	ready  bool
	points []point
	att    attachment
	canary *canary // of the lower file: its health is the links' health

	// Guarded by Engine.mu.
	refs      int
	idleSince int64 // boot time at which refs became 0
}

// arm attaches once, then proves for this container: mapped is the container's
// own view of the file. It returns the refusal per offset; an offset without
// one is armed.
func (s *sharedFile) arm(obj *bpf.Objects, lower, merged *os.File, m Machine) (map[uint64]refusal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	offsets := make([]uint64, len(s.points))
	for i, p := range s.points {
		offsets[i] = p.offset
	}
	view, err := newCanary(merged, offsets, len(m.breakpoint))
	if err != nil {
		return nil, fmt.Errorf("map %s through the container's root: %w", s.path, err)
	}
	defer view.close()
	if !s.ready {
		if s.canary, err = newCanary(lower, offsets, len(m.breakpoint)); err != nil {
			return nil, fmt.Errorf("map %s: %w", s.path, err)
		}
		s.att = attach(obj, lower, s.points)
		s.ready = true
	}
	out := map[uint64]refusal{}
	for _, p := range s.points {
		if r, no := s.att.refused[p.offset]; no {
			out[p.offset] = r
			continue
		}
		ok, err := view.patched(p.offset, m.breakpoint)
		switch {
		case err != nil:
			out[p.offset] = refusal{evidence.AttachFailed, err.Error()}
		case !ok:
			out[p.offset] = refusal{evidence.UnprobeableInstruction, "attached, but the instruction does not read as a breakpoint through the container's own path"}
		}
	}
	return out, nil
}

// check reads the canary: whether the site at each offset is still patched.
func (s *sharedFile) check(m Machine) (lost []uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.points {
		if _, no := s.att.refused[p.offset]; no {
			continue
		}
		ok, err := s.canary.patched(p.offset, m.breakpoint)
		if err != nil {
			return nil, err
		}
		if !ok {
			lost = append(lost, p.offset)
		}
	}
	return lost, nil
}

func (s *sharedFile) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.att.close(), s.canary.close())
}

// identify returns the device and inode behind an open file.
func identify(f *os.File) (dev, ino uint64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("stat: %w", err)
	}
	return uint64(st.Dev), st.Ino, nil
}
