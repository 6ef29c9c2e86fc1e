package bpf

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSetLibraries(t *testing.T) {
	eachWay(t, []Set{SetLibraries}, func(t *testing.T, o Options) {
		dir := real(t, t.TempDir())
		var files []string
		for i := range 6 {
			files = append(files, filepath.Join(dir, fmt.Sprint("lib", i)))
			must(t, os.WriteFile(files[i], make([]byte, os.Getpagesize()), 0o700))
		}
		var r setRoomT
		var s *shell
		for range 5 { // until none is lost, see unlost; its counts begin at nothing
			r = newSetRoom(t, o, map[Set]uint32{SetLibraries: 0})
			s = r.shell(t)
			act(t, s, "map", files...)
			if r.counts(t, SetLibraries).Lost == 0 {
				break
			}
		}
		r.want(t, SetLibraries, map[string]uint64{
			"private " + files[0]: 1, "private " + files[1]: 1, "privateWritable " + files[2]: 1,
			"shared " + files[3]: 1, "sharedWritable " + files[4]: 1,
			"private " + real(t, "/bin/sh"): 0, "private " + real(t, self(t)): 0,
		})
		interpreter := false
		for _, x := range r.entries(t, SetLibraries) {
			interpreter = interpreter || strings.Contains(x.Path(), "/ld-")
			if x.Path() == files[5] {
				t.Error("a mapping that is not executable is an entry")
			}
		}
		if maps, err := os.ReadFile("/proc/" + fmt.Sprint(s.cmd.Process.Pid) + "/maps"); err == nil && strings.Contains(string(maps), "/ld-") && !interpreter {
			t.Error("the interpreter of the shell is no entry")
		}
	})
}
