package symbol

import (
	"bytes"
	"debug/elf"
	"encoding/hex"
)

// Bounds on notes. What lies behind them is not looked at: a build-id and the
// Go mark are attributes, no claim rests on their absence.
const (
	maxNotes      = 64 << 10 // bytes of one segment or section
	maxNoteExtent = 64       // segments or sections
	maxBuildID    = 64
)

// readNotes finds the GNU build-id and the mark of the Go toolchain.
func (p *parser) readNotes(f *File) error {
	notes := p.notes
	for _, s := range p.sections {
		if s.typ == elf.SHT_NOTE {
			notes = append(notes, extent{s.off, s.size})
		}
	}
	for _, n := range notes[:min(len(notes), maxNoteExtent)] {
		b := make([]byte, min(n.size, maxNotes))
		if err := p.src.read(b, n.off); err != nil {
			return err
		}
		for {
			name, typ, desc, rest, ok := nextNote(b)
			if !ok {
				break
			}
			switch {
			case typ == 3 && string(name) == "GNU\x00" && f.BuildID == "" && len(desc) <= maxBuildID: // NT_GNU_BUILD_ID
				f.BuildID = hex.EncodeToString(desc)
			case typ == 4 && string(name) == "Go\x00\x00": // the Go build id
				f.Go = true
			}
			b = rest
		}
	}
	return nil
}

// nextNote splits the first note off; all fields are aligned to 4 bytes.
func nextNote(b []byte) (name []byte, typ uint32, desc, rest []byte, ok bool) {
	if len(b) < 12 {
		return nil, 0, nil, nil, false
	}
	namesz, descsz := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:]))
	descAt := 12 + (namesz+3)&^3
	end := descAt + descsz
	if end > uint64(len(b)) {
		return nil, 0, nil, nil, false
	}
	name, desc = b[12:12+namesz], b[descAt:end]
	rest = b[min((end+3)&^3, uint64(len(b))):]
	return name, le.Uint32(b[4+4:]), bytes.Clone(desc), rest, true
}
