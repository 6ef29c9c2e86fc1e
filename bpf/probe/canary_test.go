package probe

import (
	"errors"
	"os/exec"
	"syscall"
	"testing"
	"unsafe"
)

// What cannot be read is an error that names the first address, and nothing
// worse: a container's process may end at any time, and it may unmap.
func TestPatchedUnreadable(t *testing.T) {
	gone := exec.Command("/proc/self/exe", "-test.run=^$")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	readable := []byte{0xcc, 0}
	at := uintptr(unsafe.Pointer(&readable[0]))
	for name, c := range map[string]struct {
		pid  int
		at   []uintptr
		want error
	}{
		"process is gone":         {gone.Process.Pid, []uintptr{at}, syscall.ESRCH},
		"first address is none":   {syscall.Getpid(), []uintptr{8}, syscall.EFAULT},
		"second address is none":  {syscall.Getpid(), []uintptr{at, 8}, syscall.EFAULT},
		"both addresses are none": {syscall.Getpid(), []uintptr{8, 8}, syscall.EFAULT},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := patched(c.pid, c.at, []byte{0xcc}); !errors.Is(err, c.want) {
				t.Errorf("%v, %v; want %v", got, err, c.want)
			}
		})
	}
	if got, err := patched(syscall.Getpid(), []uintptr{at, at + 1}, []byte{0xcc}); err != nil || !got[0] || got[1] {
		t.Errorf("readable: %v, %v", got, err)
	}
}
