package container

import "strings"

// Command is what a container starts, as its configuration says: of its
// arguments and environment only what finds the program, since the others may
// be secrets. The zero value knows nothing.
type Command struct {
	Arg0 string // a path, or a name for $PATH
	Path string // the container's $PATH; "" also where it has none
	Dir  string // the working directory
}

// MaxPATH is the largest $PATH in bytes.
const MaxPATH = 16 << 10

// CommandOf takes what is needed of a process's arguments and environment. What
// is past the bounds is left out: whoever starts a container does not get it out
// of sight by giving it a long command. Of several $PATHs the last is taken, as
// runc and crun do; CRI-O gives each container two, its own and the image's.
func CommandOf(args, env []string, dir string) (c Command) {
	if len(args) > 0 {
		c.Arg0 = bounded(args[0], MaxPath)
	}
	c.Dir = bounded(dir, MaxPath)
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			c.Path = bounded(v, MaxPATH)
		}
	}
	return c
}

func bounded(s string, most int) string {
	if len(s) > most || strings.ContainsRune(s, 0) {
		return ""
	}
	return s
}
