package evidence

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// This file reads canonical JSON: exactly the bytes that marshal writes for a
// struct and nothing else. Members stand in the order of the struct, without
// white space, each at most once, every text and number in its one spelling.
// A reader that takes nothing else needs no second encoding to know that the
// bytes are canonical, and is several times as fast as encoding/json, which
// takes duplicate members, any case and any order. FuzzDecode holds the two
// against each other.

// valueKind is how a member is read.
type valueKind uint8

const (
	isString valueKind = iota
	isInt
	isBool
	isFloat
	isUint64
	isLoss
	isTime
	isStruct
	isPointer
	isSlice
)

// omission is when a member may be absent; then it must be absent.
type omission uint8

const (
	never omission = iota
	whenEmpty
	whenZero
)

// shape is how a Go type is written.
type shape struct {
	kind   valueKind
	elem   *shape   // of a pointer or slice
	fields []member // of a struct
	typ    reflect.Type
}

type member struct {
	name  string
	key   string // `"name":`
	omit  omission
	shape *shape
}

var (
	coverageShape    = shapeOf(reflect.TypeFor[Coverage]())
	observationShape = shapeOf(reflect.TypeFor[Observation]())
	gapShape         = shapeOf(reflect.TypeFor[Gap]())
	headerShape      = shapeOf(reflect.TypeFor[Header]())
	statementShape   = shapeOf(reflect.TypeFor[Statement]())
)

// shapeOf panics on a type that the format does not use: the tables above are
// made when the program starts.
func shapeOf(t reflect.Type) *shape {
	s := &shape{typ: t}
	switch t {
	case reflect.TypeFor[Uint64]():
		s.kind = isUint64
		return s
	case reflect.TypeFor[Loss]():
		s.kind = isLoss
		return s
	case reflect.TypeFor[Time]():
		s.kind = isTime
		return s
	}
	switch t.Kind() {
	case reflect.String:
		s.kind = isString
	case reflect.Int:
		s.kind = isInt
	case reflect.Bool:
		s.kind = isBool
	case reflect.Float64:
		s.kind = isFloat
	case reflect.Pointer:
		s.kind, s.elem = isPointer, shapeOf(t.Elem())
	case reflect.Slice:
		s.kind, s.elem = isSlice, shapeOf(t.Elem())
	case reflect.Struct:
		s.kind = isStruct
		for i := range t.NumField() {
			name, opt, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
			m := member{name: name, key: `"` + name + `":`, shape: shapeOf(t.Field(i).Type)}
			switch opt {
			case "":
			case "omitempty":
				m.omit = whenEmpty
			case "omitzero":
				m.omit = whenZero
			default:
				panic("evidence: " + t.String() + "." + name + ": option " + opt + " is not read")
			}
			s.fields = append(s.fields, m)
		}
	default:
		panic("evidence: " + t.String() + " is not read")
	}
	return s
}

// reader walks over one line. The texts it stores are parts of s.
type reader struct {
	s string
	i int
}

// decodeCanonical reads all of s into v, a struct of the given shape.
func decodeCanonical(s string, sh *shape, v reflect.Value) error {
	r := reader{s: s}
	if err := r.object(sh, v); err != nil {
		return err
	}
	if r.i != len(s) {
		return fmt.Errorf("%d bytes follow the object", len(s)-r.i)
	}
	return nil
}

func (r *reader) at(c byte) bool { return r.i < len(r.s) && r.s[r.i] == c }

func (r *reader) take(c byte) bool {
	if !r.at(c) {
		return false
	}
	r.i++
	return true
}

func (r *reader) fail(what string) error {
	return fmt.Errorf("byte %d: want %s", r.i+1, what)
}

func (r *reader) object(sh *shape, v reflect.Value) error {
	if !r.take('{') {
		return r.fail("an object")
	}
	first := true
	for i := range sh.fields {
		m := &sh.fields[i]
		at := r.i
		if !first && r.at(',') {
			at++
		} else if !first {
			at = len(r.s) // no further member: what is left may all be absent
		}
		if !strings.HasPrefix(r.s[at:], m.key) {
			if m.omit == never {
				return r.fail(strconv.Quote(m.name))
			}
			continue
		}
		r.i, first = at+len(m.key), false
		f := v.Field(i)
		if err := r.value(m.shape, f); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if m.omit != never && isAbsent(f) {
			return fmt.Errorf("%s: byte %d: an empty value is left out", m.name, r.i)
		}
	}
	if !r.take('}') {
		return r.fail("the end of the object, or the next member in order")
	}
	return nil
}

// isAbsent reports whether marshal leaves out a member with omitempty or omitzero.
func isAbsent(v reflect.Value) bool {
	if v.Kind() == reflect.Slice {
		return v.Len() == 0
	}
	return v.IsZero()
}

func (r *reader) value(sh *shape, v reflect.Value) error {
	switch sh.kind {
	case isString:
		s, err := r.text()
		v.SetString(s)
		return err
	case isBool:
		switch {
		case strings.HasPrefix(r.s[r.i:], "true"):
			v.SetBool(true)
			r.i += len("true")
		case strings.HasPrefix(r.s[r.i:], "false"):
			r.i += len("false")
		default:
			return r.fail("true or false")
		}
		return nil
	case isInt:
		lit := r.number()
		n, err := strconv.ParseInt(lit, 10, 64)
		if err != nil || strconv.FormatInt(n, 10) != lit {
			return r.fail("a whole number in its shortest form")
		}
		v.SetInt(n)
		return nil
	case isFloat:
		lit := r.number()
		f, err := strconv.ParseFloat(lit, 64)
		if err != nil || formatFloat(f) != lit {
			return r.fail("a number in its shortest form")
		}
		v.SetFloat(f)
		return nil
	case isUint64, isLoss, isTime:
		return r.textual(sh, v)
	case isPointer:
		p := reflect.New(sh.elem.typ)
		v.Set(p)
		return r.value(sh.elem, p.Elem())
	case isSlice:
		return r.list(sh, v)
	}
	return r.object(sh, v)
}

// textual reads the types that are texts in JSON and have a form of their own.
// encoding/json would take these texts with escapes too; canonical they have none.
func (r *reader) textual(sh *shape, v reflect.Value) error {
	s, err := r.text()
	if err != nil {
		return err
	}
	switch p := v.Addr().Interface().(type) {
	case *Uint64:
		return p.UnmarshalText([]byte(s))
	case *Loss:
		return p.UnmarshalText([]byte(s))
	case *Time:
		t, ok := parseTime(s)
		if !ok {
			return fmt.Errorf("%q is not a time of the form %s", clip(s), TimeLayout)
		}
		p.t = t
		return nil
	}
	panic("evidence: " + sh.typ.String() + " is not read")
}

func (r *reader) list(sh *shape, v reflect.Value) error {
	if !r.take('[') {
		return r.fail("a list")
	}
	out := reflect.MakeSlice(sh.typ, 0, 0)
	for !r.take(']') {
		if out.Len() > 0 && !r.take(',') {
			return r.fail("',' or ']'")
		}
		out = reflect.Append(out, reflect.Zero(sh.elem.typ))
		if err := r.value(sh.elem, out.Index(out.Len()-1)); err != nil {
			return fmt.Errorf("[%d]: %w", out.Len()-1, err)
		}
	}
	v.Set(out)
	return nil
}

// number returns the characters of a JSON number, whatever their order.
func (r *reader) number() string {
	at := r.i
	for r.i < len(r.s) && strings.IndexByte("0123456789+-.eE", r.s[r.i]) >= 0 {
		r.i++
	}
	return r.s[at:r.i]
}

// text reads a JSON string.
func (r *reader) text() (string, error) {
	if !r.take('"') {
		return "", r.fail("a text")
	}
	at := r.i
	for i := at; i < len(r.s); i++ {
		c := r.s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
			continue
		}
		if c == '"' {
			r.i = i + 1
			return r.s[at:i], nil
		}
		return r.unusual(at, i)
	}
	r.i = len(r.s)
	return "", r.fail("the end of the text")
}

// unusual reads a text with escapes or beyond ASCII. It begins at at; what is
// before i is plain.
func (r *reader) unusual(at, i int) (string, error) {
	escapes := false
	for ; i < len(r.s) && r.s[i] != '"'; i++ {
		switch c := r.s[i]; {
		case c < ' ':
			r.i = i
			return "", r.fail("no control character in a text")
		case c == '\\':
			escapes = true
			i++ // the next byte is not the end
		}
	}
	if i >= len(r.s) {
		r.i = len(r.s)
		return "", r.fail("the end of the text")
	}
	whole, inner := r.s[at-1:i+1], r.s[at:i]
	r.i = i + 1
	if !escapes && utf8.ValidString(inner) && !strings.Contains(inner, "\u2028") && !strings.Contains(inner, "\u2029") {
		return inner, nil
	}
	var s string
	if err := json.Unmarshal([]byte(whole), &s); err != nil {
		return "", err
	}
	again, err := marshal(s)
	if err != nil {
		return "", err
	}
	if string(again) != whole {
		return "", fmt.Errorf("%s has another spelling, %s", clip(whole), clip(string(again)))
	}
	return s, nil
}

// formatFloat is encoding/json's spelling of a number, which is ECMAScript's.
func formatFloat(f float64) string {
	if abs := math.Abs(f); abs == 0 && !math.Signbit(f) || abs >= 1e-6 && abs < 1e21 {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	b, err := json.Marshal(f)
	if err != nil {
		return ""
	}
	return string(b)
}
