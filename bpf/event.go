package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// EventKind says what an event is about.
type EventKind uint32

// The kinds, as in c/probity.h.
const (
	EventHit  = EventKind(probesEventTypeEVENT_HIT)
	EventExec = EventKind(probesEventTypeEVENT_EXEC)
	EventLost = EventKind(probesEventTypeEVENT_LOST)

	EventStack = EventKind(probesEventTypeEVENT_STACK)
)

// Event is one record of the ring buffer.
type Event struct {
	Kind    EventKind
	Cgroup  uint64
	Site    uint32 // of a hit and a stack
	Ns      int64  // CLOCK_BOOTTIME
	Pid     int    // process, as the host numbers it
	Tid     int
	Session Session // of a hit and an exec
	Comm    string  // at most 15 bytes, chosen by the process itself; of a hit and an exec
	Path    string  // of an exec: as passed to execve, at most 255 bytes
	Interp  string  // of an exec: what the kernel executed for that, if it is another path, at most 127 bytes
	File    File    // of an exec: what the process runs
	Name    string  // and its name; empty if it may have several, or that is not known
	Stack   *Stack  // of a stack
}

// File is which file was executed, and as it was then. The zero value is one that
// is not known. On an overlay it is the overlay's own.
type File struct {
	Device uint64 // as stat(2) has it
	Inode  uint64
	Ctime  int64 // nanoseconds
	Size   int64
}

// nameLen is the length from which on a file's name may have been cut.
const nameLen = len(probesExecEvent{}.Name) - 1

// ErrDecode is wrapped by every error of Decode.
var ErrDecode = errors.New("ring buffer record")

// Decode decodes one record strictly: known type, exact size, terminated
// strings. The bytes come from our own program, but their strings were chosen
// by the container.
func Decode(b []byte) (Event, error) {
	if len(b) < 4 {
		return Event{}, fmt.Errorf("%w: %d bytes", ErrDecode, len(b))
	}
	switch kind := EventKind(binary.NativeEndian.Uint32(b)); kind {
	case EventHit:
		var e probesHitEvent
		if err := exact(b, &e); err != nil {
			return Event{}, err
		}
		return Event{Kind: kind, Cgroup: e.Cgroup, Site: e.Site, Ns: int64(e.Ns), Pid: int(e.Pid), Tid: int(e.Tid), Session: Session(e.Session), Comm: text(e.Comm[:])}, nil
	case EventExec:
		var e probesExecEvent
		if err := exact(b, &e); err != nil {
			return Event{}, err
		}
		return Event{
			Kind: kind, Cgroup: e.Cgroup, Ns: int64(e.Ns), Pid: int(e.Pid), Tid: int(e.Tid), Session: Session(e.Session), Comm: text(e.Comm[:]),
			Path: text(e.Path[:]), Interp: text(e.Interp[:]), File: fileOf(&e), Name: fileName(&e),
		}, nil
	case EventLost:
		var e probesLostEvent
		if err := exact(b, &e); err != nil {
			return Event{}, err
		}
		return Event{Kind: kind, Cgroup: e.Cgroup, Ns: int64(e.Ns), Pid: int(e.Pid), Tid: int(e.Tid)}, nil
	case EventCall:
		var e setsCallEvent
		if err := exact(b, &e); err != nil {
			return Event{}, err
		}
		return Event{Kind: kind, Cgroup: e.Cgroup, Ns: int64(e.Ns)}, nil
	case EventStack:
		var e probesStackEvent
		if err := exact(b, &e); err != nil {
			return Event{}, err
		}
		st, err := stackOf(&e)
		if err != nil {
			return Event{}, err
		}
		return Event{Kind: kind, Cgroup: e.Cgroup, Site: e.Site, Ns: int64(e.Ns), Pid: int(e.Pid), Tid: int(e.Tid), Stack: st}, nil
	default:
		return Event{}, fmt.Errorf("%w: type %d is not known", ErrDecode, kind)
	}
}

func fileOf(e *probesExecEvent) File {
	if e.Inode == 0 {
		return File{}
	}
	return File{unix.Mkdev(uint32(e.Device>>20), uint32(e.Device&0xfffff)), e.Inode, e.Ctime, e.Size}
}

// fileName is the file's name, unless it was cut.
func fileName(e *probesExecEvent) string {
	if name := text(e.Name[:]); len(name) < nameLen {
		return name
	}
	return ""
}

func exact[T any](b []byte, e *T) error {
	if len(b) != int(unsafe.Sizeof(*e)) {
		return fmt.Errorf("%w: %d bytes, want %d", ErrDecode, len(b), unsafe.Sizeof(*e))
	}
	if err := binary.Read(bytes.NewReader(b), binary.NativeEndian, e); err != nil {
		return fmt.Errorf("%w: %w", ErrDecode, err)
	}
	return nil
}

// text reads a C string; what is not valid UTF-8 is replaced when it is
// written as JSON.
func text(c []int8) string {
	b := make([]byte, 0, len(c))
	for _, x := range c {
		if x == 0 {
			break
		}
		b = append(b, byte(x))
	}
	return string(bytes.ToValidUTF8(b, []byte("\uFFFD")))
}

func isNoSpace(err error) bool { return errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOMEM) }
