package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"probity/evidence"
)

// walOf is a file of these writes.
func walOf(head []byte, writes ...string) []byte {
	b := append(openFrame(nil), head...)
	sum := closeFrame(b, 0, 0)
	for i, w := range writes {
		at := len(b)
		b = binary.LittleEndian.AppendUint64(openFrame(b), uint64(1000+i))
		b = append(b, w...)
		sum = closeFrame(b, at, sum)
	}
	return b
}

func someHead() []byte {
	return encodeWALHead(evidence.Header{Node: "n", BootID: "b", Seq: 7, Clock: evidence.Clock{BootNs: 5, Wall: evidence.TimeOf(time.Unix(1, 2))}}, "0123456789abcdef")
}

// Whatever is missing at the end, and whichever bit is wrong, what counts is a
// prefix of what was written, in whole writes.
func TestTornWAL(t *testing.T) {
	writes := []string{"one\n", "two\nthree\n", "four\n"}
	b := walOf(someHead(), writes...)
	ends := []int{len(walOf(someHead()))}
	for i := range writes {
		ends = append(ends, len(walOf(someHead(), writes[:i+1]...)))
	}
	whole := func(n int) (whole int) { // so many writes end before byte n; -1: not even the head
		whole = -1
		for _, e := range ends {
			if e <= n {
				whole++
			}
		}
		return whole
	}
	check := func(what string, b []byte, want int) {
		t.Helper()
		c, err := readWAL(b)
		if want < 0 {
			if !errors.Is(err, errNoHead) {
				t.Fatalf("%s: %v", what, err)
			}
			return
		}
		if lines := strings.Join(writes[:want], ""); err != nil || string(c.lines) != lines || want > 0 && c.atNs != int64(999+want) {
			t.Fatalf("%s: %q at %d, %v; want %q", what, c.lines, c.atNs, err, lines)
		}
		if c.cut != len(b)-ends[want] {
			t.Fatalf("%s: %d bytes cut off, want %d", what, c.cut, len(b)-ends[want])
		}
	}
	for n := range len(b) + 1 {
		check("cut off", b[:n], whole(n))
		check("zeros", append(bytes.Clone(b[:n]), make([]byte, len(b)-n)...), whole(n))
		if n < len(b) {
			bad := bytes.Clone(b)
			bad[n] ^= 0x10
			check("another bit", bad, whole(n))
		}
	}
	// The writes of another file, or in another order, do not count.
	other := walOf([]byte(strings.Replace(string(someHead()), `"7"`, `"8"`, 1)), writes...)
	check("the end of another file", append(bytes.Clone(b[:ends[1]]), other[ends[1]:]...), 1)
	check("a write twice", append(bytes.Clone(b[:ends[2]]), b[ends[1]:]...), 2)
}

func TestWALHead(t *testing.T) {
	for why, head := range map[string]string{
		"another format": strings.Replace(string(someHead()), walFormat, "probity-wal/9", 1),
		"not JSON":       "x",
		"two values":     string(someHead()) + "{}",
		"another member": strings.Replace(string(someHead()), "{", `{"x":1,`, 1),
	} {
		if _, err := readWAL(walOf([]byte(head), "one\n")); err == nil || errors.Is(err, errNoHead) {
			t.Errorf("%s: %v", why, err)
		}
	}
	if c, err := readWAL(walOf(someHead(), "one\n")); err != nil || c.head.Seq != 7 || c.head.BootID != "b" || c.head.Clock.BootNs != 5 {
		t.Errorf("%+v, %v", c.head, err)
	}
	// The longest that a header can have.
	longest := encodeWALHead(evidence.Header{Node: strings.Repeat("<", 1000), BootID: strings.Repeat("&", 1000)}, "0123456789abcdef")
	if c, err := readWAL(walOf(longest, "one\n")); err != nil || len(c.head.Node) != 1000 {
		t.Errorf("a long name: %v", err)
	}
	// Whole frames that we do not write.
	for _, w := range []string{"", "no newline"} {
		if c, err := readWAL(walOf(someHead(), "one\n", w, "two\n")); err != nil || string(c.lines) != "one\n" || c.cut == 0 {
			t.Errorf("%q: %+v, %v", w, c, err)
		}
	}
}

func FuzzWAL(f *testing.F) {
	f.Add(walOf(someHead(), "one\n", "two\n"))
	f.Add(walOf(someHead()))
	f.Add(walOf([]byte("{}")))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := readWAL(b)
		if err != nil {
			return
		}
		if len(c.lines) > 0 && c.lines[len(c.lines)-1] != '\n' || c.cut > len(b) || len(c.lines) > len(b) {
			t.Fatalf("%+v of %d bytes", c, len(b))
		}
		again, err := readWAL(b[:len(b)-c.cut])
		if err != nil || again.cut != 0 || !bytes.Equal(again.lines, c.lines) {
			t.Fatalf("without what was cut off: %+v, %v", again, err)
		}
	})
}
