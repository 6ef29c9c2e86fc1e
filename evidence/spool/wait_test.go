package spool_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// Who can wait is let on when the disk has taken enough, and is not held by a
// disk that takes nothing.
func TestWait(t *testing.T) {
	n := newNode(t)
	n.cfg.MaxPending = 60_000
	synctest.Test(t, func(t *testing.T) {
		s := n.open(t)
		fill := func(from int) {
			t.Helper()
			for i := range 3 {
				if err := s.Append(runID(from+i), sites(from+i, 10, 1000)); err != nil {
					t.Fatal(err)
				}
				s.Seal()
			}
		}
		wait := func(stop <-chan struct{}) (took time.Duration) {
			began := time.Now()
			s.Wait(stop)
			return time.Since(began)
		}
		if d := wait(nil); d != 0 {
			t.Errorf("with room: waited %v", d)
		}

		fill(1)
		stop := make(chan struct{})
		stopped := time.AfterFunc(10*time.Millisecond, func() { close(stop) })
		if d := wait(stop); d != 10*time.Millisecond {
			t.Errorf("until it was stopped: %v", d)
		}
		stopped.Stop()

		let := make(chan time.Duration)
		go func() { let <- wait(nil) }()
		synctest.Wait()
		time.Sleep(300 * time.Millisecond) // of the bubble's clock
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := <-let; d != 300*time.Millisecond {
			t.Errorf("until the disk came on: %v", d)
		}

		fill(11) // and nobody writes
		if d := wait(nil); d != time.Second {
			t.Errorf("for a disk that does not write: %v", d)
		}
		if d := wait(nil); d != 0 {
			t.Errorf("for one that has not: %v", d)
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		fill(21)
		if d := wait(nil); d != time.Second {
			t.Errorf("for one that has written since: %v", d)
		}

		tmp := filepath.Join(n.cfg.Dir, "tmp")
		if err := errors.Join(os.Remove(tmp), os.WriteFile(tmp, nil, 0o644)); err != nil { // every write fails
			t.Fatal(err)
		}
		go func() { _ = s.Flush(t.Context()) }()
		synctest.Wait()
		if d := wait(nil); d != 0 {
			t.Errorf("for one that fails: %v", d)
		}
		if err := errors.Join(os.Remove(tmp), s.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
	})
}
