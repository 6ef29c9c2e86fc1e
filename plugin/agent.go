package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"sort"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"probity/agent"
	"probity/bpf/kernel"
	"probity/evidence/nodekey"
	"probity/evidence/spool"
	"probity/evidence/verify"
	"probity/evidence/witness"
)

const (
	defaultConfig = "/etc/probity/probity.yaml"
	defaultAdmin  = "/run/probity/admin.sock"
)

func (c *cli) agent() *cobra.Command {
	var flags agent.Config
	var file, level string
	cmd := &cobra.Command{
		Use: "agent", Short: "Run the node service",
		Long: `Agent runs until it gets SIGTERM or SIGINT. At SIGHUP it reloads the policies and the
key (see probity reload). It needs root, or CAP_SYS_ADMIN
(eBPF; overlayfs marks in layers), CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH and CAP_LEASE
(files of users that a container may write). Flags win over the configuration file, which may be absent only
if it is the default one.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			read := func() (agent.Config, error) {
				cfg, err := agent.ReadConfig(file)
				if errors.Is(err, os.ErrNotExist) && !cmd.Flags().Changed("config") {
					err = nil
				}
				return override(cfg, flags), err
			}
			cfg, err := read()
			if err != nil {
				return exitError{exitUsage, err}
			}
			var lvl slog.Level
			if err := lvl.UnmarshalText([]byte(level)); err != nil {
				return exitError{exitUsage, fmt.Errorf("--log-level: %w", err)}
			}
			cfg.Reread = read
			hangup, deaf := hangups()
			defer deaf()
			cfg.Hangup = hangup
			cfg.Version = versionString()
			cfg.Log = slog.New(slog.NewTextHandler(c.errOut, &slog.HandlerOptions{Level: lvl}))
			cfg.Ready = func() {
				// Not under systemd the variable is not set and nothing is sent.
				_, err := daemon.SdNotify(false, daemon.SdNotifyReady)
				if err != nil {
					cfg.Log.Warn("the service manager was not told", "err", err)
				}
			}
			cfg.Starting = extend("")
			cfg.Stopping = stopping()
			if interval, err := daemon.SdWatchdogEnabled(false); err == nil && interval > 0 {
				cfg.AliveEvery = interval / 3
				cfg.Alive = func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog) }
			}
			ended, err := keepFor(&cfg)
			if err != nil {
				return blind(err)
			}
			ctx, another, stop := replaced(cmd.Context())
			defer stop()
			a, err := agent.New(cfg)
			if err == nil {
				err = a.Run(ctx)
			}
			err = errors.Join(err, ended(err == nil && !another()))
			if errors.Is(err, nodekey.ErrPIN) || errors.Is(err, nodekey.ErrLocked) {
				return exitError{exitPIN, err}
			}
			return blind(err)
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "config", defaultConfig, "configuration `file`")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&flags.Node, "node", "", "the node's `name` in evidence (default: the host name)")
	f.StringVar(&flags.State, "state", "", "`directory` of the node's key and sequence (default /var/lib/probity)")
	f.StringVar(&flags.Spool, "spool", "", "`directory` of the evidence (default STATE/spool)")
	f.StringVar(&flags.Policies, "policies", "", "`directory` of policies (default /etc/probity/policies.d)")
	f.StringVar(&flags.HookSocket, "hook-socket", "", "`path` where OCI hooks ask, or none (default /run/probity/hook.sock)")
	f.StringVar(&flags.AdminSocket, "admin-socket", "", "`path` where the command line asks (default "+defaultAdmin+")")
	f.StringArrayVar(&flags.NRISockets, "nri-socket", nil, "`path` of a runtime's NRI socket, or none; may be repeated (default /var/run/nri/nri.sock)")
	f.StringArrayVar(&flags.RuntimeStates, "runtime-state", nil, "`directory` with the states of runc's or crun's containers, or none; may be repeated (default /run/runc and /run/crun)")
	f.StringVar(&flags.ContainerdAddress, "containerd-address", "", "`path` of containerd's socket (default /run/containerd/containerd.sock)")
	f.StringVar(&flags.PodmanRoot, "podman-root", "", "`directory` of podman's storage (default /var/lib/containers/storage)")
	f.StringVar(&flags.DockerRoot, "docker-root", "", "`directory` that is docker's data-root (default /var/lib/docker)")
	f.StringVar(&flags.KeepIn, "keep-in", "", "`directory` below a BPF file system where what counts is pinned for the next agent, where no service manager holds it")
	f.StringVar(&flags.BTF, "btf", "", "`file` with kernel types, or directory of archives, for kernels without /sys/kernel/btf/vmlinux")
	f.DurationVar(&flags.Barrier, "barrier", 0, "hold a container's start at most this long (default 1.2s)")
	f.DurationVar(&flags.Linger, "linger", 0, "keep probes of an image this long after its last container (default 30s)")
	f.DurationVar(&flags.Health, "health", 0, "prove that sites are armed this often (default 5s)")
	return cmd
}

// hangups tells of each SIGHUP, of several at once only of one.
func hangups() (<-chan struct{}, func()) {
	signals, out, done := make(chan os.Signal, 1), make(chan struct{}, 1), make(chan struct{})
	signal.Notify(signals, unix.SIGHUP)
	go func() {
		for {
			select {
			case <-signals:
				select {
				case out <- struct{}{}:
				default:
				}
			case <-done:
				return
			}
		}
	}()
	return out, func() { signal.Stop(signals); close(done) }
}

// override lets what was said on the command line win.
func override(cfg, flags agent.Config) agent.Config {
	for _, p := range []struct{ into, from *string }{
		{&cfg.Node, &flags.Node}, {&cfg.State, &flags.State}, {&cfg.Spool, &flags.Spool}, {&cfg.Policies, &flags.Policies},
		{&cfg.HookSocket, &flags.HookSocket}, {&cfg.AdminSocket, &flags.AdminSocket},
		{&cfg.ContainerdAddress, &flags.ContainerdAddress}, {&cfg.PodmanRoot, &flags.PodmanRoot}, {&cfg.DockerRoot, &flags.DockerRoot}, {&cfg.BTF, &flags.BTF}, {&cfg.KeepIn, &flags.KeepIn},
	} {
		if *p.from != "" {
			*p.into = *p.from
		}
	}
	if flags.NRISockets != nil {
		cfg.NRISockets = flags.NRISockets
	}
	if flags.RuntimeStates != nil {
		cfg.RuntimeStates = flags.RuntimeStates
	}
	for _, p := range []struct{ into, from *time.Duration }{{&cfg.Barrier, &flags.Barrier}, {&cfg.Linger, &flags.Linger}, {&cfg.Health, &flags.Health}} {
		if *p.from != 0 {
			*p.into = *p.from
		}
	}
	return cfg
}

// stopping returns what tells the service manager that the agent ends, and from then on
// that it gets further with that: who is ended by a signal that is not the service
// manager's is still running for it, and its watchdog would kill what writes the last
// lines of many runs. One that hangs is killed when the time that it was given is over.
func stopping() func() {
	more := extend("\n" + daemon.SdNotifyWatchdog)
	tell := sync.OnceFunc(func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) })
	return func() { tell(); more() }
}

// extend returns what asks the service manager for more time to start or to stop, once a
// second at most: it ends one that takes longer than TimeoutStartSec=, or TimeoutStopSec=.
func extend(besides string) func() {
	var last time.Time
	return func() {
		if now := time.Now(); now.Sub(last) >= time.Second {
			last = now
			_, _ = daemon.SdNotify(false, "EXTEND_TIMEOUT_USEC=30000000"+besides)
		}
	}
}

func (c *cli) reload() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use: "reload", Short: "Have the running agent take its policies and its key again", Args: none,
		Long: `Reload has the agent read its policies and its configuration again. The policies are
in force for containers that start from then on; one that runs keeps those that it was
armed under, until the agent is started again. The key is the one that the
configuration names: that in use, or one that follows it (probity key rotate --to). Of
the rest of the configuration nothing is taken: that needs a restart.

A policy with a mistake, or a key that cannot be reached, does not sign or does not
follow, has nothing changed at all, and reload exits with 3 and says why, as does
probity status. systemctl reload probity does the same.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			got, err := agent.Reload(cmd.Context(), socket)
			if err != nil {
				return blind(err)
			}
			return blind(c.print(got, func(w io.Writer) error {
				policies, key := "as they were", got.Key.After+" stays the node's key"
				if got.Policies.Before != got.Policies.After {
					policies = fmt.Sprintf("%d, in force for containers that start from now on", got.Policies.Policies)
				}
				if got.Key.Before != got.Key.After {
					key = fmt.Sprintf("%s follows %s and is in use", got.Key.After, got.Key.Before)
				}
				_, err := fmt.Fprintf(w, "policies: %s\nkey: %s\n", policies, key)
				return err
			}))
		},
	}
	cmd.Flags().StringVar(&socket, "admin-socket", defaultAdmin, "the agent's administration socket")
	return cmd
}

func (c *cli) status() *cobra.Command {
	var socket string
	var ready, idle time.Duration
	cmd := &cobra.Command{
		Use: "status", Short: "Show what the agent is doing", Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			var st agent.Status
			var err error
			switch {
			case ready > 0:
				st, err = agent.WaitReady(ctx, socket, ready)
			case idle > 0:
				st, err = agent.WaitIdle(ctx, socket, idle)
			default:
				err = agent.Ask(ctx, socket, "/status", &st)
			}
			if err != nil {
				return blind(err)
			}
			return c.print(st, func(w io.Writer) error { return printStatus(w, st) })
		},
	}
	cmd.Flags().StringVar(&socket, "admin-socket", defaultAdmin, "the agent's administration socket")
	cmd.Flags().DurationVar(&ready, "wait-ready", 0, "wait at most this long for the agent to answer")
	cmd.Flags().DurationVar(&idle, "wait-idle", 0, "wait at most this long until no run is live and all evidence is on disk")
	cmd.MarkFlagsMutuallyExclusive("wait-ready", "wait-idle")
	return cmd
}

func printStatus(w io.Writer, st agent.Status) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	row := func(k string, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", k, fmt.Sprintf(format, args...))
	}
	row("agent", "probity %s on node %s", st.Version, st.Node)
	row("key", "%s", st.KeyID)
	if st.Unsigned != "" {
		row("", "it cannot sign now, and evidence waits: %s", verify.Printable(st.Unsigned))
	}
	row("spool", "%s", st.Spool)
	for _, line := range stored(st.Stored) {
		row("", "%s", line)
	}
	if st.Coalesced > 0 {
		row("", "lines left out since the start, because a later one says the same: %d", st.Coalesced)
	}
	row("policies", "%d with %d probes, from %s", st.Policies.Policies, st.Policies.Probes, st.Policies.Dir)
	row("", "in force since %s", st.Policies.Since)
	if st.Policies.Refused != "" {
		row("", "not taken again: %s", verify.Printable(st.Policies.Refused))
	}
	row("kernel", "%s %s, execs by: %s", st.Kernel.Release, st.Kernel.Machine, st.Exec)
	row("probe types", "%s", probeTypes(st.Kernel))
	row("kernel types", "%s", orWhy(st.Kernel.BTF.Source, st.Kernel.BTF.Reason))
	row("cgroups", "%s", st.Cgroup)
	names := make([]string, 0, len(st.Sources))
	for k := range st.Sources {
		names = append(names, k)
	}
	sort.Strings(names)
	for _, n := range names {
		row("source", "%s: %s", n, st.Sources[n])
	}
	row("seen", "%d selected, %d not selected since the start", st.Seen.Selected, st.Seen.Unselected)
	if st.Seen.Last != "" {
		row("", "last not selected: %s", verify.Printable(st.Seen.Last))
	}
	row("live runs", "%d", st.Live)
	row("attached", "%d uprobes, for %d pairs of probe and file", st.Armed.Sites, st.Armed.Files)
	for _, p := range st.Problems {
		row("problem", "%s", verify.Printable(p))
	}
	return t.Flush()
}

// stored says how full the spool is, and what it cost.
func stored(u spool.Usage) (lines []string) {
	of := func(n int64) string {
		if n == 0 {
			return "no bound"
		}
		return mib(n)
	}
	lines = append(lines, fmt.Sprintf("%s in %d chunks, of %s; waiting in memory: %s", mib(u.Bytes), u.Chunks, of(u.Quota), mib(u.Waiting)))
	for _, c := range u.Most {
		if c.Refused {
			lines = append(lines, fmt.Sprintf("container %s has its share, %s of %s: further entries of its sets are not written", verify.Short(c.ContainerID), mib(c.Bytes), of(u.ContainerQuota)))
		}
	}
	for _, why := range slices.Sorted(maps.Keys(u.Dropped)) {
		lines = append(lines, fmt.Sprintf("lines dropped since the start, and signed as such: %d (%s)", u.Dropped[why], why))
	}
	return lines
}

// probeTypes names those that this kernel has, with how they are attached, and
// those that it has not (see: probity kernel).
func probeTypes(f kernel.Facts) string {
	var has, not []string
	for _, t := range f.Types {
		if t.Supported {
			has = append(has, fmt.Sprintf("%s (%s)", t.ProbeType, t.Mechanism))
		} else {
			not = append(not, t.ProbeType)
		}
	}
	s := strings.Join(has, ", ")
	if len(not) > 0 {
		s += "; not " + strings.Join(not, ", ")
	}
	return s
}

func (c *cli) containers() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use: "containers", Short: "List the containers that are armed now", Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			runs := []witness.Live{}
			if err := agent.Ask(cmd.Context(), socket, "/containers", &runs); err != nil {
				return blind(err)
			}
			sort.Slice(runs, func(i, j int) bool { return runs[i].ArmedAt < runs[j].ArmedAt })
			return c.print(runs, func(w io.Writer) error {
				t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
				fmt.Fprintln(t, "CONTAINER\tNAME\tRUNTIME\tIMAGE\tSITES\tARMED\tHIT\tGAPS")
				for _, r := range runs {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\n", verify.Short(r.Identity.ID), verify.Printable(r.Identity.Name), r.Identity.Runtime,
						verify.Printable(r.Identity.Image.Name), r.Sites, r.Armed, r.Hit, verify.Printable(strings.Join(r.Gaps, ", ")))
				}
				return t.Flush()
			})
		},
	}
	cmd.Flags().StringVar(&socket, "admin-socket", defaultAdmin, "the agent's administration socket")
	return cmd
}
