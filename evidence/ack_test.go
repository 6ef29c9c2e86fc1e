package evidence_test

import (
	"testing"

	"probity/evidence"
)

func FuzzAck(f *testing.F) {
	f.Add([]byte(`{"consumer":"c","origin":"o","size":"1","root":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","at":"2026-01-02T03:04:05.000000000Z"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := evidence.ParseAck(b); err == nil && (!evidence.ValidConsumer(a.Consumer) || a.Origin == "") {
			t.Errorf("%+v", a)
		}
	})
}
