package symbol

import (
	"bytes"
	"debug/elf"
	"slices"
)

// Whether the stacks of a file's functions can be followed by frame pointers,
// which is all that the kernel does for a user stack.
const (
	UnwindsYes     = "yes"     // as far as was looked: its functions keep them
	UnwindsNo      = "no"      // they don't: a stack ends, or goes astray, where one of them is on it
	UnwindsUnknown = "unknown" // some do, or there is too little to tell
)

const (
	unwindSample  = 256 // functions that are looked at
	unwindFewest  = 8   // that call others, or nothing is said
	unwindSize    = 4 << 10
	unwindInstrs  = 16 // in which a function sets its frame up
	unwindCertain = 90 // of a hundred
)

// Unwinds says whether the file's functions keep frame pointers. Go's do
// (on x86-64 since 1.7, on arm64 since 1.12). Of other files a sample of the
// functions that call others is looked at; those that call none need no frame,
// and a stack from within one lacks at most its caller.
func (r *Resolver) Unwinds() (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unwinds != "" {
		return r.unwinds, nil
	}
	var err error
	r.unwinds, err = r.p.unwinds()
	return r.unwinds, err
}

func (p *parser) unwinds() (string, error) {
	if t, err := p.goFunctions(); t != nil || err != nil {
		return UnwindsYes, err
	}
	type candidate struct {
		Range
		t    *table
		name uint32
	}
	var all []candidate
	step, n := 1, 0
	for i := range p.tables {
		t := &p.tables[i]
		err := p.eachFunction(t, func(e entry) error {
			if e.size < 16 || e.size > unwindSize {
				return nil
			}
			if n++; n%step != 0 {
				return nil
			}
			if all = append(all, candidate{Range{e.off, e.off + e.size}, t, e.name}); len(all) == 2*unwindSample { // keep every second one
				step *= 2
				for k := range unwindSample {
					all[k] = all[2*k]
				}
				all = all[:unwindSample]
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	calling, framed := 0, 0
	for _, f := range all {
		name, ok, err := p.aliasName(f.t, f.name)
		if err != nil {
			return "", err
		}
		if _, kind := splitClone(name, false); ok && (kind == clonedCold || startFile(name)) {
			continue // part of another, or assembler's
		}
		calls, frame, err := p.framed(f.Range)
		if err != nil {
			return "", err
		}
		if calls {
			calling++
			if frame {
				framed++
			}
		}
	}
	switch share := 100 * framed / max(calling, 1); {
	case calling < unwindFewest:
		return UnwindsUnknown, nil
	case share >= unwindCertain:
		return UnwindsYes, nil
	case share <= 100-unwindCertain:
		return UnwindsNo, nil
	}
	return UnwindsUnknown, nil
}

// framed reports whether a function calls others, and whether it sets up a
// frame as it begins.
func (p *parser) framed(f Range) (calls, frame bool, err error) {
	b, _, err := p.walk(f)
	if b == nil || err != nil {
		return false, false, err
	}
	calls = slices.ContainsFunc(b.calls, func(c jump) bool { return b.part(c.to) == nil })
	head := make([]byte, min(f.End-f.Start, unwindInstrs*8))
	if err := p.src.read(head, f.Start); err != nil {
		return false, false, err
	}
	part := &b.parts[0]
	pushed := false
	for at, n := uint64(0), 0; at < uint64(len(head)) && n < unwindInstrs; at++ {
		if !bit(part.begins, at) {
			continue
		}
		n++
		rest := head[at:]
		is := func(code string) bool { return bytes.HasPrefix(rest, []byte(code)) }
		switch {
		case p.machine == elf.EM_AARCH64:
			if len(rest) >= 4 && le.Uint32(rest)&0xfe407fff == 0xa8007bfd { // stp x29, x30, [sp...]
				return calls, true, nil
			}
		case is("\x55"): // push %rbp
			pushed = true
		case pushed && (is("\x48\x89\xe5") || is("\x48\x8b\xec") || is("\x48\x8d\x6c\x24")): // mov %rsp,%rbp; lea n(%rsp),%rbp
			return calls, true, nil
		}
	}
	return calls, false, nil
}
