package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// stage is what the harness takes for a test: it remembers what to undo and
// undoes it, last first, however the play ends.
type stage struct {
	ctx    context.Context
	out    io.Writer
	errs   io.Writer
	undo   []func()
	failed bool
}

// ended is the panic that Fatalf ends the play with.
type ended struct{}

func newStage(ctx context.Context, out, errs io.Writer) *stage {
	return &stage{ctx: ctx, out: out, errs: errs}
}

// play runs f and undoes everything.
func (s *stage) play(f func()) {
	s.act(f)
	for len(s.undo) > 0 {
		last := s.undo[len(s.undo)-1]
		s.undo = s.undo[:len(s.undo)-1]
		s.act(last)
	}
}

func (s *stage) act(f func()) {
	defer func() {
		switch p := recover().(type) {
		case nil, ended:
		default:
			// Ours is the only place that knows what to undo.
			s.Errorf("panic: %v", p)
		}
	}()
	f()
}

func (s *stage) say(text string) { fmt.Fprintf(s.out, "\n== %s\n", text) }

func (s *stage) Helper()                  {}
func (s *stage) Context() context.Context { return s.ctx }
func (s *stage) Failed() bool             { return s.failed && s.ctx.Err() == nil }
func (s *stage) Cleanup(f func())         { s.undo = append(s.undo, f) }

func (s *stage) Logf(format string, args ...any) { fmt.Fprintf(s.errs, format+"\n", args...) }

func (s *stage) Errorf(format string, args ...any) {
	s.failed = true
	s.Logf("demo: "+format, args...)
}

// Fatalf ends the play. After an interruption it is silent: the failure is
// the interruption's.
func (s *stage) Fatalf(format string, args ...any) {
	if s.ctx.Err() != nil {
		s.failed = true
	} else {
		s.Errorf(format, args...)
	}
	panic(ended{})
}

// giveBack makes what OUT keeps the property of who called sudo.
func giveBack(s *stage, dir string) {
	uid, err := strconv.Atoi(os.Getenv("SUDO_UID"))
	if err != nil {
		return
	}
	gid, err := strconv.Atoi(os.Getenv("SUDO_GID"))
	if err != nil {
		return
	}
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, uid, gid))
	})
	if err != nil {
		s.Errorf("give OUT to the user: %v", err)
	}
}
