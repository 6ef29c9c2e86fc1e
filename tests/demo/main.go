// Command demo shows the whole way once, on real runtimes: it builds an image
// offline, starts the agent with a throwaway key and spool, runs three
// containers of that image under podman or containerd, and prints the evidence
// and its verification. scripts/demo.sh calls it, as root and in a mount
// namespace of its own, so that no mount can outlive it.
//
// It exits 0 only if the evidence says what happened: the function in question
// was hit in one container and armed without a hit in the other, a symbol that
// does not exist is reported as such, and the third container is not
// mentioned at all. 2 is usage, 130 an interruption; in every case everything
// it started has ended and everything it made is removed, except what OUT
// keeps.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"probity/tests/need"
	"probity/tests/reaper"
	"probity/tests/runtimes"
)

const (
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// options are the command line.
type options struct {
	runtime string // podman or containerd
	out     string // directory that keeps the result, or ""
	source  string // the repository
	bin     string // directory of probity and probity-hook
	peers   string // directory of containerd, its shim and ctr
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	// A closed pager must not end us with containers left behind. Caught and
	// not ignored: what we start would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o options
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.runtime, "runtime", "podman", "podman or containerd")
	flags.StringVar(&o.out, "out", "", "new or empty directory that keeps the result")
	flags.StringVar(&o.source, "source", ".", "root of the repository")
	flags.StringVar(&o.bin, "bin", "bin", "directory of the two programs")
	flags.StringVar(&o.peers, "containerd", "", "directory of containerd, its shim and ctr")
	if flags.Parse(args) != nil {
		return exitUsage
	}
	if err := o.check(flags.Args()); err != nil {
		fmt.Fprintln(stderr, "demo:", err)
		return exitUsage
	}
	// What podman and containerd leave to init comes to us instead, and is
	// reaped before we end.
	if err := reaper.Become(); err != nil {
		fmt.Fprintln(stderr, "demo:", err)
		return exitFailed
	}
	s := newStage(ctx, stdout, stderr)
	s.play(func() { demo(s, o) })
	for _, left := range reaper.Reap() {
		s.Errorf("was still running, and was killed: %s", left)
	}
	switch {
	case ctx.Err() != nil:
		for _, name := range []string{"spool", "image.tar", "node.pub", "summary.json"} {
			if o.out == "" {
				break
			}
			if err := os.RemoveAll(filepath.Join(o.out, name)); err != nil {
				fmt.Fprintln(stderr, "demo:", err)
			}
		}
		fmt.Fprintln(stderr, "demo: interrupted; everything is removed")
		return exitInterrupted
	case s.failed:
		return exitFailed
	}
	s.say("Nothing is left behind.")
	return 0
}

// check refuses what cannot work before anything is made.
func (o *options) check(rest []string) error {
	if len(rest) > 0 {
		return fmt.Errorf("unexpected argument %q", rest[0])
	}
	if o.runtime != "podman" && o.runtime != "containerd" {
		return fmt.Errorf("RUNTIME is %q, want podman or containerd", o.runtime)
	}
	// Runtimes start the hook from directories of their own.
	for _, dir := range []*string{&o.out, &o.source, &o.bin, &o.peers} {
		if *dir == "" {
			continue
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return fmt.Errorf("%s: %w", *dir, err)
		}
		*dir = abs
	}
	if o.out == "" {
		return nil
	}
	entries, err := os.ReadDir(o.out)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("OUT: %w", err)
	case len(entries) > 0:
		return fmt.Errorf("OUT: %s is not empty", o.out)
	}
	return nil
}

// summary is OUT/summary.json: the ids of the three containers.
type summary struct {
	Caller     string `json:"caller"`
	Idle       string `json:"idle"`
	Unselected string `json:"unselected"`
}

func demo(s *stage, o options) {
	scratch := runtimes.NewScratch(s)
	// What the compiler and podman put down on the way goes with the rest.
	tmp := scratch.Path("tmp")
	if err := errors.Join(os.MkdirAll(tmp, 0o700), os.Setenv("TMPDIR", tmp)); err != nil {
		s.Fatalf("make a directory for temporary files: %v", err)
	}
	keep := o.out
	if keep == "" {
		keep = scratch.Path("out")
	} else {
		s.Cleanup(func() { giveBack(s, keep) })
	}
	if err := os.MkdirAll(keep, 0o755); err != nil {
		s.Fatalf("make OUT: %v", err)
	}

	s.say("Build the image, offline")
	archive := filepath.Join(keep, "image.tar")
	digest := runtimes.DemoImage(s, scratch, filepath.Join(o.source, "tests", "demo", "image"), archive)
	fmt.Fprintf(s.out, "%s\n%s\n", runtimes.DemoImageName, digest)

	policy, err := os.ReadFile(filepath.Join(o.source, "tests", "demo", "policy.yaml"))
	if err != nil {
		s.Fatalf("read the policy: %v", err)
	}
	s.say("The policy")
	fmt.Fprint(s.out, string(policy))
	c := cast{
		stage: s, scratch: scratch, archive: archive, digest: digest, source: o.source,
		programs: runtimes.Binaries{Probity: filepath.Join(o.bin, "probity"), Hook: filepath.Join(o.bin, "probity-hook")},
		spool:    filepath.Join(keep, "spool"),
		agent:    runtimes.AgentOptions{Policies: []string{string(policy)}},
	}
	var ids summary
	var agent *runtimes.Agent
	switch o.runtime {
	case "podman":
		agent, ids = c.podman()
	case "containerd":
		agent, ids = c.containerd(need.ContainerdIn(o.peers))
	}

	s.say("Wait for the last evidence, then stop the agent")
	agent.WaitIdle(s)
	agent.Stop(s)

	s.say("The evidence: probity evidence show SPOOL")
	show(s, agent, "evidence", "show", agent.Spool)
	s.say("Its verification: probity verify SPOOL --key node.pub")
	show(s, agent, "verify", agent.Spool, "--key", agent.Key())
	judge(s, runtimes.ReadSpool(s, agent.Spool), ids, digest)

	if o.out != "" {
		keepFile(s, agent.Key(), filepath.Join(keep, "node.pub"))
		b, err := json.Marshal(ids)
		if err != nil {
			s.Fatalf("summary: %v", err)
		}
		if err := os.WriteFile(filepath.Join(keep, "summary.json"), append(b, '\n'), 0o644); err != nil {
			s.Fatalf("summary: %v", err)
		}
		s.say("Kept in " + keep)
		fmt.Fprintf(s.out, "bin/probity verify %s --key %s\n", filepath.Join(keep, "spool"), filepath.Join(keep, "node.pub"))
	}
}

// show prints what a command of the command line prints; it must exit 0.
func show(s *stage, agent *runtimes.Agent, args ...string) {
	code, out, errs := agent.Probity(s, args...)
	fmt.Fprint(s.out, out)
	fmt.Fprint(s.errs, errs)
	if code != 0 {
		s.Fatalf("probity %s: exit code %d", args[0], code)
	}
}

func keepFile(s *stage, from, to string) {
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o644)
	}
	if err != nil {
		s.Fatalf("keep %s: %v", filepath.Base(to), err)
	}
}
