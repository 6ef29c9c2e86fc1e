package image

import (
	"cmp"
	"path"
	"strings"

	"probity/runtime/container"
)

// cover is a tree of the mounts in a container: what lies at or below one of
// them hides what the layers have there.
type cover struct {
	what covering
	at   string // the mount's destination
	kids map[string]*cover
	real bool // a mount that counts lies below
}

type covering uint8

const (
	nothing covering = iota // only on the way to a mount
	pseudo                  // a kernel interface: nothing that could be matched
	volume                  // a directory
	file                    // a single file
	either                  // it could not be looked at
)

// pseudoTypes are file systems that hold no program files.
var pseudoTypes = map[string]bool{
	"autofs": true, "binfmt_misc": true, "bpf": true, "cgroup": true, "cgroup2": true, "configfs": true, "debugfs": true,
	"devpts": true, "devtmpfs": true, "efivarfs": true, "fusectl": true, "mqueue": true, "nsfs": true, "proc": true,
	"pstore": true, "resctrl": true, "securityfs": true, "selinuxfs": true, "smackfs": true, "sysfs": true, "tracefs": true,
}

// isPseudo reports whether a mount is one of the runtime's own interfaces: one
// of the kernel's file systems, or a tmpfs that carries device nodes or masks a
// directory of /proc or /sys.
func isPseudo(m container.Mount) bool {
	if pseudoTypes[m.Type] {
		return true
	}
	return m.Type == "tmpfs" && (within(m.Destination, "/dev") || within(m.Destination, "/proc") || within(m.Destination, "/sys"))
}

func newCover(r *Rootfs) *cover {
	root := &cover{}
	put := func(dest string, what covering) {
		dest = path.Clean("/" + dest)
		if dest == "/" {
			return
		}
		c := root
		for seg := range strings.SplitSeq(dest[1:], "/") {
			c.real = c.real || what != pseudo
			kid := c.kids[seg]
			if kid == nil {
				kid = &cover{}
				if c.kids == nil {
					c.kids = map[string]*cover{}
				}
				c.kids[seg] = kid
			}
			c = kid
		}
		c.what, c.at = what, dest
	}
	for _, m := range r.Pseudo {
		put(m.Destination, pseudo)
	}
	what := make(map[string]covering, len(r.Files)+len(r.Dirs))
	for _, d := range r.Dirs {
		what[d] = volume
	}
	for _, f := range r.Files {
		what[f] = file
	}
	for _, m := range r.Mounts {
		put(m.Destination, cmp.Or(what[m.Destination], either))
	}
	if root.kids == nil {
		return nil
	}
	return root
}

func (c *cover) kid(name string) *cover {
	if c == nil {
		return nil
	}
	return c.kids[name]
}
