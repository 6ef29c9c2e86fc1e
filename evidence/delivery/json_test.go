package delivery

import (
	"bytes"
	"encoding/json"
	"testing"
)

// FuzzMembers compares what is found in JSON with what encoding/json makes of it.
func FuzzMembers(f *testing.F) {
	for _, s := range []string{`{"a":1,"b":[1,"]",{"a":"}"}]}`, ` { "a" : { } , "\u0061" : "\"" } `, `[[],{},"a\\",-1.5e3 , null,true]`, `{}`, `[]`, `null`, `"a"`, `{"a":1,"a":[],"b":"\\\""}`, `-0`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if !json.Valid(b) {
			return
		}
		var object map[string]json.RawMessage
		isObject := json.Unmarshal(b, &object) == nil
		found, ok := members(b, "a", "b")
		if ok != isObject {
			t.Fatalf("%s: an object: %v, %v", b, ok, isObject)
		}
		for i, name := range []string{"a", "b"} {
			if !bytes.Equal(found[i], object[name]) {
				t.Errorf("%s: %s is %s, want %s", b, name, found[i], object[name])
			}
		}
		var list, got []json.RawMessage
		isList := json.Unmarshal(b, &list) == nil
		if ok := items(b, func(v json.RawMessage) bool { got = append(got, v); return true }); ok != isList || len(got) != len(list) {
			t.Fatalf("%s: a list: %v of %d, %v of %d", b, ok, len(got), isList, len(list))
		}
		for i := range list {
			if !bytes.Equal(got[i], list[i]) {
				t.Errorf("%s: item %d is %s, want %s", b, i, got[i], list[i])
			}
		}
	})
}
