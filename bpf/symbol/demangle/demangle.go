// Package demangle turns the mangled names of C++ (Itanium ABI, as GCC and
// clang use it) and Rust (legacy and v0) into what their authors wrote.
//
// In: one name that somebody hostile may have written. Out: its [Forms], or
// an error. github.com/ianlancetaylor/demangle does the work. It has no
// bound of its own on that (a name of 301 bytes keeps it busy for seconds, and
// each 14 bytes more double that), and a call can't be stopped. So a name is
// looked at before it is called: see [steps]. And what it made of a C++ name is
// looked at before it is printed: see measure.
//
// What is trusted: the library, to do no more for a name than the rules of the
// mangling make it do. A panic of it is an error; that it runs out of stack
// would end the process, which the bounds on length and depth keep far away.
//
// In Rust's v0 mangling the library takes the 0 of an empty identifier (a
// closure's) and the length that follows it for one number, so it is given a
// name that says the same and can't be read so: see respell.
//
// Known to be missing: what v0 mangling has got since, as far as the library or
// respell does not know it (types with patterns). Such a name with a function
// or closure within a closure is [ErrUnjudged].
package demangle

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/ianlancetaylor/demangle"
)

// Bounds of one call of [Of]: with them the worst names that the tests make take
// some ten milliseconds, and 30 MB of garbage.
const (
	// MaxName is the longest mangled name in bytes.
	MaxName = 4 << 10
	// maxText is the longest form, as a power of 2.
	maxText = 15
)

// ErrUnjudged: what the name stands for is not known, and it may well stand for
// something.
var ErrUnjudged = errors.New("what it stands for is not known")

var (
	errTooLarge = fmt.Errorf("demangling it could take too much: %w", ErrUnjudged)
	errClosure  = fmt.Errorf("a function within a closure of Rust: %w", ErrUnjudged)
)

// Forms are the ways to write a demangled name.
type Forms struct {
	// Full is what c++filt prints: with parameters, and for an instance of a
	// template with the type that it returns. "void ns::f<int>(int)"
	Full string
	// Plain is the name alone. "ns::f<int>"
	Plain string
	// Bare is Plain without template arguments. "ns::f"
	Bare string
	// Clone is what a compiler appended to the mangled name of a copy
	// (".constprop.0"). Full says so in brackets, Plain and Bare do not.
	Clone string
}

// Mangled reports whether a name has a beginning that [Of] takes.
func Mangled(name []byte) bool {
	return len(name) > 2 && name[0] == '_' && (name[1] == 'Z' || name[1] == 'R')
}

// Of demangles a name of C++ (Itanium ABI) or Rust (both manglings). Its error
// is [errTooLarge], or says why it is no such name.
func Of(name string) (f Forms, err error) {
	defer func() {
		if recover() != nil { // a slip of the library over a name that it does not expect
			err = demangle.ErrNotMangledName
		}
		if err != nil {
			f = Forms{}
		}
	}()
	if !Mangled([]byte(name)) {
		return Forms{}, demangle.ErrNotMangledName
	}
	if len(name) > MaxName {
		return Forms{}, errTooLarge
	}
	if name[1] == 'R' {
		return rustV0(name)
	}
	if steps(name) > maxSteps {
		return Forms{}, errTooLarge
	}
	if given, suffix, ok := legacyRust(name); ok {
		f, err = rust(given)
		f.Clone = suffix
		return f, err
	}
	return cxx(name)
}

// rustV0 demangles a name of Rust's v0 mangling.
func rustV0(name string) (Forms, error) {
	given, work, known := respell(name)
	if !known {
		work = steps(name)
	}
	if work > maxSteps {
		return Forms{}, errTooLarge
	}
	f, err := rust(given)
	switch {
	case known && err != nil && !errors.Is(err, ErrUnjudged):
		return Forms{}, fmt.Errorf("%w: %w", err, ErrUnjudged)
	case known:
	case err != nil && !errors.Is(err, ErrUnjudged) && numbers.MatchString(name), misread.MatchString(name), strings.Contains(f.Full, "{closure:"):
		return Forms{}, errClosure // rustc gives closures no names
	}
	return f, err
}

func cxx(name string) (Forms, error) {
	tree, err := demangle.ToAST(name, demangle.NoRust)
	if err != nil {
		return Forms{}, err
	}
	if !measure(tree) {
		return Forms{}, errTooLarge
	}
	forms := Forms{Full: toText(tree)}
	for {
		c, ok := tree.(*demangle.Clone)
		if !ok {
			break
		}
		forms.Clone = c.Suffix + forms.Clone
		tree = c.Base
	}
	if t, ok := tree.(*demangle.Typed); ok {
		tree = t.Name
	}
	forms.Plain, forms.Bare = toText(tree), toText(tree, demangle.NoTemplateParams)
	return forms, whole(forms)
}

func toText(a demangle.AST, o ...demangle.Option) string {
	return demangle.ASTToString(a, append(o, demangle.MaxLength(maxText))...)
}

// What the library takes for one number, and what it then takes the type () for
// the beginning of an identifier behind.
var (
	numbers = regexp.MustCompile(`0[0-9]`)
	misread = regexp.MustCompile(`[^1-9]00+u`)
)

// rust returns the forms of a Rust name, which has no parameters.
func rust(name string) (Forms, error) {
	full, err := demangle.ToString(name, demangle.MaxLength(maxText))
	if err != nil {
		return Forms{}, err
	}
	bare, err := demangle.ToString(name, demangle.MaxLength(maxText), demangle.NoTemplateParams)
	if err != nil {
		return Forms{}, err
	}
	bare = strings.ReplaceAll(strings.ReplaceAll(bare, "::<>", ""), "<>", "") // what is left of generic arguments
	forms := Forms{Full: full, Plain: full, Bare: bare}
	return forms, whole(forms)
}

// whole refuses what was cut off.
func whole(f Forms) error {
	if max(len(f.Full), len(f.Plain), len(f.Bare)) >= 1<<maxText {
		return errTooLarge
	}
	return nil
}

const hashLength = len("17h0123456789abcdefE")

// legacyRust returns a legacy Rust name as the library is to be given it, and
// its suffix. What this takes for one, so does the library.
//
// An underscore that an identifier begins with is doubled: the library takes
// one away. One that the mangling itself puts in front of what begins with '$'
// is to be taken away.
func legacyRust(name string) (given, suffix string, ok bool) {
	if dot := strings.LastIndex(name, "E."); dot >= 0 {
		name, suffix = name[:dot+1], name[dot+1:]
	}
	at := len(name) - hashLength
	if !strings.HasPrefix(name, "_ZN") || at < len("_ZN1a") || name[at:at+3] != "17h" || name[len(name)-1] != 'E' {
		return "", "", false
	}
	hash := name[at+3 : len(name)-1]
	different := 0
	for i, c := range []byte(hash) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", "", false
		}
		if strings.IndexByte(hash, c) == i {
			different++
		}
	}
	if different < 5 {
		return "", "", false
	}
	var b strings.Builder
	b.WriteString("_ZN")
	for rest := name[len("_ZN"):at]; rest != ""; {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.Atoi(rest[:digits])
		if err != nil || n == 0 || n > len(rest)-digits {
			return "", "", false
		}
		ident := rest[digits : digits+n]
		if strings.HasPrefix(ident, "_") && !strings.HasPrefix(ident, "_$") {
			ident = "_" + ident
		}
		b.WriteString(strconv.Itoa(len(ident)))
		b.WriteString(ident)
		rest = rest[digits+n:]
	}
	b.WriteString(name[at:])
	return b.String(), suffix, true
}
