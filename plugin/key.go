package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"probity/agent"
	"probity/evidence/nodekey"
	"probity/evidence/trust"
	"probity/evidence/verify"
)

// keyFlags say which key is meant: the agent's, by its configuration, unless a flag
// says otherwise.
type keyFlags struct {
	file, state, source, helper, helperUser, node string
	existing                                      bool
	configured                                    string // where the configuration says that the key is
}

func (f *keyFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.file, "config", defaultConfig, "the agent's configuration `file`")
	cmd.Flags().StringVar(&f.state, "state", "", "`directory` of the node's key (default: the configuration's)")
	cmd.Flags().StringVar(&f.source, "source", "", "where the key is: file, credential:NAME, tpm, tpm:`PATH` or a pkcs11: URI (default: the configuration's)")
	cmd.Flags().StringVar(&f.helper, "helper", "", "`path` of probity-pkcs11 (default: the configuration's)")
	cmd.Flags().StringVar(&f.helperUser, "helper-user", "", "`user` to run it as (default: the configuration's)")
}

// config is the key's, and the node's name.
func (f *keyFlags) config(cmd *cobra.Command) (nodekey.Config, string, error) {
	cfg, err := agent.ReadConfig(f.file)
	if errors.Is(err, os.ErrNotExist) && !cmd.Flags().Changed("config") {
		err = nil
	}
	if err != nil {
		return nodekey.Config{}, "", exitError{exitUsage, err}
	}
	f.configured = cmp.Or(cfg.Key, nodekey.File)
	for _, p := range []struct{ into, from *string }{
		{&cfg.State, &f.state}, {&cfg.Key, &f.source}, {&cfg.KeyHelper, &f.helper}, {&cfg.KeyHelperUser, &f.helperUser}, {&cfg.Node, &f.node},
	} {
		if *p.from != "" {
			*p.into = *p.from
		}
	}
	key, node, err := cfg.NodeKey()
	if err != nil {
		return nodekey.Config{}, "", exitError{exitUsage, err}
	}
	key.Existing = f.existing
	return key, node, nil
}

func (c *cli) key() *cobra.Command {
	return group("key", "Make, show, change and hand out the node's key", c.keyInit(), c.keyShow(), c.keyRotate(), c.keyExport())
}

func (c *cli) keyInit() *cobra.Command {
	var f keyFlags
	cmd := &cobra.Command{
		Use: "init", Short: "Make the node's first key", Args: none,
		Long: `Init makes the node's key: in a file, in a TPM, or on a PKCS#11 token. It never
overwrites one. An agent that finds none makes one itself where the source is a
file. A credential is made by systemd-creds: see docs/keys.md.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := f.config(cmd)
			if err != nil {
				return err
			}
			s, err := nodekey.Init(cfg)
			if err != nil {
				return blind(err)
			}
			// Before another connection: a TPM without a resource manager has one.
			if err := s.Close(); err != nil {
				return blind(err)
			}
			if err := c.printKey(cfg); err != nil || c.format == "json" || cfg.Source.String() == f.configured {
				return err
			}
			_, err = fmt.Fprintf(c.out, "now: set key: %q in %s, and start the agent\n", cfg.Source, f.file)
			return blind(err)
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&f.existing, "existing", false, "take the key that is on the token already, instead of making one")
	return cmd
}

func (c *cli) keyShow() *cobra.Command {
	var f keyFlags
	cmd := &cobra.Command{
		Use: "show", Short: "Show the node's key", Args: none,
		Long: `Show prints the key's fingerprint, where it is, since when the node has it, which
keys it follows, and its public half. It exits with 1 if the key cannot sign now.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := f.config(cmd)
			if err != nil {
				return err
			}
			return c.printKey(cfg)
		},
	}
	f.add(cmd)
	return cmd
}

func (c *cli) printKey(cfg nodekey.Config) error {
	shown, _, err := nodekey.Show(cfg)
	if err != nil {
		return blind(err)
	}
	if err := c.print(shown, func(w io.Writer) error {
		t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
		fmt.Fprintf(t, "key\t%s\nsource\t%s\ncreated\t%s\n", shown.KeyID, verify.Printable(shown.Source), shown.Created.Format("2006-01-02T15:04:05Z"))
		for _, id := range shown.Follows {
			fmt.Fprintf(t, "follows\t%s\n", id)
		}
		if shown.Problem != "" {
			fmt.Fprintf(t, "problem\t%s\n", verify.Printable(shown.Problem))
		}
		if err := t.Flush(); err != nil {
			return err
		}
		_, err := io.WriteString(w, shown.Public)
		return err
	}); err != nil {
		return blind(err)
	}
	if shown.Problem != "" {
		return exitError{code: exitFinding}
	}
	return nil
}

// rotated is what `key rotate` did.
type rotated struct {
	Before string `json:"before"`
	After  string `json:"after"`
	Source string `json:"source"`
	// Todo is what is left to a person.
	Todo string `json:"todo"`
}

func (c *cli) keyRotate() *cobra.Command {
	var f keyFlags
	var to, socket string
	cmd := &cobra.Command{
		Use: "rotate", Short: "Put another key in the place of the node's", Args: none,
		Long: `Rotate makes another key, in the same kind of place or in another (--to), and has
the old one sign that it follows, so that who trusts the old key can verify what the
new one signs, and old evidence verifies as before. Where an agent is running it does
so itself, and goes on with the new key at once; with --to another kind of place when
its configuration says so and it reloads. Else the agent's next start does. Whatever
fails leaves the old key in use.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := f.config(cmd)
			if err != nil {
				return err
			}
			target := cfg.Source
			if to != "" {
				if target, err = nodekey.ParseSource(to); err != nil {
					return exitError{exitUsage, fmt.Errorf("--to: %w", err)}
				}
			}
			if target.Kind != nodekey.File && target.Kind != nodekey.TPM && target.String() == cfg.Source.String() {
				return exitError{exitUsage, fmt.Errorf("--to is missing, or says where the old key is: the new key of source %s needs a name of its own", target.Kind)}
			}
			before, after, err := nodekey.Rotate(cfg, target)
			if errors.Is(err, nodekey.ErrRunning) {
				return c.rotateLive(cmd, socket, f, agent.RotateRequest{State: cfg.State, To: to, Existing: f.existing})
			}
			if err != nil {
				return blind(err)
			}
			done := rotated{Before: before.KeyID(), After: after.KeyID(), Source: target.String(), Todo: "start the agent"}
			if target.String() != cfg.Source.String() {
				done.Todo = fmt.Sprintf("set key: %q in %s, start the agent, and then destroy the old key (%s)", target, f.file, cfg.Source)
			}
			return blind(c.print(done, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s follows %s\nnow: %s\n", done.After, done.Before, verify.Printable(done.Todo))
				return err
			}))
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&socket, "admin-socket", defaultAdmin, "the agent's administration socket")
	cmd.Flags().StringVar(&to, "to", "", "where the new key shall be: as --source (default: where the old one is)")
	cmd.Flags().BoolVar(&f.existing, "existing", false, "take the key that is on the token already, instead of making one")
	return cmd
}

// rotateLive has the running agent do it: it has the state directory and the key.
func (c *cli) rotateLive(cmd *cobra.Command, socket string, f keyFlags, req agent.RotateRequest) error {
	if f.source != "" || f.helper != "" || f.helperUser != "" {
		return exitError{exitUsage, errors.New("--source, --helper and --helper-user are the running agent's own (or stop it first)")}
	}
	got, err := agent.RotateKey(cmd.Context(), socket, req)
	if err != nil {
		return blind(err)
	}
	done := rotated{Before: got.Before, After: got.After, Source: got.Source, Todo: "nothing: the agent signs with it"}
	switch {
	case !got.InUse:
		done.Todo = fmt.Sprintf("set key: %q in %s, reload the agent (systemctl reload probity), and then destroy the old key", got.Source, f.file)
	case req.To != "":
		done.Todo = fmt.Sprintf("the agent signs with it; key: in %s has to be %q before it is started again", f.file, got.Source)
	}
	return blind(c.print(done, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s follows %s\nnow: %s\n", done.After, done.Before, verify.Printable(done.Todo))
		return err
	}))
}

func (c *cli) keyExport() *cobra.Command {
	var f keyFlags
	var format string
	cmd := &cobra.Command{
		Use: "export", Short: "Print the node's public key for those who verify", Args: none,
		Long: `Export prints the public key as PEM (for probity verify --key, cosign, openssl), or
as a trust file (for probity verify --trust) with this key and those that it follows,
oldest first: what was signed before a rotation needs them. The entries of a fleet
are collected from those. With -o json it is the entry of this key alone. No agent
is asked.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "pem" && format != "trust" {
				return exitError{exitUsage, fmt.Errorf("--format %.40s: want pem or trust", format)}
			}
			cfg, node, err := f.config(cmd)
			if err != nil {
				return err
			}
			key, before, err := nodekey.Public(cfg.State)
			if err != nil {
				return blind(err)
			}
			out := key.PEM()
			switch {
			case c.format == "json":
				if out, err = json.MarshalIndent(trust.EntryOf(node, key), "", "  "); err == nil {
					out = append(out, '\n')
				}
			case format == "trust":
				var entries []trust.Entry
				for _, k := range append(before, key) {
					entries = append(entries, trust.EntryOf(node, k))
				}
				out, err = trust.Write(entries)
			}
			if err != nil {
				return blind(err)
			}
			_, err = c.out.Write(out)
			return blind(err)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&format, "format", "pem", "pem or trust")
	cmd.Flags().StringVar(&f.node, "node", "", "the node's `name` in evidence (default: the configuration's)")
	return cmd
}
