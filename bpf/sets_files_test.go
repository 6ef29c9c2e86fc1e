package bpf

import (
	"os"
	"strings"
	"testing"
)

func TestSetFiles(t *testing.T) {
	eachWay(t, []Set{SetFiles}, func(t *testing.T, o Options) {
		r := newSetRoom(t, o, map[Set]uint32{SetFiles: 0})
		s := r.shell(t)
		dir := real(t, t.TempDir())
		must(t, os.WriteFile(dir+"/a", nil, 0o600))
		act(t, s, "open", dir+"/a", dir+"/b")
		r.want(t, SetFiles, map[string]uint64{
			"read " + dir + "/a": 1, "read " + dir + "/b": 1, "write " + dir + "/b": 1,
			"exec " + real(t, self(t)): 1, "exec " + real(t, "/bin/sh"): 1, // the container's first program
		})
		for _, x := range r.entries(t, SetFiles) {
			if x.Access() == "write" && x.Path() == dir+"/a" || strings.Contains(x.Path(), "missing") {
				t.Errorf("it was not opened like that: %s", brief(&x))
			}
		}
	})
}
