package kernels

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// What a flush, or a forced write, was done for stays; of the rest any sectors do; and
// behind the cut nothing is done.
func TestDiskForgets(t *testing.T) {
	const size = 16 * sectorSize
	write := func(d *Disk, sector int64, fill byte, n int, force bool) bool {
		return d.do(diskOp{at: sector * sectorSize, data: bytes.Repeat([]byte{fill}, n*sectorSize), force: force})
	}
	d := NewDisk(bytes.Repeat([]byte{'.'}, size), 5)
	write(d, 0, 'a', 2, false)
	d.do(diskOp{})
	write(d, 1, 'b', 8, false)
	write(d, 10, 'f', 1, true)
	select {
	case <-d.Gone():
		t.Fatal("the power is gone early")
	default:
	}
	write(d, 12, 'c', 1, false)
	<-d.Gone()
	if write(d, 13, 'x', 1, false) || d.do(diskOp{}) || d.read(make([]byte, 1), 0) {
		t.Error("it answers without power")
	}
	sectors := func(b []byte) (out string) {
		for i := 0; i < len(b); i += sectorSize {
			out += string(b[i])
		}
		return out
	}
	r := rand.New(rand.NewPCG(1, 1))
	for _, c := range []struct {
		ops  int
		keep float64
		want string
	}{
		{0, 1, "................"},
		{1, 0, "................"},
		{1, 1, "aa.............."},
		{2, 0, "aa.............."},
		{5, 0, "aa........f....."},
		{5, 1, "abbbbbbbb.f.c..."},
	} {
		if got := sectors(d.After(c.ops, c.keep, r)); got != c.want {
			t.Errorf("after %d operations, with %v of the rest: %s, want %s", c.ops, c.keep, got, c.want)
		}
	}
	torn := map[string]bool{}
	for range 100 {
		got := sectors(d.After(5, 0.5, r))
		torn[got] = true
		if got[0] != 'a' || got[1] == '.' || got[10] != 'f' || got[2] == 'b' != (got[3] == 'b') {
			t.Fatalf("%s: what was flushed is gone, or the superblock is torn", got)
		}
	}
	if len(torn) < 50 {
		t.Errorf("%d different losses", len(torn))
	}
}
