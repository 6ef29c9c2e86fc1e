package evidence_test

import (
	"strings"
	"testing"

	"probity/evidence"
)

const anAck = `{"consumer":"c","origin":"o","size":"1","root":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","at":"2026-01-02T03:04:05.000000000Z"}`

// Whoever reads acknowledgements in another language sees the same members.
func TestAckMembers(t *testing.T) {
	if _, err := evidence.ParseAck([]byte(" " + anAck + "\n")); err != nil {
		t.Error(err)
	}
	for _, change := range [][2]string{
		{`"size"`, `"Size"`}, {`"size":"1",`, ``}, {`{`, `{"more":1,`}, {`{`, `{"SIZE":"2",`}, {`"at":"2026`, `"at":"26`}, {`}`, `}{}`},
	} {
		b := strings.Replace(anAck, change[0], change[1], 1)
		if _, err := evidence.ParseAck([]byte(b)); err == nil || b == anAck {
			t.Errorf("taken: %s", b)
		}
	}
}

func FuzzAck(f *testing.F) {
	f.Add([]byte(anAck))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := evidence.ParseAck(b); err == nil && (!evidence.ValidConsumer(a.Consumer) || a.Origin == "") {
			t.Errorf("%+v", a)
		}
	})
}
