package image

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/runtime/container"
	"probity/tests/need"
)

// The tests of this file compare a View with what the kernel itself shows.

// tree makes files below dir. A value beginning with "->" is a symlink; "wh" a
// whiteout, "fifo" a FIFO, "null" a device; "opaque" and "opaque-user" mark a
// directory; anything else is a file's content.
func tree(t testing.TB, dir string, files map[string]string) string {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(dir, 0o755))
	for _, rel := range slices.Sorted(keys(files)) {
		path, v := filepath.Join(dir, rel), files[rel]
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		switch {
		case strings.HasPrefix(v, "->"):
			must(os.Symlink(v[2:], path))
		case v == "dir":
			must(os.MkdirAll(path, 0o755))
		case v == "wh":
			must(unix.Mknod(path, unix.S_IFCHR, 0))
		case v == "null":
			must(unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		case v == "fifo":
			must(unix.Mkfifo(path, 0o644))
		case v == "opaque":
			must(os.MkdirAll(path, 0o755))
			must(unix.Setxattr(path, "trusted.overlay.opaque", []byte("y"), 0))
		case v == "opaque-user":
			must(os.MkdirAll(path, 0o755))
			must(unix.Setxattr(path, "user.overlay.opaque", []byte("y"), 0))
		default:
			must(os.WriteFile(path, []byte(v), 0o644))
		}
	}
	return dir
}

func keys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// escape protects a path in the options of mount(2).
func escape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace(dir)
}

type overlayMount struct {
	merged string
	layers []string // top first
	upper  string
}

// mountOverlay mounts real overlayfs until the test ends.
func mountOverlay(t testing.TB, options string, upper string, layers ...string) overlayMount {
	t.Helper()
	need.Root(t)
	merged := t.TempDir()
	escaped := make([]string, len(layers))
	for i, l := range layers {
		escaped[i] = escape(l)
	}
	opts := "lowerdir=" + strings.Join(escaped, ":")
	if upper != "" {
		work := t.TempDir()
		if filepath.Dir(work) != filepath.Dir(upper) { // any place on the same file system will do
			work = filepath.Join(filepath.Dir(upper), "work")
			if err := os.MkdirAll(work, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		opts += ",upperdir=" + escape(upper) + ",workdir=" + escape(work)
	}
	if err := unix.Mount("overlay", merged, "overlay", 0, opts+options); err != nil {
		t.Fatalf("mount overlay %s: %v", opts, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return overlayMount{merged, layers, upper}
}

func (o overlayMount) rootfs(t testing.TB) Rootfs {
	t.Helper()
	f := New(Config{})
	r, err := f.Rootfs(t.Context(), container.Notice{Rootfs: o.merged, Identity: container.Identity{Runtime: container.Runc, ID: "x"}}, container.Image{})
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for _, l := range r.Layers {
		dirs = append(dirs, l.Dir)
	}
	if r.Driver != "overlay" || !slices.Equal(dirs, o.layers) || r.Upper != o.upper || r.Doubt != "" {
		t.Fatalf("Rootfs = %+v\nwant layers %q, upper %q", r, o.layers, o.upper)
	}
	return r
}

// kernelGlob asks the reference.
func kernelGlob(t testing.TB, root string, patterns []string) map[string][]string {
	t.Helper()
	// doublestar walks loops of symlinks until the kernel stops it: more than
	// one of them would keep it for ever.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], patterns...)
	cmd.Env = append(os.Environ(), inRoot+"="+root)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		t.Fatalf("the reference: %v: %s", err, stderr.String())
	}
	var out map[string][]string
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// compare checks every pattern, and that each match opens to what the
// container itself would read.
func compare(t testing.TB, c *Cache, r Rootfs, merged string, patterns []string) {
	t.Helper()
	v, err := c.View(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want := kernelGlob(t, merged, patterns)
	for _, p := range patterns {
		ms, complete, why := v.Glob(p)
		if !complete {
			t.Errorf("%s: incomplete: %s", p, why)
		}
		got := []string{}
		for _, m := range ms {
			got = append(got, m.Path)
			checkMatch(t, merged, m)
		}
		if !slices.Equal(got, want[p]) {
			t.Errorf("%s:\n got %q\nwant %q", p, got, want[p])
		}
		again, _, _ := v.Glob(p)
		if !slices.Equal(again, ms) {
			t.Errorf("%s: the second search differs", p)
		}
	}
}

func checkMatch(t testing.TB, merged string, m Match) {
	t.Helper()
	path := filepath.Join(merged, m.Path)
	st, err := os.Lstat(path)
	if err != nil {
		t.Errorf("%s: %v", m.Path, err)
		return
	}
	if regular := st.Mode().IsRegular(); regular != (m.Kind == Regular) {
		t.Errorf("%s is %s, the mount shows %s", m.Path, m.Kind, st.Mode())
		return
	}
	f, err := m.Open()
	if m.Kind == Special {
		if err == nil {
			f.Close()
			t.Errorf("%s: a special file was opened", m.Path)
		}
		return
	}
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want)+1)
	n, _ := f.Read(got)
	if string(got[:n]) != string(want) || m.Size != int64(len(want)) {
		t.Errorf("%s from %s: %q of size %d; the container reads %q", m.Path, m.Layer.Dir, got[:n], m.Size, want)
	}
}

func TestAgainstKernel(t *testing.T) {
	need.Root(t)
	base := t.TempDir()
	bottom := tree(t, base+"/bottom", map[string]string{
		"usr/lib/libgreet.so.1": "bottom", "usr/lib/libgreet.so": "->libgreet.so.1",
		"usr/lib/x/libgreet.so.2": "x", "usr/lib/hidden/libgreet.so": "h", "usr/lib/gone/libgreet.so": "g",
		"usr/lib/deleted.so": "d", "lib": "->usr/lib", "bin/app": "->../opt/app/bin/app", "opt/app/bin/app": "app",
		"etc/passwd": "inside", "etc/out": "->../../../../etc/passwd", "etc/abs": "->/usr/lib/x/libgreet.so.2",
		"loop/self": "->.", "loop/f": "f", "a": "->b", "b": "->a", "etc/dangling": "->/nowhere",
		"etc/fifo": "fifo", "etc/null": "null", "file-then-dir": "f", "dir-then-file/x": "x", "dir-then-file/y": "y",
		"user-opaque/kept": "k", "empty": "dir", "lib64": "->/usr/lib/x", "via": "->lib/libgreet.so", "slash": "->etc/passwd/",
		"layer-root-opaque/kept": "k", ".hidden/f": "f", "usr/lib/sub/deep/er/libgreet.so.9": "9",
	})
	middle := tree(t, base+"/mid:dle, with\\all", map[string]string{
		"usr/lib/hidden": "opaque", "usr/lib/hidden/other.so": "o", "usr/lib/gone": "wh", "usr/lib/deleted.so": "wh",
		"file-then-dir/inner": "i", "dir-then-file": "now a file", "user-opaque": "opaque-user", "user-opaque/more": "m",
		"usr/lib/libgreet.so.1": "middle wins", "usr/lib/sub/deep": "->er2", "usr/lib/sub/er2/libgreet.so.8": "8",
	})
	upMost := tree(t, base+"/top", map[string]string{
		"usr/lib/gone/libgreet.so": "again", "layer-root-opaque/more": "m", "bin/extra": "e",
	})
	// A mark on the root of a layer does not count.
	if err := unix.Setxattr(upMost, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	patterns := []string{
		"/usr/lib/libgreet.so", "/usr/lib/libgreet.so.1", "/usr/lib/**/libgreet.so*", "/**/libgreet.so*", "/lib/libgreet.so*",
		"/lib/*", "/lib64/*", "/bin/*", "/bin/app", "/etc/*", "/etc/out", "/etc/abs", "/etc/dangling", "/etc/fifo", "/etc/null",
		"/loop/f", "/loop/self/self/f", "/loop/**/f", "/a", "/b", "/dir-then-file", "/dir-then-file/x", "/dir-then-file/*",
		"/file-then-dir", "/file-then-dir/*", "/user-opaque/*", "/layer-root-opaque/*", "/usr/lib/hidden/*", "/usr/lib/gone/*",
		"/usr/lib/deleted.so", "/{usr/lib,opt/app/bin}/{libgreet.so*,app}", "/via", "/slash", "/.hidden/*", "/*/f", "/usr/*/*/libgreet.so.[0-9]",
		"/usr/lib/sub/**", "/usr/lib/sub/deep/*", "/opt/**", "/nowhere", "/nowhere/**", "/empty/*", "/usr/lib/libgreet.so.?", "/etc/p?sswd", "/etc/pass[!x]d",
	}
	t.Run("read-only", func(t *testing.T) {
		o := mountOverlay(t, "", "", upMost, middle, bottom)
		compare(t, new(Cache), o.rootfs(t), o.merged, patterns)
	})
	t.Run("one layer", func(t *testing.T) {
		o := mountOverlay(t, "", tree(t, t.TempDir()+"/up", nil), bottom)
		compare(t, new(Cache), o.rootfs(t), o.merged, patterns)
	})
	t.Run("upper", func(t *testing.T) {
		up := tree(t, t.TempDir()+"/up", nil)
		o := mountOverlay(t, "", up, upMost, middle, bottom)
		cache := new(Cache)
		compare(t, cache, o.rootfs(t), o.merged, patterns) // before and after: the cache must not hold on to the first
		for _, script := range []string{
			"rm -r usr/lib/x; mkdir usr/lib/x; echo new > usr/lib/x/libgreet.so.7", // opaque
			"rm usr/lib/libgreet.so; ln -s x/libgreet.so.7 usr/lib/libgreet.so",
			"rm bin/app", "echo changed > opt/app/bin/app", "touch usr/lib/hidden/other.so",
			"mkdir -p new/dir; echo n > new/dir/libgreet.so; mkfifo new/fifo", "rm -r loop", "rm file-then-dir/inner; rmdir file-then-dir; echo f > file-then-dir",
			"ln -sfn /new/dir lib64", "rm lib; ln -s /new lib",
		} {
			cmd := exec.Command("/bin/sh", "-ec", script)
			cmd.Dir = o.merged
			if b, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", script, err, b)
			}
			compare(t, cache, o.rootfs(t), o.merged, append(patterns, "/new/**", "/lib64/libgreet.so"))
		}
	})
	t.Run("a link to the root", func(t *testing.T) {
		lower := tree(t, t.TempDir()+"/l", map[string]string{"root": "->/", "d/libgreet.so": "1"})
		o := mountOverlay(t, "", tree(t, t.TempDir()+"/up", nil), lower)
		compare(t, new(Cache), o.rootfs(t), o.merged, []string{"/root/d/*", "/root/root/d/libgreet.so", "/root/**/libgreet.so"})
	})
	t.Run("user attributes", func(t *testing.T) {
		o := mountOverlay(t, ",userxattr", "", middle, bottom)
		r := o.rootfs(t)
		if !r.UserXattr {
			t.Fatal("userxattr was not seen")
		}
		compare(t, new(Cache), r, o.merged, patterns)
	})
}

// Random trees find what nobody thought of.
func TestRandomAgainstKernel(t *testing.T) {
	need.Root(t)
	names := []string{"a", "b", "c", "ab"}
	patterns := []string{"/**", "/**/a", "/a/**", "/a/*", "/*/b", "/*/*/*", "/a/b/c", "/**/b/*", "/a/**/c", "/{a,b/c}/{a,b}", "/?b", "/b", "/c/a"}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	randomTree := func(dir string, links bool) {
		var fill func(dir string, depth int)
		fill = func(dir string, depth int) {
			for _, name := range names {
				path := filepath.Join(dir, name)
				var err error
				switch n := rng.IntN(12); {
				case n < 3 && depth < 4:
					if err = os.Mkdir(path, 0o755); err == nil {
						if rng.IntN(4) == 0 {
							err = unix.Setxattr(path, "trusted.overlay.opaque", []byte("y"), 0)
						}
						fill(path, depth+1)
					}
				case n < 5:
					err = os.WriteFile(path, []byte(path), 0o644)
				case n < 6:
					err = unix.Mknod(path, unix.S_IFCHR, 0)
				case n < 7 && links:
					// One path at most leads back: the reference follows
					// loops until the kernel stops it.
					to := []string{"../" + names[rng.IntN(4)], "/" + names[rng.IntN(4)] + "/" + names[rng.IntN(4)], names[rng.IntN(4)], "/x/../a/./b"}
					err = os.Symlink(to[rng.IntN(len(to))], path)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		fill(dir, 0)
	}
	for i := range 30 {
		base := t.TempDir()
		var layers []string
		for l := range 1 + rng.IntN(4) {
			dir := fmt.Sprintf("%s/%d", base, l)
			randomTree(dir, i%2 == 0)
			layers = append(layers, dir)
		}
		up := base + "/up"
		randomTree(up, i%2 == 0)
		pats := patterns
		if i%2 == 0 { // with symlinks: only patterns that the reference can answer in finite time
			pats = []string{"/a/*", "/*/b", "/*/*/*", "/a/b/c", "/{a,b/c}/{a,b}", "/?b", "/b", "/c/a", "/*/*/*/*"}
		}
		o := mountOverlay(t, "", up, layers...)
		compare(t, new(Cache), o.rootfs(t), o.merged, pats)
		if t.Failed() {
			cmd := exec.Command("ls", "-lR", base)
			b, _ := cmd.CombinedOutput()
			t.Fatalf("%s", b)
		}
	}
}

// Directories of the lower layers that were renamed, and files copied up
// without their data, lie elsewhere than their names say.
func TestRedirectAndMetacopy(t *testing.T) {
	need.Root(t)
	base := t.TempDir()
	lower := tree(t, base+"/lower", map[string]string{"d/f": "f", "lib/libx.so": strings.Repeat("x", 10000)})
	up := tree(t, base+"/up", nil)
	o := mountOverlay(t, ",redirect_dir=on,metacopy=on", up, lower)
	if err := os.Chmod(o.merged+"/lib/libx.so", 0o700); err != nil {
		t.Fatal(err)
	}
	v, err := new(Cache).View(t.Context(), o.rootfs(t))
	if err != nil {
		t.Fatal(err)
	}
	ms, complete, why := v.Glob("/lib/*.so")
	if !complete || len(ms) != 1 || ms[0].Layer.Dir != lower || ms[0].Origin != FromLayer {
		t.Errorf("the data of a file copied up without them: %+v %v %s", ms, complete, why)
	}
	if err := os.Rename(o.merged+"/d", o.merged+"/e"); err != nil {
		t.Fatal(err)
	}
	if v, err = new(Cache).View(t.Context(), o.rootfs(t)); err != nil {
		t.Fatal(err)
	}
	if _, complete, why := v.Glob("/e/*"); complete || !strings.Contains(why, "redirect") {
		t.Errorf("a renamed directory: complete %v, %q", complete, why)
	}
}

// A layer list too long for one page of options is mounted from the storage
// directory, by relative paths, through symlinks.
func TestRelativeShortLayers(t *testing.T) {
	need.Root(t)
	store := t.TempDir() + "/overlay"
	var rel []string
	o := overlayMount{upper: store + "/up/diff", merged: store + "/up/merged"}
	for i := range 40 {
		id := fmt.Sprintf("layer%d", i)
		tree(t, store+"/"+id+"/diff", map[string]string{fmt.Sprintf("f%d", i): "x"})
		short := fmt.Sprintf("l/SHORTNAME%d", i)
		tree(t, store, map[string]string{short: "->../" + id + "/diff"})
		rel = append(rel, short)
		o.layers = append(o.layers, store+"/"+id+"/diff")
	}
	for _, d := range []string{"/up/diff", "/up/work", "/up/merged"} {
		if err := os.MkdirAll(store+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := `mount -t overlay overlay -o "lowerdir=$1,upperdir=up/diff,workdir=up/work" up/merged`
	cmd := exec.Command("/bin/sh", "-ec", script, "sh", strings.Join(rel, ":"))
	cmd.Dir = store
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	t.Cleanup(func() { _ = syscall.Unmount(o.merged, syscall.MNT_DETACH) })
	compare(t, new(Cache), o.rootfs(t), o.merged, []string{"/*", "/f1?", "/**/f3"})

	// The store linked to another place, as administrators do.
	link := t.TempDir() + "/link"
	if err := os.Symlink(store, link); err != nil {
		t.Fatal(err)
	}
	byLink := o
	byLink.merged = link + "/up/merged"
	byLink.rootfs(t)
}

// A root file system that is a plain directory is searched whole, as writable.
func TestPlainDirectory(t *testing.T) {
	dir := tree(t, t.TempDir()+"/rootfs", map[string]string{"bin/app": "1"})
	f := New(Config{})
	n := container.Notice{Rootfs: dir, Identity: container.Identity{Runtime: container.Runc, ID: "x"}}
	r, err := f.Rootfs(t.Context(), n, container.Image{})
	if err != nil || r.Driver != "directory" || r.Upper != dir || len(r.Layers) != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	v, err := new(Cache).View(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if ms, complete, why := v.Glob("/bin/*"); len(ms) != 1 || !complete || ms[0].Origin != FromUpper {
		t.Errorf("%+v %v %s", ms, complete, why)
	}
	for _, n := range []container.Notice{{}, {Pid: os.Getpid()}, {Rootfs: "/"}, {Rootfs: "rel"}, {Rootfs: dir + "/bin/none/x"}} {
		if r, err := f.Rootfs(t.Context(), n, container.Image{}); err == nil {
			t.Errorf("%+v: %+v", n, r)
		}
	}
}

// A process that moved to an overlay of its own making is not believed about
// its layers: they would be any directories of the host.
func TestForeignOverlayIsAClaim(t *testing.T) {
	need.Root(t)
	lower, merged := tree(t, t.TempDir()+"/lower", map[string]string{"bin/app": "1"}), t.TempDir()
	script := `mount -t overlay overlay -o "lowerdir=$1:/etc" "$2"; exec chroot "$2" /bin/busybox sh -c 'echo ready; read x'`
	busybox := need.Command(t, "busybox", "unshare")
	data, err := os.ReadFile(busybox[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lower+"/bin/busybox", data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(busybox[1], "--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh", lower, merged)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = in.Close()
		_ = cmd.Wait()
	}()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	n := container.Notice{Kind: container.Existing, Pid: cmd.Process.Pid, Identity: container.Identity{Runtime: container.Runc, ID: "x"}}
	r, err := New(Config{}).Rootfs(t.Context(), n, container.Image{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Layers) != 0 || r.Upper != "" || !strings.Contains(r.Doubt, "claim") {
		t.Errorf("%+v", r)
	}
	v, err := new(Cache).View(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if ms, complete, _ := v.Glob("/**/passwd"); len(ms) != 0 || complete {
		t.Errorf("%v, complete %v", ms, complete)
	}
}
