// Package dial is what the sources share that connect to a runtime's socket: who listens
// there, and how they try again.
//
// In: a connection, or a function that makes one and stays as long as it lasts. Out: the
// kernel's word for who listens, and calls of that function. It trusts the kernel. It is
// not a control: root, or whoever may write to the socket's directory, can put another
// socket in its place.
package dial

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Trusted reports whether a user may be who listens: root, or this process's own.
func Trusted(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() }

// ListenerUID is the user that listened at the other end of a connection when it was made.
func ListenerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, sockErr); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// The pauses between attempts.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = time.Second // a runtime that comes back is met within it
)

// Again calls attempt, which connects and returns when the connection has ended, until ctx
// ends. The pauses between get longer, up to a second, until one was connected. failed is
// told of an error that is not the last one's again: a socket that stays absent is said once.
func Again(ctx context.Context, attempt func() (connected bool, err error), failed func(error)) {
	pause, last := firstPause, ""
	for ctx.Err() == nil {
		connected, err := attempt()
		if ctx.Err() != nil {
			return
		}
		if connected {
			pause, last = firstPause, ""
		}
		if err != nil && err.Error() != last {
			failed(err)
			last = err.Error()
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
		pause = min(2*pause, lastPause)
	}
}
