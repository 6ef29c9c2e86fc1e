package image

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCacheKeepsAndForgets(t *testing.T) {
	base := t.TempDir()
	var layers []Layer
	for i := range 4 {
		layers = append(layers, Layer{Dir: tree(t, fmt.Sprintf("%s/%d/diff", base, i), map[string]string{"f": "1", fmt.Sprint("g", i): "1"})})
	}
	// One layer has 2 names, and its tree of itself 3 nodes.
	c := &Cache{Entries: 11}
	look := func(i int) *merged {
		t.Helper()
		v, err := c.View(t.Context(), Rootfs{Layers: layers[i : i+1]})
		if err != nil {
			t.Fatal(err)
		}
		if ms, complete, _ := v.Glob("/g*"); len(ms) != 1 || !complete || ms[0].Path != fmt.Sprint("/g", i) {
			t.Fatalf("layer %d: %v %v", i, ms, complete)
		}
		if c.held > c.Entries {
			t.Fatalf("%d entries held, at most %d are allowed", c.held, c.Entries)
		}
		return v.m
	}
	first := look(0)
	if look(0) != first {
		t.Error("a warm view was built again")
	}
	look(1)
	if look(0) != first {
		t.Error("it was forgotten with room left")
	}
	look(2)
	look(3)
	if look(0) == first {
		t.Error("it was kept past the bound")
	}
	if len(c.byKey) != c.used.Len() || len(c.flights) != 0 {
		t.Errorf("%d keys, %d values, %d flights", len(c.byKey), c.used.Len(), len(c.flights))
	}

	// A layer that was removed and made again is another one.
	old := look(0)
	if err := os.RemoveAll(layers[0].Dir); err != nil {
		t.Fatal(err)
	}
	tree(t, layers[0].Dir, map[string]string{"g0": "1", "more": "1"})
	if look(0) == old {
		t.Error("a replaced layer was taken for the old one")
	}
}

func TestCacheReadsOnce(t *testing.T) {
	dir := bigLayer(t, 2000)
	c := new(Cache)
	var wg sync.WaitGroup
	seen := make([]*merged, 16)
	for i := range seen {
		wg.Add(1)
		go func() {
			defer wg.Done()
			v, err := c.View(t.Context(), Rootfs{Layers: []Layer{{Dir: dir}}})
			if err != nil {
				t.Error(err)
				return
			}
			if ms, complete, why := v.Glob("/usr/**/libgreet.so*"); len(ms) != 1 || !complete {
				t.Errorf("%v %v %s", ms, complete, why)
			}
			seen[i] = v.m
		}()
	}
	wg.Wait()
	for _, m := range seen {
		if m != seen[0] {
			t.Fatal("the layer was read more than once")
		}
	}
}

// The upper directory is never remembered.
func TestUpperIsReadFresh(t *testing.T) {
	base := t.TempDir()
	r := Rootfs{Layers: []Layer{{Dir: tree(t, base+"/l", map[string]string{"lib/a.so": "1"})}}, Upper: tree(t, base+"/u", nil)}
	c := new(Cache)
	check := func(want string) {
		t.Helper()
		v, err := c.View(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		ms, _, _ := v.Glob("/lib/*.so")
		got := ""
		for _, m := range ms {
			got += fmt.Sprintf("%s %s %d;", m.Path, m.Origin, m.Size)
		}
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	check("/lib/a.so imageLayer 1;")
	tree(t, r.Upper, map[string]string{"lib/b.so": "22"})
	check("/lib/a.so imageLayer 1;/lib/b.so upper 2;")
	tree(t, r.Upper, map[string]string{"lib/a.so": "333", "lib/b.so": "4444"})
	check("/lib/a.so upper 3;/lib/b.so upper 4;")
	other := r
	other.Upper = tree(t, base+"/other", map[string]string{"lib/a.so": "1234567", "lib/b.so": "1"}) // alike, in another place
	r = other
	check("/lib/a.so upper 7;/lib/b.so upper 1;")
}

// bigLayer makes a layer of n files in n/10 directories.
func bigLayer(t testing.TB, n int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layer", "diff")
	for i := range n / 10 {
		sub := fmt.Sprintf("%s/usr/share/%d/%d/%d", dir, i%7, i%31, i)
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		for j := range 10 {
			path := fmt.Sprintf("%s/file-with-a-usual-name-%d.py", sub, j)
			if j == 9 {
				if err := os.Symlink("file-with-a-usual-name-0.py", path); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	tree(t, dir, map[string]string{"usr/lib/x/libgreet.so.1": "1"})
	return dir
}

// The budgets of a start, with room for a slow and busy machine; the numbers
// themselves are in the log and in the benchmarks.
// BenchmarkView is what a start pays for finding files: four patterns over
// three layers, the first time and again.
func BenchmarkView(b *testing.B) {
	up := tree(b, b.TempDir()+"/up", map[string]string{"etc/hosts": "", "etc/hostname": "", "run/.containerenv": "", "proc": "dir", "dev": "dir", "sys": "dir"})
	r := Rootfs{Layers: []Layer{{Dir: bigLayer(b, 20_000)}, {Dir: bigLayer(b, 100)}, {Dir: bigLayer(b, 100)}}, Upper: up}
	start := func(c *Cache) {
		v, err := c.View(b.Context(), r)
		if err != nil {
			b.Fatal(err)
		}
		for _, p := range []string{"/usr/**/libgreet.so*", "/usr/lib/x/libgreet.so.1", "/**/libgreet.so*", "/usr/bin/*"} {
			v.Glob(p)
		}
	}
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			start(new(Cache))
		}
	})
	b.Run("warm", func(b *testing.B) {
		c := new(Cache)
		start(c)
		for b.Loop() {
			start(c)
		}
	})
}

func BenchmarkIndex20k(b *testing.B) {
	fd, err := openDir(bigLayer(b, 20_000), false)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := readIndex(b.Context(), fd, DefaultLayerEntries); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMerge20k(b *testing.B) {
	fd, err := openDir(bigLayer(b, 20_000), false)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	x, err := readIndex(b.Context(), fd, DefaultLayerEntries)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		merge([]*Index{x, x}, false)
	}
}

func BenchmarkGlob(b *testing.B) {
	base := b.TempDir()
	r := Rootfs{Layers: []Layer{{Dir: bigLayer(b, 20_000)}}, Upper: tree(b, base+"/u", map[string]string{"etc/hosts": ""})}
	for name, warm := range map[string]bool{"cold": false, "warm": true} {
		b.Run(name, func(b *testing.B) {
			c := new(Cache)
			for b.Loop() {
				v, err := c.View(b.Context(), r)
				if err != nil {
					b.Fatal(err)
				}
				if !warm {
					v.m.memo.results = nil
				}
				if ms, _, _ := v.Glob("/usr/**/libgreet.so*"); len(ms) != 1 {
					b.Fatal(ms)
				}
			}
		})
	}
}
