package bpf

import (
	"os"
	"strings"
	"testing"

	"probity/tests/need"
)

// A file that is executed without a path, one that was deleted, and one whose
// path is too long.
func TestSetPaths(t *testing.T) {
	r := newSetRoom(t, Options{}, map[Set]uint32{SetExec: 0, SetFiles: 0, SetLibraries: 0})
	s := r.shell(t)
	dir := real(t, t.TempDir())
	act(t, s, "memfd")
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

// A path is what the process would name it: from its own root on.
func TestSetRoot(t *testing.T) {
	need.Command(t, "chroot", "mount", "unshare", "busybox")
	r := newSetRoom(t, Options{}, map[Set]uint32{SetExec: 0})
	dir := real(t, t.TempDir())
	must(t, os.MkdirAll(dir+"/root/mnt", 0o755))
	must(t, os.MkdirAll(dir+"/other/bin", 0o755))
	box := need.Command(t, "busybox")[0]
	r.shell(t).do(t, "unshare -m sh -c 'mount --bind "+dir+"/other "+dir+"/root/mnt && cp "+box+" "+dir+"/root/mnt/bin/box && chroot "+dir+"/root /mnt/bin/box true'")
	r.want(t, SetExec, map[string]uint64{"/mnt/bin/box /mnt/bin/box 1": 1})
}
