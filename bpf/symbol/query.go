package symbol

import "slices"

// Query says what is looked for in a file. The zero value looks for nothing:
// [Read] then returns what is known of the file alone.
//
// Functions of C++ and Rust are found by their raw name and by each of three
// demangled forms: the one that c++filt prints ("int ns::max<int>(int, int)"),
// the name without parameters ("ns::max<int>"), and that without template
// arguments ("ns::max"). Rust's have no hash, as in
// "<my::Type as core::fmt::Debug>::fmt".
type Query struct {
	// Names are exact. Space that does not keep two words apart does not
	// count in a demangled form.
	Names []string
	// Globs match a whole name or form: * is any text, ? one character, [a-z]
	// and [^a-z] one of a class, and \ takes the next character as it is. A
	// Go function "main.Max[...]" is "main.Max\[...]".
	Globs []string
	// Regexps are in the syntax of RE2, and match anywhere in a name or form.
	Regexps []string
	Markers []string // USDT, "provider:name"
	Offsets []uint64 // in the file, at which instructions should begin

	Returns bool // fill Symbol.Returns
	Inlined bool // also find what was inlined elsewhere
}

// The kinds of Symbol.
const (
	KindFunc    = "func"
	KindIFunc   = "ifunc"   // one of the functions that an IFUNC chooses from, see Implements; without that, the IFUNC's resolver
	KindAlias   = "alias"   // other functions have the same address: one can't be told from the other
	KindClone   = "clone"   // a copy that the compiler made for some of the callers
	KindFolded  = "folded"  // other functions have the same code, and the linker kept one
	KindInlined = "inlined" // a copy of its code within another function
)

// The sources of Symbol, best first: a function that several of them name is
// one Symbol.
const (
	SourceSymtab    = "symtab"    // .symtab
	SourceDynsym    = "dynsym"    // what the dynamic linker uses
	SourceDebugdata = "debugdata" // the symbol table in .gnu_debugdata
	SourcePclntab   = "pclntab"   // what Go's runtime uses
	SourceDWARF     = "dwarf"
)

// rank orders the sources.
func rank(source string) int {
	return slices.Index([]string{SourceSymtab, SourceDynsym, SourceDebugdata, SourcePclntab, SourceDWARF}, source)
}

// Symbol is one function that an item of the Query matches, at one place.
type Symbol struct {
	// Name is as in the table, without a version unless one was asked for. What
	// is not printable in a name that was not asked for is escaped as in Go,
	// and what would be longer than 4 KiB is cut off and ends with "...".
	Name      string
	Demangled string // as c++filt prints it; "" if that is the same, or longer than 4 KiB, or not printable
	Wanted    string // the item of the Query that it matches
	Source    string // one of the Source constants
	Offset    uint64 // in the file
	Size      uint64 // in bytes; 0 if the source does not say
	Kind      string // one of the Kind constants
	// Alias lists other names of the same address, sorted. Names that are
	// long (over 512 bytes) or not printable are left out, and no more than
	// 16 are listed; Kind tells that there are others all the same.
	Alias []string

	// Doubt says why the symbols of Wanted may not be all that there is of
	// it in this file; "" if they are all that the tables have.
	Doubt string

	Implements string // of what an IFUNC chooses from: the wanted name
	InlinedIn  string // of KindInlined: the function that it was inlined in
	Inline     InlineKnown

	// Returns are the file offsets of its return instructions, if the Query
	// wants them; ReturnsErr says why they are not known.
	Returns    []uint64
	ReturnsErr error
}

// The states of InlineKnown.
const (
	InlineNone    = "none"      // nowhere
	InlineAt      = "inlinedAt" // at Instances, and nowhere else
	InlineUnknown = "unknown"   // the file does not say
)

// InlineKnown says where else the code of a function was inlined.
type InlineKnown struct {
	State     string // one of the Inline constants
	Instances []Instance
}

// Instance is one place that a function was inlined at.
type Instance struct {
	Function string // the function that holds it, as in the table
	Offset   uint64 // in the file
}

// Marker is one USDT marker.
type Marker struct {
	Provider, Name string
	Offset         uint64 // in the file
	Semaphore      uint64 // file offset of the counter that turns it on; 0: none
	Args           string // as in the note
}
