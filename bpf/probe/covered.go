package probe

import (
	"slices"

	"probity/evidence"
	"probity/runtime/image"
	"probity/runtime/process"
)

// Covered returns the armed files that a process of the container does not
// reach under their paths any more, because something was mounted there since:
// by a hook of the runtime's that came later, or by the container itself. What
// the process runs there is another file. Files that were found without their
// paths, as on a volume, are not among them: what is at the path now is found
// as they were.
func (h *Handle) Covered(p *process.Process) ([]Trouble, error) {
	var paths []string
	for i := range h.held {
		m := h.held[i].match
		if !m.Mapped() && len(h.held[i].armed) > 0 && !slices.Contains(paths, m.Path) {
			paths = append(paths, m.Path)
		}
	}
	if len(paths) == 0 {
		return nil, nil
	}
	covered, err := image.Covered(p.Pid, paths)
	if alive := p.Alive(); alive != nil {
		err = alive // its number may have been another's, who has other mounts
	}
	if err != nil {
		return nil, err
	}
	var out []Trouble
	for _, p := range paths {
		if by := covered[p]; by != "" {
			out = append(out, Trouble{Path: p, Reason: evidence.GapFileChanged, Detail: "the file is hidden by what is mounted at " + by})
		}
	}
	return out, nil
}
