// Command report runs go test and says plainly how it went: the output of what
// failed, why something was skipped, one ok line per package, and last
// "N passed, N failed, N skipped".
//
//	report ARGUMENTS [-- ARGUMENTS]...
//
// Each group of arguments is one `go test -json ARGUMENTS`, one after another;
// the counts are of all groups. A test is counted with its subtests, each as
// one. A package that fails without a failing test (it does not build, it
// panics, it leaks) counts as one failure, and so does a process that tests
// leave behind, which is killed. It exits 1 if anything failed or nothing ran,
// and interrupted it waits for go test to end first.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"probity/tests/reaper"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	t := newTally(os.Stdout)
	if err := reaper.Become(); err != nil {
		t.broken(err)
	}
	for _, group := range groups(os.Args[1:]) {
		if ctx.Err() != nil {
			break
		}
		if err := goTest(group, t); err != nil {
			t.broken(err)
		}
	}
	interrupted := ctx.Err() != nil
	if interrupted {
		t.broken(errors.New("interrupted"))
	}
	for _, left := range reaper.Reap() {
		// The go command's own helper may outlive it for a moment.
		if name, _, _ := strings.Cut(left, " "); !interrupted && filepath.Base(name) != "go" {
			t.broken(fmt.Errorf("left running by a test, and killed: %s", left))
		}
	}
	if !t.finish() {
		stop()
		os.Exit(1)
	}
}

// groups splits args at "--".
func groups(args []string) [][]string {
	all := [][]string{{}}
	for _, a := range args {
		if a == "--" {
			all = append(all, []string{})
			continue
		}
		last := len(all) - 1
		all[last] = append(all[last], a)
	}
	return all
}

// goTest runs one go test and feeds its events to t. An interruption reaches
// go test through the terminal, or not at all: its tests clean up at their
// own end, so it is always waited for.
func goTest(args []string, t *tally) error {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := read(out, t)
	// A failing test makes go test exit 1, which the events have said.
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !(errors.As(err, &exit) && t.failures() > 0) {
		return fmt.Errorf("go test: %w", err)
	}
	return readErr
}

// read feeds every event of a go test -json stream to t.
func read(r io.Reader, t *tally) error {
	for lines := bufio.NewReader(r); ; {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				t.add(e)
			} else {
				t.raw(string(line)) // a message of the go command itself
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the events: %w", err)
		}
	}
}
