package symbol

import (
	"cmp"
	"debug/dwarf"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// dwarfInlining says what the debugging information knows of inlining. nil if
// there is none.
//
// That a function was inlined nowhere is known only if all code of the file
// has debugging information: what a header brings can be inlined into code
// that has none. Code of the C library's start files has none and is no matter.
func (p *parser) dwarfInlining(wanted func(name string) []string) (*inlining, error) {
	d := p.openDebug()
	if d == nil {
		return nil, nil
	}
	in := &inlining{source: SourceDWARF, unknown: map[string]string{}}
	f := &finder{debugInfo: d, wanted: wanted, in: in, found: map[uint64]string{}, seen: map[string]bool{}}
	in.covers = func(s *Symbol) bool {
		if name := p.original(s.Name); !f.seen[name] {
			in.unknown[name] = "no debugging information names it"
		}
		return true
	}
	err := f.all()
	if errors.Is(err, errDebug) {
		in.unknown[""] = err.Error()
		return in, nil
	}
	if err != nil {
		return nil, err
	}
	bare, one, err := p.bare(f.covered)
	if err != nil {
		return nil, err
	}
	if bare > 0 {
		in.unknown[""] = fmt.Sprintf("%d functions have no debugging information, such as %s", bare, one)
	}
	return in, nil
}

// finder looks for functions that are wanted, and where they were inlined.
type finder struct {
	*debugInfo
	wanted  func(name string) []string
	in      *inlining
	found   map[uint64]string // entries of wanted functions: their names
	seen    map[string]bool   // names of functions that have an entry with code, or that are only ever inlined
	covered []Range           // addresses
	outside bool              // there are references from one unit to another
}

// maxPasses bounds how often all units are looked at: a function can be named
// in a unit behind the one that it is inlined in.
const maxPasses = 5

func (f *finder) all() error {
	for range maxPasses {
		before := len(f.found)
		f.in.places, f.covered, f.outside = nil, nil, false
		if err := f.units(f.unit); err != nil {
			return err
		}
		if !f.outside || len(f.found) == before {
			return nil
		}
	}
	return fmt.Errorf("names lead through more than %d units: %w", maxPasses, errDebug)
}

// entry is what is kept of a function, or of an inlined instance, while its
// unit is looked at.
type dwarfEntry struct {
	tag    dwarf.Tag
	name   string // if it is wanted
	other  bool   // it has a name, and that is not wanted
	origin uint64 // the entry that says more; 0 if there is none
	code   []Range
	holder int // the function that it lies in, as its index; -1 if it is in none
}

// unit looks at all entries of one unit.
func (f *finder) unit(u *unit) error {
	code, err := u.root()
	if err != nil {
		return err
	}
	if f.covered = append(f.covered, code...); len(f.covered) > 64*maxRanges {
		return fmt.Errorf("units of more than %d ranges: %w", 64*maxRanges, errDebug)
	}
	if u.goCode {
		return nil // Go's own table says it, in stripped programs too
	}
	var list []dwarfEntry
	byOff := map[uint64]int{}
	holders := []int{-1} // by depth
	c := &cursor{b: u.b, at: u.first}
	for c.at < len(u.b) {
		off := u.off + uint64(c.at)
		n := c.uleb()
		if n == 0 {
			if holders = holders[:max(1, len(holders)-1)]; c.bad {
				break
			}
			continue
		}
		a := u.abbrevs[n]
		if a == nil {
			return fmt.Errorf("entry at %#x: no abbreviation %d: %w", off, n, errDebug)
		}
		holder := holders[len(holders)-1]
		if a.tag == dwarf.TagSubprogram || a.tag == dwarf.TagInlinedSubroutine {
			e, err := f.entry(u, c, a)
			if err != nil {
				return fmt.Errorf("entry at %#x: %w", off, err)
			}
			e.holder = holder
			if a.tag == dwarf.TagSubprogram {
				holder = len(list)
			}
			byOff[off] = len(list)
			list = append(list, e)
		} else {
			for _, at := range a.attrs {
				u.read(c, at)
			}
		}
		if c.bad {
			return fmt.Errorf("entry at %#x: %w", off, errDebug)
		}
		if a.children {
			if holders = append(holders, holder); len(holders) > maxDepth {
				return fmt.Errorf("entry at %#x lies in %d others: %w", off, maxDepth, errDebug)
			}
		}
	}
	return f.resolve(u, list, byOff)
}

// entry reads a function or an inlined instance.
func (f *finder) entry(u *unit, c *cursor, a *abbrev) (e dwarfEntry, err error) {
	e.tag = a.tag
	var name, linkage value
	var ea entryAttrs
	var origin value
	for _, at := range a.attrs {
		v := u.read(c, at)
		switch at.name {
		case dwarf.AttrName:
			name = v
		case dwarf.AttrLinkageName, attrMIPSLinkage:
			linkage = v
		case dwarf.AttrAbstractOrigin, dwarf.AttrSpecification:
			origin = v
		case dwarf.AttrLowpc:
			ea.low, ea.hasLow = v, true
		case dwarf.AttrHighpc:
			ea.high, ea.hasHigh = v, true
		case dwarf.AttrRanges:
			ea.ranges, ea.hasRanges = v, true
		}
	}
	if c.bad {
		return e, errDebug
	}
	if e.code, err = u.code(ea); err != nil {
		return e, err
	}
	if origin.form != 0 {
		if e.origin, err = u.target(origin); err != nil {
			return e, err
		}
	}
	if linkage.form != 0 {
		name = linkage // as symbol tables have it
	}
	if name.form != 0 && a.tag == dwarf.TagSubprogram {
		b, err := u.text(name)
		if err != nil {
			return e, err
		}
		e.name = f.match(b)
		e.other = e.name == ""
	}
	return e, nil
}

// match returns the wanted name that a function is the code of; "" if it is of
// none. A constructor or destructor has one entry for all its symbols.
func (f *finder) match(name []byte) string {
	s := string(name)
	if len(f.wanted(s)) > 0 && printable(s) {
		return s
	}
	for _, from := range [...]string{"C4E", "C2E", "D4E", "D2E"} {
		i := strings.LastIndex(s, from)
		if i < 0 || !strings.HasPrefix(s, "_Z") {
			continue
		}
		for _, k := range "123" {
			if v := s[:i+1] + string(k) + s[i+2:]; len(f.wanted(v)) > 0 && printable(v) {
				return v
			}
		}
	}
	return ""
}

// resolve says which entries of a unit are of wanted functions.
func (f *finder) resolve(u *unit, list []dwarfEntry, byOff map[uint64]int) error {
	// name follows an entry's references to the one that has a name.
	name := func(off uint64) string {
		for range 8 {
			if n, ok := f.found[off]; ok {
				return n
			}
			i, here := byOff[off]
			switch {
			case !here:
				if off < u.off || off >= u.off+uint64(len(u.b)) {
					f.outside = true
				}
				return ""
			case list[i].name != "" || list[i].other || list[i].origin == 0:
				return list[i].name
			}
			off = list[i].origin
		}
		return ""
	}
	for off, i := range byOff {
		if e := &list[i]; e.tag == dwarf.TagSubprogram {
			n := name(off)
			if n == "" {
				continue
			}
			if e.name = n; len(f.found) >= f.p.lim.Matches {
				return fmt.Errorf("more than %d functions match: %w", f.p.lim.Matches, errDebug)
			}
			f.found[off] = n
			if len(e.code) > 0 {
				f.seen[n] = true
			}
		}
	}
	for i := range list {
		e := &list[i]
		if e.tag != dwarf.TagInlinedSubroutine || len(e.code) == 0 || e.origin == 0 {
			continue
		}
		n := name(e.origin)
		if n == "" {
			continue
		}
		if e.holder < 0 || len(list[e.holder].code) == 0 {
			f.in.unknown[n] = "it is inlined in a function that has no code"
			continue
		}
		within, ok := f.p.fileRanges(list[e.holder].code)
		code, ok2 := f.p.fileRanges(e.code)
		if !ok || !ok2 {
			continue // of a section that the linker dropped: its addresses are 0 or 1
		}
		if len(f.in.places) >= f.p.lim.Matches {
			return fmt.Errorf("more than %d inlined instances match: %w", f.p.lim.Matches, errDebug)
		}
		f.in.places = append(f.in.places, inlined{name: n, within: within, code: code})
	}
	return nil
}

// fileRanges turns addresses of code into file offsets, in the same order.
func (p *parser) fileRanges(addrs []Range) (offs []Range, ok bool) {
	for _, r := range addrs {
		start, ok := p.executable(r.Start)
		if !ok || !p.sameSegment(start, start+(r.End-r.Start)-1) {
			return nil, false
		}
		offs = append(offs, Range{start, start + r.End - r.Start})
	}
	return offs, len(offs) > 0
}

// startFiles are functions that the C library and the compiler bring to each
// program, as objects of their own.
var startFiles = []string{
	"_start", "_init", "_fini", "_dl_relocate_static_pie", "deregister_tm_clones", "register_tm_clones", "__do_global_dtors_aux", "frame_dummy",
	"__libc_csu_init", "__libc_csu_fini", "__x86.get_pc_thunk.", "call_weak_fn",
}

func startFile(name string) bool {
	return slices.ContainsFunc(startFiles, func(s string) bool { return name == s || strings.HasSuffix(s, ".") && strings.HasPrefix(name, s) })
}

// bare counts the functions outside of some addresses, and names one.
func (p *parser) bare(covered []Range) (n int, one string, err error) {
	covered = joined(covered)
	var offs []Range
	for _, r := range covered {
		if o, ok := p.fileRanges([]Range{r}); ok {
			offs = append(offs, o...)
		}
	}
	slices.SortFunc(offs, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	for i := range p.tables {
		t := &p.tables[i]
		err := p.eachFunction(t, func(e entry) error {
			k, found := slices.BinarySearchFunc(offs, e.off, func(r Range, off uint64) int { return cmp.Compare(r.Start, off) })
			if !found {
				k--
			}
			if !e.typed || k >= 0 && e.off < offs[k].End || n > 1000 {
				return nil
			}
			name, ok, err := p.aliasName(t, e.name)
			if err != nil {
				return err
			}
			if ok && startFile(name) {
				return nil
			}
			if n++; n == 1 {
				one = name
			}
			return nil
		})
		if err != nil {
			return 0, "", fmt.Errorf("%s: %w", t.what, err)
		}
	}
	if n == 0 && p.stripped {
		return 1, "what was stripped", nil // which functions there are is not known
	}
	return n, one, nil
}
