package delivery

import (
	"bytes"
	"encoding/json"
)

// This file finds values in JSON without making any: a batch may have millions of empty
// ones, each of which would take much more memory than its text. What it is given
// encoding/json has found to be valid.

// valid is any value, of which nothing is kept: decoding it says whether it is JSON.
type valid struct{}

func (*valid) UnmarshalJSON([]byte) error { return nil }

// members returns those of an object that are called so, the last of each. ok is false
// if it is no object, but for null and what is absent, which have none.
func members(v json.RawMessage, names ...string) (found [5]json.RawMessage, ok bool) {
	ok = each(v, '{', func(name, value json.RawMessage) bool {
		for i, n := range names {
			if bytes.Equal(name[1:len(name)-1], []byte(n)) || bytes.IndexByte(name, '\\') >= 0 && text(name) == n {
				found[i] = value
			}
		}
		return true
	})
	return found, ok
}

// items calls do with each of a list until one is false. It reports whether it is a
// list of which none was; null and what is absent are empty ones.
func items(v json.RawMessage, do func(json.RawMessage) bool) bool {
	return each(v, '[', func(_, value json.RawMessage) bool { return do(value) })
}

// each goes through an object or a list.
func each(v json.RawMessage, kind byte, do func(name, value json.RawMessage) bool) bool {
	i := space(v, 0)
	if i == len(v) || v[i] == 'n' {
		return true
	}
	if v[i] != kind {
		return false
	}
	for i = space(v, i+1); v[i] != '}' && v[i] != ']'; i = space(v, i) {
		var name json.RawMessage
		if kind == '{' {
			end := skip(v, i)
			name, i = v[i:end], space(v, space(v, end)+1) // behind the colon
		}
		end := skip(v, i)
		if !do(name, v[i:end]) {
			return false
		}
		if i = space(v, end); v[i] == ',' {
			i++
		}
	}
	return true
}

// space returns where white space from i on ends.
func space(v []byte, i int) int {
	for i < len(v) && (v[i] == ' ' || v[i] == '\t' || v[i] == '\n' || v[i] == '\r') {
		i++
	}
	return i
}

// skip returns where the value that begins at i ends.
func skip(v []byte, i int) int {
	for depth := 0; i < len(v); i++ {
		switch v[i] {
		case '"':
			for i++; v[i] != '"'; i++ {
				if v[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		case ',', ':', ' ', '\t', '\n', '\r':
			continue
		default: // a number, or a word
			for i+1 < len(v) && bytes.IndexByte([]byte(",]} \t\n\r"), v[i+1]) < 0 {
				i++
			}
		}
		if depth == 0 {
			return i + 1
		}
	}
	return len(v)
}
