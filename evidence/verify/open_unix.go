//go:build unix

package verify

import (
	"os"
	"syscall"
)

// openFile opens what may be anything: a FIFO must not hang us, and in a spool a
// link is no chunk.
func openFile(path string, inSpool bool) (*os.File, error) {
	flags := os.O_RDONLY | syscall.O_NONBLOCK
	if inSpool {
		flags |= syscall.O_NOFOLLOW
	}
	return os.OpenFile(path, flags, 0)
}
