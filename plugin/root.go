package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Exit codes of the command line.
const (
	exitSound   = 0
	exitFinding = 1
	exitUsage   = 2
	exitBlind   = 3 // could not look
	exitPIN     = 4 // of the agent: a token refused the PIN or is locked, and the unit is not to try it again
)

// exitError carries an exit code. A nil err has been reported already.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

func blind(err error) error {
	if err == nil {
		return nil
	}
	return exitError{exitBlind, err}
}

// version is set by the linker; else the module's own.
var version string

func versionString() string {
	if version != "" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		return bi.Main.Version
	}
	return "(devel)"
}

// cli is what every command shares.
type cli struct {
	out    io.Writer
	errOut io.Writer
	format string // "text" or "json"
}

// print writes v as JSON if that was asked for, else text writes it.
func (c *cli) print(v any, text func(io.Writer) error) error {
	if c.format != "json" {
		return text(c.out)
	}
	enc := json.NewEncoder(c.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := &cli{out: stdout, errOut: stderr}
	root := &cobra.Command{
		Use:   "probity",
		Short: "Testify, per container, to what really ran",
		Long: `Probity arms eBPF probes in a container before its first instruction, keeps
them as long as it lives, and writes signed evidence of what was executed and
of what could not be seen.`,
		Version:       versionString(),
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if c.format != "text" && c.format != "json" {
				return exitError{exitUsage, fmt.Errorf("-o %s: want text or json", c.format)}
			}
			return nil
		},
	}
	root.PersistentFlags().StringVarP(&c.format, "output", "o", "text", "text or json")
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return exitError{exitUsage, err} })
	root.SetVersionTemplate("probity {{.Version}}\n")
	root.AddCommand(c.agent(), c.reload(), c.status(), c.containers(), c.evidence(), c.verify(), c.policy(), c.key(), c.kernel(), c.doctor(), c.version())

	err := root.ExecuteContext(ctx)
	var exit exitError
	switch {
	case err == nil:
		return exitSound
	case errors.As(err, &exit):
		if exit.err != nil {
			fmt.Fprintln(stderr, "probity:", exit.err)
		}
		return exit.code
	default: // cobra's own: unknown command, wrong number of arguments
		fmt.Fprintln(stderr, "probity:", err)
		return exitUsage
	}
}

// group is a command that only has others below it: without one of them it
// shows what there is, with a word that is none of them it is misused.
func group(use, short string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return exitError{exitUsage, fmt.Errorf("%s: unknown command %q (see: %s --help)", cmd.CommandPath(), args[0], cmd.CommandPath())}
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(below...)
	return cmd
}

// files takes one or more arguments and names what is missing.
func files(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return exitError{exitUsage, fmt.Errorf("%s: which %s? (see: %s --help)", cmd.CommandPath(), what, cmd.CommandPath())}
		}
		return nil
	}
}

// none takes no argument.
func none(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return exitError{exitUsage, fmt.Errorf("%s takes no argument, got %q", cmd.CommandPath(), args[0])}
	}
	return nil
}

func (c *cli) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: none,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
			}{versionString()}
			return c.print(v, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, "probity", v.Version)
				return err
			})
		},
	}
}
