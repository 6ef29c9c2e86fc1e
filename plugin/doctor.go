package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"probity/agent"
	"probity/bpf/kernel"
	"probity/bpf/policy"
	"probity/evidence/verify"
)

// The results of a check, best first.
const (
	checkOK      = "ok"
	checkSkip    = "skip"    // there is nothing to look at on this host
	checkUnknown = "unknown" // it could not be looked at
	checkWarn    = "warn"
	checkFail    = "fail"
)

// check is one thing that was looked at.
type check struct {
	Name   string `json:"name"`
	Status string `json:"status"`          // ok, skip, unknown, warn or fail
	What   string `json:"what"`            // what was found
	Where  string `json:"where,omitempty"` // the file, directory, socket or program it is about
	// Advice is what to do about it: a command where one does it. It is empty where,
	// and only where, the status is ok or skip.
	Advice string `json:"advice,omitempty"`
}

// asRoot is the advice where only root may look.
const asRoot = "run as root: sudo probity doctor"

// defaultPatience bounds all that doctor waits for.
const defaultPatience = 10 * time.Second

// look is one group of checks. They run at the same time.
type look struct {
	name string
	do   func(context.Context) []check
}

func (c *cli) doctor() *cobra.Command {
	var file, hooks string
	var patience time.Duration
	cmd := &cobra.Command{
		Use: "doctor", Short: "Say what is wrong on this host, and what to do about it",
		Long: `Doctor looks at this host as the agent needs it, and says of each thing whether it
is well, and what to do if not: the configuration and policies, the kernel, the
container runtimes and whether they tell of their containers (NRI, hooks), the
service, its sockets, key and spool, the clock. It changes nothing. It needs no
agent, and asks the one that runs, if there is one.

It runs the runtimes' own programs, to ask for their version and for the
configuration that holds: only those that nobody but root can change, looked
for in the system's directories and not in PATH.

It exits with 1 if something is to be done, after a warning as after a failure;
else with 3 if something could not be looked at; else with 0.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if patience <= 0 {
				return exitError{exitUsage, fmt.Errorf("--timeout %s: want more than 0", patience)}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), patience)
			defer cancel()
			cfg, first := checkConfig(file, cmd.Flags().Changed("config"))
			h := findHost()
			h.config = file
			checks := append([]check{first}, gather(ctx, []look{
				{"kernel", func(context.Context) []check { return checkKernel() }},
				{"policies", func(context.Context) []check { return []check{checkPolicies(cfg)} }},
				{"runtimes", h.checkRuntimes},
				{"containerd", func(ctx context.Context) []check { return h.checkContainerd(ctx, cfg) }},
				{"cri-o", func(ctx context.Context) []check { return h.checkCRIO(ctx, cfg) }},
				{"docker", func(context.Context) []check { return h.checkDocker(cfg) }},
				{hooksName, func(context.Context) []check { return checkHooks(hooks, h.has("podman"), cfg.HookSocket) }},
				{"service", h.checkService},
				{"sockets", func(context.Context) []check { return checkSockets(cfg) }},
				{"agent", func(ctx context.Context) []check { return checkAgent(ctx, cfg) }},
				{"key", func(context.Context) []check { return []check{checkKey(cfg)} }},
				{spoolName, func(ctx context.Context) []check { return checkSpool(ctx, cfg) }},
				{"clock", func(context.Context) []check { return []check{checkClock()} }},
			})...)
			if err := c.print(checks, func(w io.Writer) error { return printChecks(w, checks) }); err != nil {
				return err
			}
			return verdict(checks)
		},
	}
	cmd.Flags().StringVar(&file, "config", defaultConfig, "configuration `file`")
	cmd.Flags().StringVar(&hooks, "hooks-dir", "", "`directory` of podman's hooks (default: those that containers.conf names, or "+defaultHooks+")")
	cmd.Flags().DurationVar(&patience, "timeout", defaultPatience, "wait at most this long for all of it")
	return cmd
}

// gather runs all of them at once and returns what they found, in their order. One
// that does not return in time, because a file system or a program does not answer,
// is unknown, and its goroutine is left behind: the program is about to end.
func gather(ctx context.Context, looks []look) []check {
	found := make([]chan []check, len(looks))
	for i, l := range looks {
		found[i] = make(chan []check, 1)
		go func() { found[i] <- l.do(ctx) }()
	}
	// A program that is killed at the deadline is still reported by who asked it.
	late, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lateBy, cancel) })()
	var all []check
	for i, l := range looks {
		select {
		case checks := <-found[i]:
			all = append(all, checks...)
		case <-late.Done():
			select {
			case checks := <-found[i]:
				all = append(all, checks...)
			default:
				all = append(all, check{l.name, checkUnknown, "no answer within the time", "", "look again with a longer --timeout"})
			}
		}
	}
	return all
}

// lateBy is how much longer than the programs the checks that ask them may take.
const lateBy = 1500 * time.Millisecond

// verdict is the exit code: what is to be done wins over what could not be seen.
func verdict(checks []check) error {
	has := func(status string) bool {
		return slices.ContainsFunc(checks, func(ch check) bool { return ch.Status == status })
	}
	switch {
	case has(checkFail) || has(checkWarn):
		return exitError{code: exitFinding}
	case has(checkUnknown):
		return exitError{code: exitBlind}
	}
	return nil
}

func printChecks(w io.Writer, checks []check) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "CHECK\tSTATUS\tWHAT")
	for i, ch := range checks {
		what := ch.What
		if ch.Where != "" {
			what = ch.Where + ": " + what
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", verify.Printable(ch.Name), ch.Status, verify.Printable(what))
		if i > 0 && ch.Advice != "" && ch.Advice == checks[i-1].Advice {
			fmt.Fprintf(t, "\t\tto do: the same\n")
		} else if ch.Advice != "" {
			fmt.Fprintf(t, "\t\tto do: %s\n", verify.Printable(ch.Advice))
		}
	}
	return t.Flush()
}

// checkConfig returns what an agent would start with; where it would not start,
// its sockets.
func checkConfig(file string, named bool) (agent.Config, check) {
	const name = "configuration"
	well := check{name, checkOK, "the agent starts with it", file, ""}
	cfg, err := agent.ReadConfig(file)
	if errors.Is(err, os.ErrNotExist) && !named {
		well.What, err = "absent: the defaults hold", nil
	}
	if err == nil {
		cfg, err = cfg.WithDefaults()
	}
	if err != nil {
		// Its sockets may be there all the same. Only the node's name can fail, which is not looked at.
		cfg, _ = agent.Config{HookSocket: cfg.HookSocket, AdminSocket: cfg.AdminSocket}.WithDefaults()
		return cfg, check{name, checkFail, err.Error(), "", "mend " + file + "; the agent does not start with it"}
	}
	if _, err := cfg.Readers(); err != nil {
		return cfg, check{name, checkFail, err.Error(), file, "mend that; the agent does not start with it"}
	}
	return cfg, well
}

func checkPolicies(cfg agent.Config) check {
	found := func(status, what, advice string) check { return check{"policies", status, what, cfg.Policies, advice} }
	set, err := policy.Load(cfg.Policies)
	switch {
	case errors.Is(err, os.ErrPermission):
		return found(checkUnknown, err.Error(), asRoot)
	case errors.Is(err, os.ErrNotExist):
		return found(checkFail, "absent: the agent does not start", "mkdir -p "+quote(cfg.Policies)+", and put policies *.yaml there")
	case err != nil:
		return found(checkFail, err.Error()+": the agent does not start", "probity policy check "+quote(cfg.Policies))
	case len(set.Policies) == 0:
		return found(checkWarn, "no file *.yaml: nothing is probed", "put policies there; docs/probes.md says what they can ask for")
	}
	probes := 0
	for _, p := range set.Policies {
		probes += len(p.Probes)
	}
	return found(checkOK, fmt.Sprintf("policies: %d, probes: %d", len(set.Policies), probes), "")
}

func checkKernel() []check {
	f, err := kernel.Look()
	if err != nil && !errors.Is(err, kernel.ErrNotTried) {
		return []check{{"kernel", checkFail, err.Error(), "", "see: probity kernel"}}
	}
	cg := check{"cgroups", checkOK, fmt.Sprint(f.Cgroups), "", ""}
	if err != nil {
		return []check{{"kernel", checkUnknown, err.Error(), "", asRoot}, cg}
	}
	if u := f.Type("uprobe"); !u.Supported {
		return []check{{"kernel", checkFail, "no uprobes: " + u.Reason, "", "see: probity kernel"}, cg}
	}
	return []check{{"kernel", checkOK, f.Release + " has uprobes", "", ""}, cg}
}
