package image

import (
	"cmp"
	"fmt"
	"strconv"
)

// maxCovering bounds the mount table that is read again and again of a
// container that runs. Runtimes make a few dozen.
const maxCovering = 4096

// Covered returns which of these files of its root file system a process does
// not reach under their paths any more, because something is mounted at or above
// one, and what. The paths are free of symlinks, as those of a [Match] are. A
// process that is still in the host's root, as it is until its runtime has made
// the container's, has nothing covered.
//
// It reads the mount table only: to look at the paths themselves could hang.
func Covered(pid int, paths []string) (map[string]string, error) {
	proc := "/proc/" + strconv.Itoa(pid)
	if same, err := sameRoot(proc + "/root"); err != nil || same {
		return nil, err
	}
	out := map[string]string{}
	n := 0
	err := eachMount(proc+"/mountinfo", func(m *mount) bool {
		n++
		for _, p := range paths {
			if m.point != "/" && within(p, m.point) {
				out[p] = fmt.Sprintf("%s, a mount of %s from %s", m.point, m.fstype, cmp.Or(m.root, "/"))
			}
		}
		return n <= maxCovering
	})
	if err == nil && n > maxCovering {
		err = fmt.Errorf("process %d has more than %d mounts", pid, maxCovering)
	}
	return out, err
}
