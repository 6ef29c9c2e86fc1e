package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/bmatcuk/doublestar/v4"
	"golang.org/x/sys/unix"

	"probity/runtime/container"
)

func view(t testing.TB, r Rootfs) *View {
	t.Helper()
	r.Driver = "overlay"
	v, err := new(Cache).View(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func paths(ms []Match) []string {
	var out []string
	for _, m := range ms {
		out = append(out, m.Path)
	}
	return out
}

var plainFiles = map[string]string{
	"usr/lib/liba.so": "1", "usr/lib/liba.so.1": "1", "usr/lib/x/libb.so": "1", "usr/lib/x/y/libb.so.2": "1", "bin/sh": "1",
	"a": "1", "b/a": "1", "b/b/a": "1", "b/c,d": "1", "b/{x}": "1", "b/[x]": "1", "b/\\x": "1", "b/*": "1", "b/ä": "1", "b/\xff": "1", ".d/.f": "1",
}

// Without symlinks a search is the filter of all files by doublestar.Match.
func FuzzGlob(f *testing.F) {
	for _, p := range []string{
		"/usr/lib/**/lib*.so*", "/**", "/**/a", "/b/*", "/{a,b/{a,b/a}}", `/b/\*`, "/b/[[]x]", `/b/[\[]x]`, "/b/?", "/usr/*/x/**/libb.so.?",
		"/[!b]", "/b/{c\\,d,a}", `/b/\{x\}`, "/*/*", "//a", "/./a", "/b/[^a]", "/{**,usr}/liba.so", "/usr/{lib/**,x}/liba.so", "/b/**/a/**", "/{,b/}a", "/b/\xff", "/b/\x98", "/b***/a", "/b/**[*]*", `/b/\**`,
	} {
		f.Add(p)
	}
	dir := tree(f, f.TempDir(), plainFiles)
	v := view(f, Rootfs{Layers: []Layer{{Dir: dir}}})
	asUpper := view(f, Rootfs{Upper: dir})
	f.Fuzz(func(t *testing.T, pattern string) {
		ms, complete, why := v.Glob(pattern)
		up, upComplete, _ := asUpper.Glob(pattern)
		if !slices.Equal(paths(ms), paths(up)) || complete != upComplete {
			t.Errorf("%q: %q in a layer, %q in an upper directory", pattern, paths(ms), paths(up))
		}
		if !complete {
			if why == "" || len(ms) > 0 {
				t.Errorf("%q: %q incomplete because %q", pattern, paths(ms), why)
			}
			return
		}
		// Known differences of doublestar's two halves: Match lets "/a/**"
		// match a file /a, its globbing does not; repeated slashes and "**".
		// Three stars do not always match nothing. U+FFFD is what it takes any
		// byte for that is not UTF-8.
		if strings.ContainsRune(pattern, utf8.RuneError) || strings.Contains(pattern, "***") {
			return
		}
		plain, err := expand(pattern, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range plain {
			if strings.HasSuffix(p, "/**") || strings.HasSuffix(p, "/") || strings.Contains(p, "//") || strings.Contains(p, "**/**") || strings.Contains(p, `\/`) || strings.Contains(p, "/./") || strings.HasSuffix(p, "/.") {
				return
			}
		}
		var want []string
		for rel := range plainFiles {
			// Match itself treats "**" in braces as a plain star.
			if slices.ContainsFunc(plain, func(p string) bool { return doublestar.MatchUnvalidated(p, "/"+rel) }) {
				want = append(want, "/"+rel)
			}
		}
		slices.Sort(want)
		if got := paths(ms); !slices.Equal(got, want) {
			t.Errorf("%q:\n got %q\nwant %q", pattern, got, want)
		}
	})
}

func TestPatternsThatAreRefused(t *testing.T) {
	v := view(t, Rootfs{Layers: []Layer{{Dir: tree(t, t.TempDir(), plainFiles)}}})
	for _, p := range []string{
		"", "a", "*", "/", "//", "/..", "/a/../b", "/[", "/{a", "/a[/]b", `/a\`, "/" + strings.Repeat("a", maxPattern),
		"/" + strings.Repeat("{a,b}", 9), "/" + strings.Repeat("a/", maxSegments) + "*/a",
	} {
		if ms, complete, why := v.Glob(p); complete || why == "" || ms != nil {
			t.Errorf("%.40q: %v, complete %v, %q", p, ms, complete, why)
		}
	}
}

func TestMountsHideAndLimit(t *testing.T) {
	dir := tree(t, t.TempDir(), map[string]string{
		"data/x.so": "1", "proc/x.so": "1", "etc/hosts": "1", "usr/lib/x.so": "1", "into": "->/data/x.so", "intodir": "->data", "dev/x.so": "1", "pseudo": "->/proc/x.so", "todev": "->/dev/vol/x",
	})
	v := view(t, Rootfs{
		Layers: []Layer{{Dir: dir}},
		Mounts: []container.Mount{{Destination: "/data"}, {Destination: "/etc/hosts"}, {Destination: "/opt/unknown"}, {Destination: "/dev/vol/x"}},
		Files:  []string{"/etc/hosts"}, Dirs: []string{"/data", "/dev/vol/x"},
		Pseudo: []container.Mount{{Destination: "/proc"}, {Destination: "/dev"}},
	})
	for _, c := range []struct {
		pattern  string
		want     string
		complete bool
	}{
		{"/usr/lib/**/x.so", "[/usr/lib/x.so]", true},
		{"/usr/**", "[/usr/lib/x.so]", true},
		{"/etc/*", "[]", false},      // the mounted file itself
		{"/etc/hosts/*", "[]", true}, // nothing lies below a file
		{"/etc/resolv*", "[]", true}, //
		{"/proc/*.so", "[]", true},   // hidden, and nothing there counts
		{"/**/x.so", "[/usr/lib/x.so]", false},
		{"/data", "[]", true},       // a directory
		{"/data/x.so", "[]", false}, //
		{"/into", "[]", false},      // leads there
		{"/intodir/x.so", "[]", false},
		{"/pseudo", "[]", true},
		{"/todev/y", "[]", false}, // through a symlink into a pseudo mount with a volume in it
		{"/todev", "[]", true},
		{"/opt/unknown", "[]", false}, // perhaps a file
		{"/opt/unknown/*", "[]", false},
		{"/dev/*.so", "[]", true},
		{"/dev/**/x.so", "[]", false}, // a volume below a pseudo mount
		{"/dev/vol/x/y", "[]", false},
		{"/{usr/lib,bin}/x.so", "[/usr/lib/x.so]", true},
	} {
		ms, complete, why := v.Glob(c.pattern)
		if got := fmt.Sprint(paths(ms)); got != c.want || complete != c.complete || complete == (why != "") {
			t.Errorf("%s: %s, complete %v (%s); want %s, %v", c.pattern, got, complete, why, c.want, c.complete)
		}
	}
}

// What a hostile image can do to a search is bounded, and said.
func TestBounds(t *testing.T) {
	t.Run("many matches", func(t *testing.T) {
		files := map[string]string{}
		for i := range maxMatches + 1 {
			files[fmt.Sprintf("d/%05d", i)] = ""
		}
		ms, complete, why := view(t, Rootfs{Layers: []Layer{{Dir: tree(t, t.TempDir(), files)}}}).Glob("/d/*")
		if len(ms) != maxMatches || complete || !strings.Contains(why, "match") {
			t.Errorf("%d matches, complete %v, %q", len(ms), complete, why)
		}
	})
	t.Run("long chains of symlinks", func(t *testing.T) {
		files := map[string]string{"0/f": "1"}
		for i := range maxHops + 2 {
			files[fmt.Sprintf("l%d", i+1)] = fmt.Sprintf("->l%d", i)
		}
		files["l0"] = "->0/f"
		v := view(t, Rootfs{Layers: []Layer{{Dir: tree(t, t.TempDir(), files)}}})
		for i, want := range map[int]int{maxHops - 1: 1, maxHops: 0} { // l39 takes 40 symlinks
			if ms, _, _ := v.Glob(fmt.Sprintf("/l%d", i)); len(ms) != want {
				t.Errorf("l%d: %d matches, want %d", i, len(ms), want)
			}
		}
	})
	t.Run("directories that lead from one to the next", func(t *testing.T) {
		files := map[string]string{}
		for i := range maxDepth + 10 {
			files[fmt.Sprintf("d/%d/n", i)] = fmt.Sprintf("->../%d", i+1)
		}
		v := view(t, Rootfs{Layers: []Layer{{Dir: tree(t, t.TempDir(), files)}}})
		if _, complete, why := v.Glob("/d/0/**/x"); complete || !strings.Contains(why, "lead") {
			t.Errorf("complete %v, %q", complete, why)
		}
	})
	t.Run("symlinks that multiply", func(t *testing.T) {
		files := map[string]string{}
		for i := range 40 {
			files[fmt.Sprintf("d/%d/x", i)] = "1"
			for j := range 40 {
				files[fmt.Sprintf("d/%d/%d", i, j)] = fmt.Sprintf("->../%d", j)
			}
		}
		v := view(t, Rootfs{Layers: []Layer{{Dir: tree(t, t.TempDir(), files)}}})
		if ms, complete, why := v.Glob("/d/**/x"); len(ms) != 40 || !complete {
			t.Errorf("%d matches, complete %v, %q", len(ms), complete, why)
		}
	})
	t.Run("a layer with too many files", func(t *testing.T) {
		c := &Cache{LayerEntries: 3}
		v, err := c.View(t.Context(), Rootfs{Layers: []Layer{{Dir: tree(t, t.TempDir(), plainFiles)}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, complete, why := v.Glob("/none"); complete || !strings.Contains(why, "more than 3 files") {
			t.Errorf("complete %v, %q", complete, why)
		}
	})
	t.Run("a large upper directory", func(t *testing.T) {
		files := map[string]string{"few/x": "1"}
		for i := range maxSnapshot {
			files[fmt.Sprintf("many/%d", i)] = ""
		}
		v := view(t, Rootfs{Upper: tree(t, t.TempDir(), files)})
		if v.up != nil {
			t.Error("it was read whole")
		}
		for pattern, n := range map[string]int{"/few/x": 1, "/many/7": 1, "/many/*": maxSnapshot, "/f*/*": 1} {
			if ms, complete, why := v.Glob(pattern); len(ms) != n || !complete {
				t.Errorf("%s: %d matches, complete %v, %q", pattern, len(ms), complete, why)
			}
		}
	})
	t.Run("deep paths", func(t *testing.T) {
		dir := t.TempDir()
		fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.Repeat("d", 200)
		for range 30 { // deeper than a path can name: made from within
			if err := unix.Mkdirat(fd, name, 0o755); err != nil {
				t.Fatal(err)
			}
			next, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
			fd = next
		}
		unix.Close(fd)
		if _, complete, why := view(t, Rootfs{Layers: []Layer{{Dir: dir}}}).Glob("/**/x"); complete || !strings.Contains(why, "longer") {
			t.Errorf("complete %v, %q", complete, why)
		}
	})
}

func TestOpenHostile(t *testing.T) {
	dir := tree(t, t.TempDir(), map[string]string{
		"real": "x", "link": "->real", "out": "->/etc/passwd", "d/f": "1", "dl": "->d", "fifo": "fifo", "dir/x": "1",
	})
	for rel, want := range map[string]error{
		"real": nil, "d/f": nil, "fifo": ErrNotRegular, "dir": ErrNotRegular, "link": errAny, "out": errAny, "dl/f": errAny,
		"../" + filepath.Base(dir) + "/real": errAny, "/real": nil, "none": os.ErrNotExist,
	} {
		f, err := Match{Path: "/" + rel, Layer: Layer{Dir: dir}, Rel: rel}.Open()
		if err == nil {
			f.Close()
		}
		if (err == nil) != (want == nil) || want != nil && want != errAny && !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", rel, err, want)
		}
	}
	if _, err := (Match{Path: "/x", Layer: Layer{Dir: "/proc/self"}, Rel: "status"}).Open(); !errors.Is(err, ErrRemote) {
		t.Errorf("a file of procfs: %v", err)
	}
	if _, err := (Match{Path: "/x", Layer: Layer{Dir: "relative"}, Rel: "x"}).Open(); err == nil {
		t.Error("a relative layer was opened")
	}
	// A huge sparse file is a file like another; it is its reader's to bound.
	big := dir + "/big"
	if err := os.WriteFile(big, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 1<<30); err != nil {
		t.Fatal(err)
	}
	ms, complete, why := view(t, Rootfs{Layers: []Layer{{Dir: dir}}}).Glob("/{big,fifo}")
	if !complete || len(ms) != 2 || ms[0].Size != 1<<30 || ms[1].Kind != Special {
		t.Errorf("%+v %v %s", ms, complete, why)
	}
}

var errAny = errors.New("any error")

func TestLayersThatCannotBeRead(t *testing.T) {
	dir := tree(t, t.TempDir(), plainFiles)
	for name, bad := range map[string]string{"missing": dir + "/none", "a file": dir + "/a", "procfs": "/proc"} {
		v := view(t, Rootfs{Layers: []Layer{{Dir: bad}, {Dir: dir}}})
		ms, complete, why := v.Glob("/a")
		if len(ms) != 1 || complete || !strings.Contains(why, "cannot be read") {
			t.Errorf("%s: %v, complete %v, %q", name, ms, complete, why)
		}
	}
	v, err := new(Cache).View(t.Context(), Rootfs{Driver: "fuse.fuse-overlayfs"})
	if err != nil {
		t.Fatal(err)
	}
	if ms, complete, why := v.Glob("/a"); ms != nil && len(ms) > 0 || complete || !strings.Contains(why, "fuse") {
		t.Errorf("%v %v %q", ms, complete, why)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := new(Cache).View(ctx, Rootfs{Layers: []Layer{{Dir: dir}}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
