package symbol

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Unjudged says what of a file could not be looked at, although it could hold
// functions that the Query asks for. The file's other functions are known all
// the same. The zero value: nothing.
type Unjudged struct {
	// Names is how often a mangled name that could be a match could not be
	// demangled within the bounds, or at all; Example is the first of them, cut
	// off and with what is not printable escaped, and Why why that is.
	Names   int
	Example string
	Why     string
	// Debugdata is why .gnu_debugdata, or a symbol table in it, can't be read.
	Debugdata string
}

const maxExample = 64 // bytes

func (u *Unjudged) add(name []byte, why error) {
	if u.Names++; u.Names > 1 {
		return
	}
	u.Example, u.Why = strings.Trim(strconv.QuoteToGraphic(string(name[:min(len(name), maxExample)])), `"`), why.Error()
	if len(name) > maxExample {
		u.Example += "..."
	}
}

func (u *Unjudged) merge(v Unjudged) {
	if u.Names == 0 {
		u.Example, u.Why = v.Example, v.Why
	}
	u.Names += v.Names
}

// String says it in a few words, "" if there is nothing.
func (u Unjudged) String() string {
	var s []string
	if u.Names > 0 {
		s = append(s, fmt.Sprintf("%d mangled names may stand for more, %s for one: %s", u.Names, u.Example, u.Why))
	}
	if u.Debugdata != "" {
		s = append(s, u.Debugdata)
	}
	return strings.Join(s, "; ")
}

// unjudgedDebugdata takes down what is wrong with .gnu_debugdata, if that is a
// fault of the file and the rest can be read without it.
func (p *parser) unjudgedDebugdata(err error) bool {
	if errors.Is(err, ErrTime) || !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrTooLarge) || p.src.failed != nil {
		return false
	}
	p.unjudged.Debugdata = fmt.Sprintf("%s: %v", debugdataSection, err)
	return true
}
