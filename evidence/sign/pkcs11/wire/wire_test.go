package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"probity/evidence/sign/pkcs11/wire"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	for _, body := range [][]byte{nil, []byte("x"), make([]byte, wire.MaxFrame-1)} {
		if err := wire.Write(&b, 'S', body); err != nil {
			t.Fatal(err)
		}
		kind, got, err := wire.Read(&b)
		if err != nil || kind != 'S' || !bytes.Equal(got, body) {
			t.Errorf("%d bytes: %c, %d bytes, %v", len(body), kind, len(got), err)
		}
	}
	if _, _, err := wire.Read(&b); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if err := wire.Write(&b, 'S', make([]byte, wire.MaxFrame)); err == nil || b.Len() > 0 {
		t.Errorf("too long: %v", err)
	}
	for why, raw := range map[string]string{
		"half a length": "\x00\x00", "no byte": "\x00\x00\x00\x00", "cut off": "\x00\x00\x00\x05ab", "only a length": "\x00\x00\x00\x05",
		"too long": "\x00\x01\x00\x00" + string(make([]byte, 1<<16)), "text": "Segmentation fault",
	} {
		if _, _, err := wire.Read(bytes.NewReader([]byte(raw))); !errors.Is(err, wire.ErrFrame) {
			t.Errorf("%s: %v", why, err)
		}
	}
}

func TestParseOpen(t *testing.T) {
	slot := uint64(7)
	want := wire.Open{Module: "/m.so", Token: "t", Slot: &slot, ID: []byte{1}, PIN: []byte("1234"), Generate: true}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := wire.ParseOpen(b)
	if err != nil || got.Module != want.Module || *got.Slot != 7 || !bytes.Equal(got.PIN, want.PIN) || !got.Generate {
		t.Errorf("%+v, %v", got, err)
	}
	for why, raw := range map[string]string{
		"nothing": "", "no key": `{"module":"/m.so"}`, "no module": `{"object":"o"}`, "unknown": `{"module":"/m.so","object":"o","x":1}`, "two": `{"module":"/m.so","object":"o"}{}`,
	} {
		if _, err := wire.ParseOpen([]byte(raw)); err == nil {
			t.Errorf("%s: taken", why)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02Oa"))
	f.Add([]byte("\x00\x00\x00\x30O" + `{"module":"/m.so","object":"o","pin":"MTIzNA=="}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, body, err := wire.Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := wire.Write(&again, kind, body); err != nil || !bytes.HasPrefix(b, again.Bytes()) {
			t.Fatalf("read as another frame: %v", err)
		}
		if o, err := wire.ParseOpen(body); err == nil && o.Module == "" {
			t.Error("no module")
		}
	})
}
