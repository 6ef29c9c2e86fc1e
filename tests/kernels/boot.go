package kernels

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"probity/tests/kernels/guest"
)

// Load is what a guest gets besides kernel and userland: path in the guest to
// path on the host, of a file or a directory.
type Load map[string]string

// StepResult is how one step of a job went.
type StepResult struct {
	Name   string
	Ended  bool
	Exit   int
	Took   time.Duration
	Output []string // lines
}

// Boot is one run of a virtual machine.
type Boot struct {
	Release string // as the guest's kernel says; empty if it never came up
	Up      time.Duration
	Took    time.Duration
	Steps   []StepResult
	Console []string // what was not ours: the kernel's last words
}

// Step returns the result of the named step.
func (b *Boot) Step(name string) (StepResult, bool) {
	for _, s := range b.Steps {
		if s.Name == name {
			return s, true
		}
	}
	return StepResult{}, false
}

// Run boots the machine with the job and returns what it told. An error means
// that the machine did not run the whole job: what was told until then is
// returned with it. dir is the cache of scripts/kernels.sh, scratch a directory
// for the initrd. What is on the guest's console goes to console as well, as it
// comes, and told is called with each line of ours, one after the other.
func (m Machine) Run(ctx context.Context, dir, scratch string, job guest.Job, load Load, console io.Writer, told func(guest.Line)) (*Boot, error) {
	own, err := os.MkdirTemp(scratch, m.Name) // two boots of one kernel may go on at once
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(own)
	initrd := filepath.Join(own, "initrd.cpio")
	if err := m.pack(initrd, dir, job, load); err != nil {
		return nil, fmt.Errorf("pack the initrd of kernel %s: %w", m.Name, err)
	}
	args := append(m.qemu()[1:], "-kernel", m.kernel(dir), "-initrd", initrd, "-append", m.parameters())
	cmd := exec.CommandContext(ctx, m.QEMU(), args...)
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that is killed leaves no machine behind
	runtime.LockOSThread()                                             // the signal comes when the thread ends
	defer runtime.UnlockOSThread()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var complaints strings.Builder
	cmd.Stderr = &complaints
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	b := &Boot{}
	listened := b.listen(io.TeeReader(out, console), began, told)
	ended := cmd.Wait()
	b.Took = time.Since(began)
	if ctx.Err() != nil {
		ended = fmt.Errorf("ended by us after %s: %w", b.Took.Round(time.Second), ctx.Err())
	}
	if s := strings.TrimSpace(complaints.String()); ended != nil && s != "" {
		ended = fmt.Errorf("%w: %s", ended, s)
	}
	if err := errors.Join(listened, ended); err != nil {
		return b, fmt.Errorf("kernel %s: %w", m.Name, err)
	}
	return b, nil
}

// pack writes the initrd: the userland, and behind it an archive of ours.
func (m Machine) pack(path, dir string, job guest.Job, load Load) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if m.With != Bare {
		userland, err := os.Open(m.userland(dir))
		if err != nil {
			return err
		}
		defer userland.Close()
		if _, err := io.Copy(f, userland); err != nil {
			return err
		}
	}
	w := bufio.NewWriterSize(f, 1<<20)
	a := newArchive(w)
	b, err := json.Marshal(job)
	if err != nil {
		return err
	}
	a.file(guest.JobPath, 0o644, b)
	modules, err := filepath.Glob(filepath.Join(dir, m.Name, "*.ko"))
	if err != nil {
		return err
	}
	for _, module := range modules {
		a.copyFile("/modules/"+filepath.Base(module), module)
	}
	for name, from := range load {
		if info, err := os.Stat(from); err != nil {
			return err
		} else if info.IsDir() {
			a.copyDir(name, from)
		} else {
			a.copyFile(name, from)
		}
	}
	return errors.Join(a.end(), w.Flush(), f.Close())
}

// listen reads the console to its end. The machine ran its whole job if its
// last word was "down" and it failed at nothing.
func (b *Boot) listen(console io.Reader, began time.Time, told func(guest.Line)) error {
	var failed []error
	down := false
	lines := bufio.NewReader(console)
	for {
		text, err := lines.ReadString('\n')
		text = strings.TrimRight(text, "\r\n")
		if said, ours := strings.CutPrefix(text, guest.Mark); ours {
			var l guest.Line
			if err := json.Unmarshal([]byte(said), &l); err != nil {
				failed = append(failed, fmt.Errorf("console line %q: %w", said, err))
			}
			told(l)
			switch l.Kind {
			case guest.Up:
				b.Release, b.Up = l.Release, time.Since(began)
			case guest.Out:
				s := b.step(l.Step)
				s.Output = append(s.Output, l.Text)
			case guest.End:
				s := b.step(l.Step)
				s.Ended, s.Exit, s.Took = true, l.Exit, time.Duration(l.Ms)*time.Millisecond
			case guest.Fail:
				failed = append(failed, errors.New(l.Text))
			case guest.Down:
				down = true
			}
		} else if text != "" && len(b.Console) < 1000 {
			b.Console = append(b.Console, text)
		}
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			failed = append(failed, fmt.Errorf("read the console: %w", err))
			break
		}
	}
	if !down {
		last := b.Console[max(0, len(b.Console)-15):]
		failed = append(failed, fmt.Errorf("it did not get through its job; the console ended in\n\t%s", strings.Join(last, "\n\t")))
	}
	return errors.Join(failed...)
}

func (b *Boot) step(name string) *StepResult {
	for i := range b.Steps {
		if b.Steps[i].Name == name {
			return &b.Steps[i]
		}
	}
	b.Steps = append(b.Steps, StepResult{Name: name})
	return &b.Steps[len(b.Steps)-1]
}
