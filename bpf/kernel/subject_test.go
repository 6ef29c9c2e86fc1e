package kernel

import (
	"os/exec"
	"sync"
	"testing"
)

// A program in memory can be run as soon as it is made, however much is being
// forked: no child holds it open for writing, or something else in its place.
func TestSubjectWhileOthersFork(t *testing.T) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				_ = (&exec.Cmd{Path: "/proc/self/no-such-program"}).Run() // its child has all our files until it finds that
			}
		})
	}
	for range 300 {
		s, err := newSubject()
		if err != nil {
			t.Error(err)
			break
		}
		if _, err := s.run(0); err != nil {
			t.Error(err)
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			break
		}
	}
	close(done)
	wg.Wait()
}
