//go:build unix

package verify

import (
	"os"
	"syscall"
)

// mindful are the flags for what others may have put there: a FIFO must not hang
// us, and a link is not followed.
const mindful = syscall.O_NONBLOCK | syscall.O_NOFOLLOW

// openFile opens what may be anything: a FIFO must not hang us, and in a spool a
// link is no chunk.
func openFile(path string, inSpool bool) (*os.File, error) {
	if inSpool {
		return os.OpenFile(path, os.O_RDONLY|mindful, 0)
	}
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}
