// Package demangle turns the mangled names of C++ (Itanium ABI, as GCC and
// clang use it) and Rust (legacy and v0) into what their authors wrote.
//
// In: one name that somebody hostile may have written. Out: its [Forms], or
// [ErrTooLarge]. Nothing is trusted: a name costs at most a fixed number of
// steps, whatever it holds, some tenths of a second and some ten megabytes of
// garbage at the very worst.
//
// ast.go, demangle.go and rust.go are those of
// github.com/ianlancetaylor/demangle (version of 2026-07-24, under the LICENSE
// beside them). They are a copy because the original has no bound that could
// be asked for from outside: a name of 301 bytes keeps it busy for three
// seconds and each 14 bytes more double that, and a pack expanded within a pack
// takes memory in the same way. What was changed is small, and to be carried
// over to a newer version: the field fuel and the calls of burn; that printing
// an elaborated type or a string literal goes through printState.print, which
// notices cycles; that a Rust number that begins with 0 ends there (RFC 2603,
// decimal-number), and that the legacy mangling keeps the underscore that an
// identifier begins with; and that its entry points are not exported.
package demangle

import (
	"errors"
	"strings"
)

// Bounds of one call of [Of].
const (
	// MaxName is the longest mangled name in bytes.
	MaxName = 16 << 10
	// maxFuel is the number of steps: of the parser, of each walk over the
	// tree and of the printer, all of which hostile names can make
	// exponential. A step allocates some hundred bytes at most.
	maxFuel = 1 << 18
	// maxText is the longest form, as a power of 2.
	maxText = 16
)

// ErrTooLarge: a bound was reached. What the name stands for is not known.
var ErrTooLarge = errors.New("a mangled name past the bounds")

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
// is [ErrTooLarge], or says why it is no such name.
func Of(name string) (f Forms, err error) {
	forms, _, err := measure(name)
	return forms, err
}

// measure also returns the fuel that was burnt.
func measure(name string) (forms Forms, burnt int, err error) {
	if len(name) > MaxName {
		return Forms{}, 0, ErrTooLarge
	}
	f := &fuel{left: maxFuel}
	defer func() {
		burnt = maxFuel - f.left
		switch r := recover(); r.(type) {
		case nil:
		case outOfFuel:
			forms, err = Forms{}, ErrTooLarge
		default:
			// A slip of the parser over a name that it does not expect.
			forms, err = Forms{}, ErrNotMangledName
		}
	}()
	forms, err = demangle(name, f)
	return forms, 0, err
}

func demangle(name string, f *fuel) (Forms, error) {
	if strings.HasPrefix(name, "_R") {
		return both(func(o ...Option) (string, error) { return rustToString(name, f, o) })
	}
	if old, ok := oldRust(name); ok {
		if forms, err := both(func(o ...Option) (string, error) {
			s, ok := oldRustToString(old, o)
			if !ok {
				return "", ErrNotMangledName
			}
			return s, nil
		}); err == nil {
			forms.Clone = name[len(old):]
			return forms, nil
		}
	}
	tree, err := toAST(name, f)
	if err != nil {
		return Forms{}, err
	}
	forms := Forms{Full: toText(tree, f)}
	for {
		c, ok := tree.(*Clone)
		if !ok {
			break
		}
		forms.Clone = c.Suffix + forms.Clone
		tree = c.Base
	}
	if t, ok := tree.(*Typed); ok {
		tree = t.Name
	}
	forms.Plain, forms.Bare = toText(tree, f), toText(tree, f, NoTemplateParams)
	for _, s := range []string{forms.Full, forms.Plain, forms.Bare} {
		if err := whole(s); err != nil {
			return Forms{}, err
		}
	}
	return forms, nil
}

// both returns the forms of a Rust name, which has no parameters.
func both(text func(...Option) (string, error)) (Forms, error) {
	full, err := text(MaxLength(maxText))
	if err != nil {
		return Forms{}, err
	}
	bare, err := text(MaxLength(maxText), NoTemplateParams)
	if err != nil {
		return Forms{}, err
	}
	if err := errors.Join(whole(full), whole(bare)); err != nil {
		return Forms{}, ErrTooLarge
	}
	bare = strings.ReplaceAll(strings.ReplaceAll(bare, "::<>", ""), "<>", "") // what is left of generic arguments
	return Forms{Full: full, Plain: full, Bare: bare}, nil
}

// whole refuses what was cut off.
func whole(s string) error {
	if len(s) >= 1<<maxText {
		return ErrTooLarge
	}
	return nil
}

func toText(a AST, f *fuel, o ...Option) string {
	return astToString(a, f, append(o, MaxLength(maxText))...)
}

// fuel is what is left to burn; it is checked wherever the code of this
// package could go round for long.
type fuel struct{ left int }

type outOfFuel struct{}

// burn panics with outOfFuel when there is none left. The parser's own
// recoveries let that through.
func (f *fuel) burn(n int) {
	if f.left -= n; f.left < 0 {
		panic(outOfFuel{})
	}
}
