package image

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"probity/runtime/container"
	"probity/tests/need"
)

// shown lists what a container sees, layer by layer.
func shown(v *View) (paths []string) {
	for _, f := range v.LayerFiles() {
		f.Each(0, func(rel string) bool {
			if m, ok := v.Shows(f.Layer, rel); ok {
				paths = append(paths, m.Path)
			}
			return true
		})
	}
	v.EachUpper(func(m Match) bool {
		paths = append(paths, m.Path)
		return true
	})
	slices.Sort(paths)
	return paths
}

// Every regular file of the merged tree is found once, and nothing else.
func TestLayerFiles(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	base := tree(t, dir+"/base", map[string]string{
		"usr/lib/a.so": "base", "usr/lib/b.so": "base", "usr/lib/gone.so": "base", "opt/x.so": "base", "opt/y.so": "base",
		"srv/z.so": "base", "data/v.so": "base", "etc/hosts": "base", "link.so": "->usr/lib/a.so", "was/dir/f.so": "base", "sock": "fifo",
	})
	top := tree(t, dir+"/top", map[string]string{"usr/lib/b.so": "top", "usr/lib/gone.so": "wh", "opt": "opaque", "opt/new.so": "top", "was/dir": "->/srv"})
	upper := tree(t, dir+"/upper", map[string]string{"usr/lib/a.so": "upper", "tmp/u.so": "upper", "data/w.so": "upper"})
	v := view(t, Rootfs{
		Layers: []Layer{{Dir: top}, {Dir: base}}, Upper: upper,
		Mounts: []container.Mount{{Destination: "/data"}, {Destination: "/etc/hosts"}}, Dirs: []string{"/data"}, Files: []string{"/etc/hosts"},
	})
	want := []string{"/opt/new.so", "/srv/z.so", "/tmp/u.so", "/usr/lib/a.so", "/usr/lib/b.so"}
	if got := shown(v); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	all, complete, _ := v.Glob("/**/*.so")
	if got := paths(all); complete || !slices.Equal(got, want) {
		t.Errorf("a glob finds %q", got)
	}
	// It goes on where it stopped.
	f, n := v.LayerFiles()[1], 0
	var rels []string
	for more := true; more; {
		more = false
		f.Each(n, func(rel string) bool {
			rels, n, more = append(rels, rel), n+1, true
			return n%2 != 0
		})
	}
	slices.Sort(rels)
	if want := []string{"data/v.so", "etc/hosts", "opt/x.so", "opt/y.so", "srv/z.so", "usr/lib/a.so", "usr/lib/b.so", "usr/lib/gone.so", "was/dir/f.so"}; !slices.Equal(rels, want) {
		t.Errorf("got %q", rels)
	}
	if f.Key() == "" || f.Key() == v.LayerFiles()[0].Key() {
		t.Error("layers have no keys of their own")
	}
	d, err := f.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	file, size, err := d.Read("opt/x.so")
	if err != nil || size != 4 {
		t.Fatal(size, err)
	}
	file.Close()
	if _, _, err := d.Read("link.so"); err == nil {
		t.Error("a symlink was followed")
	}
	if _, _, err := d.Read("sock"); !errors.Is(err, ErrNotRegular) {
		t.Errorf("a FIFO: %v", err)
	}
}

func TestLookup(t *testing.T) {
	dir := t.TempDir()
	base := tree(t, dir+"/base", map[string]string{
		"usr/bin/prog": "base", "usr/bin/plain": "base", "usr/bin/py": "->py3", "usr/bin/py3": "->/opt/py", "opt/py": "base", "bin": "->usr/bin",
		"loop": "->loop", "vol": "dir", "tovol": "->/vol/prog", "proc": "dir",
	})
	for _, f := range []string{"usr/bin/prog", "opt/py"} {
		if err := os.Chmod(filepath.Join(base, f), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	v := view(t, Rootfs{
		Layers: []Layer{{Dir: base}}, Upper: tree(t, dir+"/upper", map[string]string{"usr/bin/up": "upper"}),
		Mounts: []container.Mount{{Destination: "/vol"}}, Dirs: []string{"/vol"}, Pseudo: []container.Mount{{Destination: "/proc"}},
	})
	for _, c := range []struct {
		name, path, origin string
		exec               bool
		err                error
	}{
		{name: "/bin/prog", path: "/usr/bin/prog", origin: FromLayer, exec: true},
		{name: "/usr/bin/../bin/./plain", path: "/usr/bin/plain", origin: FromLayer},
		{name: "/bin/py", path: "/opt/py", origin: FromLayer, exec: true},
		{name: "/usr/bin/up", path: "/usr/bin/up", origin: FromUpper},
		{name: "/bin/nothing", err: ErrNoFile}, {name: "/bin", err: ErrNoFile}, {name: "/loop", err: ErrNoFile}, {name: "relative", err: ErrNoFile}, {name: "/", err: ErrNoFile},
		{name: "/bin/prog/", err: ErrNoFile}, {name: "/proc/self/exe", err: ErrNoFile},
		{name: "/vol/prog", err: ErrMounted}, {name: "/tovol", err: ErrMounted},
	} {
		m, exec, err := v.Lookup(c.name)
		if m.Path != c.path || m.Origin != c.origin || exec != c.exec || !errors.Is(err, c.err) {
			t.Errorf("%s: %+v, exec %v, %v", c.name, m, exec, err)
		}
	}
}

// A mount leaves the search complete only if it was seen to hold no ELF file.
func TestUnsearched(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{"hosts": "127.0.0.1", "token/ca.crt": "x", "token/sub/key": "->../ca.crt", "lib.so": "\x7fELF", "libs/a/b.so": "\x7fELF", "empty": "", "deep/1/2/3/4/5/6/7/8/9/f": "x"}
	for i := range maxMounted + 1 {
		files["many/"+string(rune('a'+i%26))+string(rune('a'+i/26))] = "x"
	}
	vol := tree(t, dir+"/vol", files)
	root := Rootfs{Layers: []Layer{{Dir: tree(t, dir+"/base", map[string]string{"etc/hosts": ""})}}}
	for _, c := range []struct {
		mounts []string
		want   string
	}{
		{nil, ""}, {[]string{"hosts", "token", "empty"}, ""},
		{[]string{"hosts", "lib.so"}, "what is mounted at /mnt/lib.so is not searched"},
		{[]string{"libs"}, "what is mounted at /mnt/libs is not searched"},
		{[]string{"many"}, "what is mounted at /mnt/many is not searched"},
		{[]string{"deep"}, "what is mounted at /mnt/deep is not searched"},
		{[]string{"missing"}, "what is mounted at /mnt/missing is not searched"},
	} {
		r, ms := root, []container.Mount{}
		for _, m := range c.mounts {
			ms = append(ms, container.Mount{Destination: "/mnt/" + m, Type: "bind", Source: filepath.Join(vol, m)})
		}
		configured(&r, ms)
		if got := view(t, r).Unsearched(); got != c.want {
			t.Errorf("%q: %q, want %q", c.mounts, got, c.want)
		}
	}
}
