package probe

import (
	"reflect"
	"testing"

	"probity/bpf/symbol"
)

// What was found for one query is no answer to another, whichever field they
// differ in, also one that is added later.
func TestInspectorKey(t *testing.T) {
	var in Inspector
	seen := map[*inspected]string{}
	entry := func(q symbol.Query, what string) {
		t.Helper()
		e := in.entry(keyOf(stamp{}, q))
		if e != in.entry(keyOf(stamp{}, q)) {
			t.Errorf("%s: forgotten", what)
		}
		if other, ok := seen[e]; ok {
			t.Errorf("%s is taken for %s", what, other)
		}
		seen[e] = what
	}
	entry(symbol.Query{}, "nothing")
	typ := reflect.TypeFor[symbol.Query]()
	for i := range typ.NumField() {
		var q symbol.Query
		switch f := reflect.ValueOf(&q).Elem().Field(i); f.Kind() {
		case reflect.Bool:
			f.SetBool(true)
			entry(q, typ.Field(i).Name)
		default:
			for _, list := range [][]string{{"a", "b"}, {"b", "a"}, {"a b"}, {`a" "b`}, {`a", "b`}, {"a\x00b"}} {
				f.Set(reflect.ValueOf(list))
				entry(q, typ.Field(i).Name)
			}
		}
	}
}
