package spool

import (
	"errors"
	"os"
	"testing"

	"probity/evidence"
)

// ForeignWAL is a write-ahead file like this one, of a version that wrote other
// lines.
func ForeignWAL(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := readWAL(b)
	if err != nil {
		t.Fatal(err)
	}
	c.head.Lines = "probity-chunk/9"
	return walOf(encodeWALHead(evidence.Header{Node: c.head.Node, BootID: c.head.BootID, Clock: c.head.Clock}, c.head.Instance), `{"kind":"other"}`+"\n")
}

// WALWithHead is a write-ahead file like this one under another head.
func WALWithHead(t testing.TB, path string, head func(string) string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := readWAL(b)
	if err != nil {
		t.Fatal(err)
	}
	payload, _ := nextFrame(b, 0)
	return walOf([]byte(head(string(payload))), string(c.lines))
}

// FillLog puts the leaves of n chunks that are long gone into the log.
func FillLog(t testing.TB, s *Spool, n int) {
	t.Helper()
	s.writing.Lock()
	defer s.writing.Unlock()
	at := s.cfg.Clock().Wall
	err := errors.Join(s.prepare(t.Context(), nil), s.book.begin(at))
	for i := 0; err == nil && i < n; i++ {
		name := evidence.ChunkName(uint64(i)+1<<20, s.state.instance)
		err = s.book.append(&evidence.ChunkLeaf{Chunk: name, Digest: digest([]byte(name)), Bytes: 1}, at)
	}
	if err = errors.Join(err, s.book.commit()); err != nil {
		t.Fatal(err)
	}
}
