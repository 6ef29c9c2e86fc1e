package probe

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"probity/bpf"
	"probity/bpf/symbol"
	"probity/evidence"
	"probity/runtime/image"
	"probity/runtime/process"
)

// Stack makes of a stack event of the container what a line says: each frame as
// build id and offset, which can be resolved anywhere, and with path and symbol
// where the process can still be looked at. It opens the files that the frames
// are in, so it takes milliseconds, and longer if somebody reads them slowly.
// It may be called at any time until Close.
func (h *Handle) Stack(e bpf.Event) *evidence.Stack {
	h.mu.Lock()
	var site *Site
	for i := range h.Sites {
		if s := &h.Sites[i]; s.Armed && s.ID == e.Site {
			copied := *s
			site = &copied
			break
		}
	}
	h.mu.Unlock()
	if e.Stack == nil || site == nil {
		return &evidence.Stack{Frames: []evidence.Frame{}, Truncated: true, Reason: "it is not known which site it is of"}
	}
	frames := withCaller(e.Stack)
	maps, whyNot := mappings(e.Pid, frames, site)
	files := map[string]*stackFile{}
	defer func() {
		for _, f := range files {
			f.close()
		}
	}()
	out := &evidence.Stack{Frames: []evidence.Frame{}}
	for i, raw := range frames {
		f := evidence.Frame{BuildID: raw.BuildID}
		offset := raw.Offset
		m := covering(maps, raw.Address)
		switch {
		case i == 0 && site.HasOffset: // it is there, whatever the kernel could read
			f.Path, offset = site.File.Match.Path, site.Offset
			f.BuildID = site.File.BuildID
		case m != nil:
			f.Path, offset = m.Path, raw.Address-m.Start+m.Offset
		}
		if m != nil {
			file := files[f.Path]
			if file == nil {
				file = openStackFile(e.Pid, m)
				files[f.Path] = file
			}
			if f.BuildID == "" {
				f.BuildID = file.buildID
			}
			at := offset
			if i > 0 {
				at-- // a return address is behind the call
			}
			f.Symbol = file.name(at)
		}
		switch {
		case f.BuildID != "" || f.Path != "":
			o := evidence.Uint64(offset)
			f.Offset = &o
			if f.BuildID == "" {
				f.Reason = "noBuildId"
			}
		case maps != nil:
			f.Reason = "anonymous"
		default:
			f.Reason = "unknown"
		}
		if i == 0 && f.Symbol == "" && site.HasOffset {
			f.Symbol = site.Symbol
		}
		out.Frames = append(out.Frames, f)
		if begins(f.Symbol) {
			break // the register has no frame pointer in it there, and leads astray
		}
	}
	explain(out, e.Stack, whyNot)
	return out
}

// explain says what is missing of a stack. It was followed by frame pointers,
// and those end where code does not keep them: a stack is whole if it ends
// where threads and goroutines begin.
func explain(out *evidence.Stack, raw *bpf.Stack, whyNot error) {
	switch {
	case raw.Err != nil && len(out.Frames) == 0:
		out.Truncated, out.Reason = true, raw.Err.Error()
	case len(out.Frames) > 0 && begins(out.Frames[len(out.Frames)-1].Symbol):
	case raw.Cut:
		out.Truncated, out.Reason = true, fmt.Sprintf("only the innermost %d frames are told", bpf.MaxFrames)
	case whyNot != nil:
		out.Truncated, out.Reason = true, "frames have no names, and callers may be missing: "+whyNot.Error()
	case len(out.Frames) == 0:
		out.Truncated, out.Reason = true, "the kernel found no frame"
	default:
		out.Truncated, out.Reason = true, "the frame pointers end here, which is not where a thread begins: callers may be missing"
	}
}

// begins reports whether a thread or goroutine begins with the function: the C
// libraries' and Go's.
func begins(name string) bool {
	for _, prefix := range []string{"_start", "__libc_start", "libc_start_main", "generic_start_main", "start_thread", "clone", "__clone", "runtime.goexit", "runtime.mstart", "runtime.rt0_go", "_rt0_", "thread_start"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// withCaller puts the caller into its place where the unwinder stepped over it.
func withCaller(s *bpf.Stack) []bpf.Frame {
	if s.Caller == 0 || len(s.Frames) == 0 || len(s.Frames) > 1 && s.Frames[1].Address == s.Caller {
		return s.Frames
	}
	return slices.Insert(slices.Clone(s.Frames), 1, bpf.Frame{Address: s.Caller})
}

// mappings reads what the process has mapped now, if that is still what the
// stack was taken of: it may have ended or called execve since, and its number
// be another's.
func mappings(pid int, frames []bpf.Frame, site *Site) ([]process.Mapping, error) {
	p, err := process.Open(pid)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	maps, err := p.Executable()
	if err != nil {
		return nil, err
	}
	for i, f := range frames {
		want, known := f.Offset, f.BuildID != ""
		if i == 0 && site.HasOffset {
			want, known = site.Offset, true
		}
		if !known || f.Address == 0 {
			continue
		}
		if m := covering(maps, f.Address); m == nil || f.Address-m.Start+m.Offset != want {
			return nil, errors.New("the process has other mappings by now")
		}
	}
	return maps, nil
}

func covering(maps []process.Mapping, address uint64) *process.Mapping {
	for i := range maps {
		if m := &maps[i]; m.Start <= address && address < m.End {
			return m
		}
	}
	return nil
}

// stackFile is a file that frames are in. The zero value knows nothing.
type stackFile struct {
	f       *os.File
	buildID string
	symbols *symbol.Resolver
}

// openStackFile opens a mapped file by the kernel's own link to it, unless that
// could hang.
func openStackFile(pid int, m *process.Mapping) *stackFile {
	out := &stackFile{}
	link := fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, m.Start, m.End)
	var err error
	if out.f, err = image.ReadMapped(pid, link, m.Path, m.File.Dev); err != nil {
		return &stackFile{}
	}
	st, err := out.f.Stat()
	if err != nil {
		return out
	}
	// Not only what the kernel finds: Go's linker puts its note in no segment.
	if file, _, err := symbol.Read(out.f, st.Size(), symbol.Query{}, symbol.Limits{}); err == nil {
		out.buildID = file.BuildID
	}
	out.symbols, _ = symbol.NewResolver(out.f, st.Size(), symbol.Limits{}) // nil: no names
	return out
}

func (f *stackFile) name(offset uint64) string {
	if f.symbols == nil {
		return ""
	}
	at, err := f.symbols.Resolve(offset)
	if err != nil {
		return ""
	}
	return at[0].Symbol
}

func (f *stackFile) close() {
	if f.f != nil {
		f.f.Close()
	}
}
