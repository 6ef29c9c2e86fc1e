package spool_test

import (
	"os"
	"strings"
	"testing"

	"probity/evidence/spool"
)

// Only a beginning of which nothing is missing is acknowledged, and only what has
// the digest that the node logged.
func TestAckReceived(t *testing.T) {
	other := "sha256:" + strings.Repeat("0", 64)
	for _, c := range []struct {
		what    string
		far     func(i int, it spool.Item) string
		here    func(t *testing.T, items []spool.Item)
		chunks  int
		missing int // the index, -1 if none
		wrong   string
	}{
		{"all", func(_ int, it spool.Item) string { return it.Digest }, nil, 4, -1, ""},
		{"nothing", func(int, spool.Item) string { return "" }, nil, 0, 0, ""},
		{"all but the first", func(i int, it spool.Item) string {
			if i == 0 {
				return ""
			}
			return it.Digest
		}, nil, 0, 0, ""},
		{"all but the third", func(i int, it spool.Item) string {
			if i == 2 {
				return ""
			}
			return it.Digest
		}, nil, 2, 2, ""},
		{"another second", func(i int, it spool.Item) string {
			if i == 1 {
				return other
			}
			return it.Digest
		}, nil, 1, -1, "the far side has it with the digest"},
		{"the third was changed here", func(_ int, it spool.Item) string { return it.Digest }, func(t *testing.T, items []spool.Item) {
			spoilFile(t, items[2].Path, func(b []byte) []byte { b[2000] ^= 1; return b })
		}, 2, -1, "and its leaf says"},
		{"the third is not here any more", func(_ int, it spool.Item) string { return it.Digest }, func(t *testing.T, items []spool.Item) {
			must(t, os.Remove(items[2].Path))
		}, 4, -1, ""},
	} {
		n := newNode(t)
		s := n.open(t)
		for i := range 4 {
			n.publish(t, s, i+1, true)
		}
		must(t, s.Close())
		r := reader(t, n, "far")
		items := pending(t, r)
		if c.here != nil {
			c.here(t, items)
		}
		got, err := r.AckReceived(t.Context(), func(chunk string) string {
			for i, it := range items {
				if it.Chunk == chunk {
					return c.far(i, it)
				}
			}
			t.Errorf("%s: asked for %s", c.what, chunk)
			return ""
		})
		must(t, err)
		missing := ""
		if c.missing >= 0 {
			missing = items[c.missing].Chunk
		}
		if got.Chunks != c.chunks || got.Missing != missing || !strings.Contains(got.Wrong, c.wrong) || (c.wrong == "") != (got.Wrong == "") || (got.Ack != nil) != (c.chunks > 0) {
			t.Errorf("%s: %+v", c.what, got)
		}
		if left := pending(t, r); len(left) != 4-c.chunks || got.Pending != len(left) {
			t.Errorf("%s: %d are pending, said %d", c.what, len(left), got.Pending)
		}
	}
}
