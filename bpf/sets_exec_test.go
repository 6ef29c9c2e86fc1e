package bpf

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSetExec(t *testing.T) {
	r := newSetRoom(t, Options{}, map[Set]uint32{SetExec: 0})
	s := r.shell(t)
	s.do(t, "/bin/true")
	s.do(t, "/bin/true")
	dir := real(t, t.TempDir())
	must(t, os.WriteFile(dir+"/script", []byte("#!/bin/sh\n"), 0o700))
	s.do(t, dir+"/script")
	e := r.shell(t)
	e.do(t, "/bin/true")
	sh, yes := real(t, "/bin/sh"), real(t, "/bin/true")
	r.want(t, SetExec, map[string]uint64{
		yes + " /bin/true 1": 2, yes + " /bin/true 2": 1,
		sh + " " + dir + "/script 1": 1,
	})
	for _, x := range r.entries(t, SetExec) {
		if x.Argument() != "/bin/true" {
			continue
		}
		var st unix.Stat_t
		must(t, unix.Stat(yes, &st))
		major, minor := x.Device()
		if unix.Mkdev(major, minor) != st.Dev || x.Inode() != st.Ino || x.Ctime() != time.Unix(st.Ctim.Unix()) || x.Size != uint64(st.Size) || x.Mode != st.Mode {
			t.Errorf("which file: %+v, want %+v", x, st)
		}
		if x.Comm() != "true" || x.ParentComm() != "sh" || x.Parent == 0 || !x.PathKnown() || x.FirstNs == 0 || x.LastNs < x.FirstNs {
			t.Errorf("entry: %q from %q (%d) %v", x.Comm(), x.ParentComm(), x.Parent, x.PathDoubt())
		}
	}
}
