package symbol

import (
	"bytes"
	"debug/elf"
	"fmt"
	"slices"
	"strings"
)

// Several names at one address are one function under aliases that its author
// gave it, or several functions with the same code, of which a linker (gold,
// lld and mold with --icf) or a compiler (GCC's -fipa-icf, of the code of one
// file) kept one. The table does not say which. For an alias a hit is a hit of
// the function; of folded code it may be another function's. So these are
// aliases:
//
//   - names that differ only as aliases of libraries do: underscores, glibc's
//     __GI_, _IO_, __libc_, __new_ and so on, the 64 of large files, the kinds
//     of one C++ constructor or destructor;
//   - names in C of which one is weak: nobody defines a function weakly that
//     has nothing to override (a C++ function is weak if it is in a header);
//   - functions of different sizes: folded code is the same to its end;
//   - other names in C, if the file says who made it (.comment) and that was
//     neither of these linkers: GCC folds no function of C that others can call
//     into an alias;
//   - names in Go programs.
//
// All others are KindFolded. What is doubtful is that as well: strong aliases
// with different names in a file whose .comment was stripped, or that such a
// linker made.

// maxNames bounds how many names of one address are looked at.
const maxNames = 64

// folded tells folded code from aliases.
func (p *parser) folded(syms []Symbol) error {
	if p.goCode || !slices.ContainsFunc(syms, func(s Symbol) bool { return s.Kind == KindAlias }) {
		return nil
	}
	at := map[uint64][]naming{}
	for _, s := range syms {
		if s.Kind == KindAlias {
			at[s.Offset] = nil
		}
	}
	reads := p.lim.Matches
	for i := range p.tables {
		t := &p.tables[i]
		err := p.eachFunction(t, func(e entry) error {
			list, ok := at[e.off]
			if !ok || !e.typed || len(list) >= maxNames || reads == 0 {
				return nil
			}
			reads--
			name, ok, err := p.aliasName(t, e.name)
			if ok {
				at[e.off] = append(list, naming{name, e.weak, e.size})
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", t.what, err)
		}
	}
	folds, err := p.mayFold()
	if err != nil {
		return err
	}
	for i := range syms {
		if s := &syms[i]; s.Kind == KindAlias && !aliased(at[s.Offset], folds) {
			s.Kind = KindFolded
		}
	}
	return nil
}

// naming is what a table says of a function under one name.
type naming struct {
	name string
	weak bool
	size uint64
}

// aliased reports whether names of one address are aliases of one function.
// folds: what made the file may have folded functions of C.
func aliased(list []naming, folds bool) bool {
	if len(list) < 2 {
		return true
	}
	root, size, related, weak, mangled := rootName(list[0].name), uint64(0), true, false, false
	for _, n := range list {
		if n.size != size && n.size > 0 && size > 0 {
			return true
		}
		size = max(size, n.size)
		related = related && rootName(n.name) == root
		weak = weak || n.weak
		mangled = mangled || strings.HasPrefix(n.name, "_Z") || strings.HasPrefix(n.name, "_R")
	}
	return related || !mangled && (weak || !folds)
}

// rootName is what a name has in common with its aliases.
func rootName(name string) string {
	if strings.HasPrefix(name, "_Z") {
		for _, kind := range []string{"C1E", "C2E", "C3E", "D0E", "D1E", "D2E"} {
			if i := strings.LastIndex(name, kind); i > 0 {
				return name[:i+1] + "0" + name[i+2:]
			}
		}
		return name
	}
	for cut := true; cut; {
		cut = false
		for _, prefix := range []string{"_", "GI_", "IO_", "libc_", "pthread_", "new_", "old_", "nptl_", "posix_"} {
			if rest, ok := strings.CutPrefix(name, prefix); ok && rest != "" && (prefix == "_" || strings.HasPrefix(name, prefix)) {
				name, cut = rest, true
			}
		}
	}
	return strings.TrimSuffix(name, "64")
}

// mayFold reports whether a linker that folds code may have made the file.
func (p *parser) mayFold() (bool, error) {
	if _, ok := p.named(".note.gnu.gold-version"); ok {
		return true, nil
	}
	s, ok := p.named(".comment")
	if !ok || s.typ != elf.SHT_PROGBITS || s.compressed {
		return true, nil
	}
	b := make([]byte, min(s.size, 16<<10))
	if err := p.src.read(b, s.off); err != nil {
		return false, err
	}
	made := bytes.Contains(b, []byte("GCC: ")) || bytes.Contains(b, []byte("clang version "))
	other := bytes.Contains(b, []byte("Linker: ")) || bytes.Contains(b, []byte("mold ")) || bytes.Contains(b, []byte("LLD "))
	return !made || other, nil
}
