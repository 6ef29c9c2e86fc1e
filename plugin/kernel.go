package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"probity/bpf/kernel"
)

func (c *cli) kernel() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "kernel", Short: "Show what this kernel offers, and what is chosen of it",
		Long: `Kernel tries every probe type on this kernel: it attaches each to something
harmless, makes it run, reads its count and takes it away again, which takes
some 200 ms. It needs no agent, no configuration and no file of the system but
/proc and /sys, and leaves nothing behind.

With --btf it also says whether the agent could use that file or directory for
the types of kernel structures; one that it could not use is a finding.

For each probe type and each set it says by which mechanism it is attached, why
nothing better was taken, and whether the kernel counts every run of a program
that it skips: where it does not, evidence says that losses are unknowable.

It exits with 0 if it could look, whatever the kernel offers, with 1 if the
types of --btf are not to be used, and with 3 if it was not allowed to try.`,
		Args: none,
		RunE: func(*cobra.Command, []string) error {
			f, err := kernel.Look()
			if err != nil && !errors.Is(err, kernel.ErrNotTried) {
				return blind(err)
			}
			_, source, btfErr := f.OpenBTF(path)
			f = f.WithBTF(source)
			if path != "" && f.KernelBTF.Yes {
				// Looked at all the same: who asks wants to know of other nodes.
				_, _, btfErr = kernel.FindBTF(path, f.Release, f.Machine)
			}
			if perr := c.print(f, func(w io.Writer) error { return printKernel(w, f) }); perr != nil {
				return perr
			}
			if btfErr != nil {
				return exitError{exitFinding, btfErr}
			}
			return blind(err)
		},
	}
	cmd.Flags().StringVar(&path, "btf", "", "`file` with kernel types, or directory of archives")
	return cmd
}

func printKernel(w io.Writer, f kernel.Facts) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(t, "kernel\t%s %s\n", f.Release, f.Machine)
	fmt.Fprintf(t, "cgroups\t%s\n", f.Cgroups)
	fmt.Fprintf(t, "kernel types (BTF)\t%s\n", orWhy(f.BTF.Source, f.BTF.Reason))
	fmt.Fprintf(t, "tracefs\t%s\n", f.Tracefs)
	fmt.Fprintf(t, "lockdown\t%s\n", f.Lockdown)
	fmt.Fprintf(t, "kprobe blacklist\t%s\n", f.KprobeBlacklist)
	fmt.Fprintf(t, "uretprobe system call\t%s\n", orWhy(uretprobeWords(f.UretprobeSyscall), f.UretprobeReason))
	fmt.Fprintf(t, "sites in a container\tat most %d\n", f.MaxSites)
	for _, a := range []struct {
		what   string
		answer kernel.Answer
	}{
		{"ring buffer", f.RingBuffer},
		{"task storage", f.TaskStorage},
		{"fetching atomics", f.FetchAtomics},
		{"bpf_get_func_ip", f.FuncIP},
		{"attach cookies", f.AttachCookie},
		{"USDT semaphores", f.Semaphores},
		{"stacks by build-id", f.StackBuildID},
	} {
		if f.Tried {
			fmt.Fprintf(t, "%s\t%s\n", a.what, a.answer)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)

	yes := map[bool]string{true: "yes", false: "no"}
	fmt.Fprintln(t, "PROBE TYPE\tSUPPORTED\tMECHANISM\tCOUNTS MISSES")
	row := func(name string, supported bool, m kernel.Mechanism, counts bool) {
		switch {
		case !f.Tried:
			fmt.Fprintf(t, "%s\tnot tried\t-\t-\n", name)
			return
		case !supported:
			fmt.Fprintf(t, "%s\tno\t-\t-\n", name)
			return
		}
		fmt.Fprintf(t, "%s\tyes\t%s\t%s\n", name, m, yes[counts])
	}
	why := reasons{}
	for _, p := range f.Types {
		row(p.ProbeType, p.Supported, p.Mechanism, p.CountsMisses)
		if f.Tried {
			why.add(p.ProbeType, p.Reason)
		}
		if p.Supported {
			why.add(p.ProbeType+", misses", p.MissesReason)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	fmt.Fprintln(t, "SET\tSUPPORTED\tMECHANISM\tCOUNTS MISSES")
	for _, s := range f.Sets {
		row(s.Set, s.Supported, s.Mechanism, s.CountsMisses)
		if f.Tried {
			why.add(s.Set, s.Reason)
		}
		if s.Supported {
			why.add(s.Set+", misses", s.MissesReason)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return why.print(w)
}

func orWhy(s, why string) string {
	if why == "" {
		return s
	}
	return s + ": " + why
}

func uretprobeWords(u kernel.UretprobeSyscall) string {
	switch u {
	case kernel.SyscallNotUsed:
		return "not used by this kernel"
	case kernel.SyscallPasses:
		return "passes seccomp"
	case kernel.SyscallKilled:
		return "stopped by seccomp"
	}
	return "not known"
}

// reasons are sentences, each with all those that it is true of.
type reasons struct {
	order []string
	of    map[string][]string
}

func (r *reasons) add(who, why string) {
	if why == "" {
		return
	}
	if r.of == nil {
		r.of = map[string][]string{}
	}
	if r.of[why] == nil {
		r.order = append(r.order, why)
	}
	r.of[why] = append(r.of[why], who)
}

func (r *reasons) print(w io.Writer) error {
	if len(r.order) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nWHY")
	for _, why := range r.order {
		if _, err := fmt.Fprintf(w, "%s: %s\n", strings.Join(r.of[why], ", "), why); err != nil {
			return err
		}
	}
	return nil
}
