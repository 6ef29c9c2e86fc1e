package demangle

// respell writes a name of Rust's v0 mangling so that the library reads it as
// it was meant. The library takes the 0 of an empty identifier (a closure's) and
// digits that follow it for one number. Between them there may be an underscore
// (RFC 2603, "identifier"), which rustc leaves out: it is put in, and what
// refers to places behind it is written anew.
//
// ok: the name is one as far as the grammar is known here. It is looked at once
// and nothing is followed, so that this takes no more than its length. work is
// what [rustSteps] estimates, and knows what is a reference and what is a letter
// of an identifier.
func respell(name string) (_ string, work float64, ok bool) {
	v := v0{s: name[len("_R"):], extras: map[int]extra{}, ends: map[begin]int{}}
	for v.digit() { // the version of the encoding
		v.at++
	}
	v.path()
	if v.at < len(v.s) && v.s[v.at] != '.' && v.s[v.at] != '$' {
		v.path() // the crate that made the instance
	}
	if v.bad || v.at < len(v.s) && v.s[v.at] != '.' && v.s[v.at] != '$' { // what LLVM appends
		return name, 0, false
	}
	work = rustWork(len(v.s), func(at int) extra { return v.extras[at] })
	if v.copied == 0 {
		return name, work, true
	}
	return "_R" + string(v.out) + v.s[v.copied:], work, true
}

// v0 is a walk over a name.
type v0 struct {
	s   string
	at  int
	bad bool

	out    []byte // written anew, up to copied
	copied int
	moves  []move

	extras map[int]extra // by place
	ends   map[begin]int // of what has ended
}

// begin is where something begins that can be referred to, and what that is:
// 'p' a path, 't' a type, 'k' a constant.
type begin struct {
	at   int
	what byte
}

// move says that what is at or behind a place of the old name is so many bytes
// further on in the new one than what is before it.
type move struct{ from, by int }

func (v *v0) peek() byte {
	if v.bad || v.at >= len(v.s) {
		return 0
	}
	return v.s[v.at]
}

func (v *v0) next() byte {
	c := v.peek()
	v.bad = v.bad || c == 0
	v.at++
	return c
}

func (v *v0) take(c byte) bool {
	if v.peek() != c {
		return false
	}
	v.at++
	return true
}

func (v *v0) digit() bool { c := v.peek(); return c >= '0' && c <= '9' }

// replace puts a text in the place of what is between from and here.
func (v *v0) replace(from int, text string) {
	v.out = append(append(v.out, v.s[v.copied:from]...), text...)
	v.copied = v.at
	if by := len(text) - (v.at - from); by != 0 {
		v.moves = append(v.moves, move{v.at, by})
	}
}

func (v *v0) number() { // base 62
	for v.peek() != '_' && !v.bad {
		v.next()
	}
	v.next()
}

// backref is read where a path, a type or a constant is expected.
func (v *v0) backref(what byte) {
	from := v.at
	to, ok := base62(v.s[min(from, len(v.s)):])
	v.number()
	if v.bad || !ok || to >= from-1 {
		v.bad = true
		return
	}
	end, known := v.ends[begin{to, what}]
	if !known {
		end = from - 1
	}
	v.extras[from-1] = extra{reference: true, to: to, end: end}
	by := 0
	for _, m := range v.moves {
		if to >= m.from {
			by += m.by
		}
	}
	if by != 0 {
		v.replace(from, base62Text(to+by))
	}
}

func (v *v0) identifier() {
	if v.take('s') {
		v.number()
	}
	v.undisambiguated()
}

func (v *v0) undisambiguated() {
	from, punycode := v.at, v.take('u')
	n, first := 0, v.peek()
	switch {
	case !v.digit():
		v.bad = true
		return
	case first == '0': // no other number begins so
		v.at++
	default:
		for v.digit() && n <= len(v.s) {
			n = 10*n + int(v.next()-'0')
		}
	}
	if n == 0 {
		if v.digit() {
			v.replace(v.at, "_")
		}
		return
	}
	v.take('_')
	if v.at += n; v.at > len(v.s) {
		v.bad = true
		return
	}
	if punycode {
		v.extras[from] = extra{punycode: n}
	}
}

func (v *v0) path() {
	from := v.at
	defer func() { v.ends[begin{from, 'p'}] = v.at }()
	switch v.next() {
	case 'C':
		v.identifier()
	case 'M':
		v.implementation()
		v.typ()
	case 'X':
		v.implementation()
		v.typ()
		v.path()
	case 'Y':
		v.typ()
		v.path()
	case 'N':
		v.next()
		v.path()
		v.identifier()
	case 'I':
		v.path()
		for !v.bad && !v.take('E') {
			switch {
			case v.take('L'):
				v.number()
			case v.take('K'):
				v.constant()
			default:
				v.typ()
			}
		}
	case 'B':
		v.backref('p')
	default:
		v.bad = true
	}
}

func (v *v0) implementation() {
	if v.take('s') {
		v.number()
	}
	v.path()
}

func (v *v0) typ() {
	from := v.at
	defer func() { v.ends[begin{from, 't'}] = v.at }()
	c := v.peek()
	if c >= 'a' && c <= 'z' {
		v.at++
		return
	}
	switch c {
	case 'C', 'M', 'X', 'Y', 'N', 'I':
		v.path()
		return
	}
	v.at++
	switch c {
	case 'B':
		v.backref('t')
	case 'A':
		v.typ()
		v.constant()
	case 'S', 'P', 'O':
		v.typ()
	case 'R', 'Q':
		if v.take('L') {
			v.number()
		}
		v.typ()
	case 'T':
		for !v.bad && !v.take('E') {
			v.typ()
		}
	case 'F':
		v.binder()
		v.take('U')
		if v.take('K') && !v.take('C') {
			v.undisambiguated()
		}
		for !v.bad && !v.take('E') {
			v.typ()
		}
		v.typ()
	case 'D':
		v.binder()
		for !v.bad && !v.take('E') {
			v.path()
			for v.take('p') {
				v.undisambiguated()
				v.typ()
			}
		}
		if v.bad = v.bad || !v.take('L'); !v.bad {
			v.number()
		}
	default:
		v.bad = true
	}
}

func (v *v0) binder() {
	if v.take('G') {
		v.number()
	}
}

func (v *v0) constant() {
	from := v.at
	defer func() { v.ends[begin{from, 'k'}] = v.at }()
	c := v.next()
	switch {
	case c == 'p':
	case c == 'B':
		v.backref('k')
	case c >= 'a' && c <= 'z': // its type, and its value in hexadecimal digits
		v.take('n')
		v.number()
	case c == 'R', c == 'Q':
		v.constant()
	case c == 'A', c == 'T':
		v.constants()
	case c == 'V':
		v.path()
		switch v.next() {
		case 'U':
		case 'T':
			v.constants()
		case 'S':
			for !v.bad && !v.take('E') {
				v.identifier()
				v.constant()
			}
		default:
			v.bad = true
		}
	default:
		v.bad = true
	}
}

func (v *v0) constants() {
	for !v.bad && !v.take('E') {
		v.constant()
	}
}

// base62Text is the inverse of base62.
func base62Text(n int) string {
	if n == 0 {
		return "_"
	}
	const digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	s := "_"
	for n--; ; n /= 62 {
		if s = string(digits[n%62]) + s; n < 62 {
			return s
		}
	}
}
