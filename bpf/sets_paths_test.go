package bpf

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// A file that is executed without a path, one that was deleted, and one whose
// path is too long.
func TestSetPaths(t *testing.T) {
	r := newSetRoom(t, Options{}, map[Set]uint32{SetExec: 0, SetFiles: 0, SetLibraries: 0})
	s := r.shell(t)
	dir := real(t, t.TempDir())
	r.unlost(t, SetLibraries, func() { act(t, s, "memfd") })
	found := false
	for _, x := range r.entries(t, SetLibraries) {
		if x.Path() == "memfd:downloaded" {
			found = !x.PathKnown() && strings.Contains(x.PathDoubt(), "directory")
		}
	}
	if !found {
		t.Error("a mapped memfd is not there, or claims a path")
	}
	must(t, os.WriteFile(dir+"/gone", []byte("x"), 0o600))
	s.do(t, "exec 5<"+dir+"/gone; rm "+dir+"/gone; read x </proc/self/fd/5; exec 5<&-")
	deep := dir
	for range 5 {
		deep += "/" + strings.Repeat("n", 100)
	}
	must(t, os.MkdirAll(deep, 0o700))
	must(t, os.WriteFile(deep+"/file", nil, 0o600))
	s.do(t, "read x <"+deep+"/file")
	long := false
	for _, x := range r.entries(t, SetFiles) {
		if strings.HasSuffix(x.Path(), "n/file") {
			long = !x.PathKnown() && strings.Contains(x.PathDoubt(), "too long") && strings.HasPrefix(x.Path(), "/nnn")
		}
	}
	if !long {
		t.Error("a path that is too long is not there, or does not say so")
	}
	r.want(t, SetFiles, map[string]uint64{"read " + dir + "/gone": 2})
}

// A path begins at the root of the mount namespace and not at the root that a
// process has chosen for itself, which is said.
func TestSetRoot(t *testing.T) {
	need.Command(t, "chroot", "mount", "unshare", "busybox")
	r := newSetRoom(t, Options{}, map[Set]uint32{SetExec: 0, SetFiles: 0})
	dir := real(t, t.TempDir())
	must(t, os.MkdirAll(dir+"/root/mnt", 0o755))
	must(t, os.MkdirAll(dir+"/other/bin", 0o755))
	must(t, os.WriteFile(dir+"/outside", nil, 0o600))
	box := real(t, need.Command(t, "busybox")[0])
	s := r.shell(t)
	s.do(t, "unshare -m sh -c 'mount --bind "+dir+"/other "+dir+"/root/mnt && cp "+box+" "+dir+"/root/mnt/bin/busybox && exec 5<"+dir+"/outside && chroot "+dir+"/root /mnt/bin/busybox cat /proc/self/fd/5 2>/dev/null; chroot "+dir+"/root /mnt/bin/busybox true'")
	r.want(t, SetExec, map[string]uint64{dir + "/root/mnt/bin/busybox /mnt/bin/busybox 1": 2})
	own := mountNS(t, s.cmd.Process.Pid)
	chrooted := false
	for _, x := range r.entries(t, SetExec) {
		inside := strings.HasPrefix(x.Argument(), "/mnt")
		if x.Chrooted() != inside || x.PathKnown() != true {
			t.Errorf("%s: chrooted %v, known %v", brief(&x), x.Chrooted(), x.PathKnown())
		}
		if inside && x.MountNS == own || x.MountNS == 0 {
			t.Errorf("%s: in mount namespace %d, the container's is %d", brief(&x), x.MountNS, own)
		}
		chrooted = chrooted || inside
	}
	if !chrooted {
		t.Error("nothing was done in the other root")
	}
}

func mountNS(t *testing.T, pid int) uint32 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(fmt.Sprintf("/proc/%d/ns/mnt", pid), &st))
	return uint32(st.Ino)
}
