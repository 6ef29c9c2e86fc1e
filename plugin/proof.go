package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"probity/evidence/tlog"
	"probity/evidence/verify"
)

func (c *cli) proof() *cobra.Command {
	var epoch bool
	cmd := &cobra.Command{
		Use: "proof SPOOL CHUNK", Short: "Print the proof that a chunk is in the node's log",
		Long: `Proof prints a C2SP tlog-proof: the chunk's leaf, its place, the hashes up to the
root, and the signed checkpoint. Whoever has the chunk, this and the proof of the
epoch (--epoch), which names the key that signed the checkpoint under the node's
key, can check it offline without the log: verify CHUNK.ndjson --key FILE --proof FILE
--proof FILE. Nothing is verified here.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := prove(cmd, args[0], args[1], epoch)
			if err != nil {
				return blind(err)
			}
			_, err = c.out.Write(p.Text())
			return blind(err)
		},
	}
	cmd.Flags().BoolVar(&epoch, "epoch", false, "print the proof of the epoch whose key signed the checkpoint instead")
	return cmd
}

// prove looks for the chunk in the log of the spool, and in those before it.
func prove(cmd *cobra.Command, dir, chunk string, epoch bool) (tlog.Proof, error) {
	logs, err := filepath.Glob(filepath.Join(dir, "retired", "*"))
	if err != nil {
		return tlog.Proof{}, err
	}
	var errs []error
	for _, log := range append([]string{filepath.Join(dir, "log")}, logs...) {
		p, err := verify.Prove(cmd.Context(), os.DirFS(log), chunk, epoch)
		if err == nil {
			return p, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", log, err))
	}
	return tlog.Proof{}, errors.Join(errs...)
}
