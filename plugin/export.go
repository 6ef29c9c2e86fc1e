package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"probity/evidence"
	"probity/evidence/export"
	"probity/evidence/verify"
)

func (c *cli) export() *cobra.Command {
	var format, keyFile, trustFile, dir string
	cmd := &cobra.Command{
		Use: "export SPOOL|ARCHIVE|FILE|-... --format " + export.Format + " --out DIR --key FILE|--trust FILE", Short: "Write verified evidence in another format",
		Long: `Export verifies evidence as probity verify does, offline, and writes what was
executed in another program's format. If anything is not sound, it says what, and
writes nothing.

The format ` + export.Format + ` is StellaOps' runtime evidence, version 1
(NDJSON): one record for the first hit of each site and of each entry of a set,
with the process that it was seen in. It has no word for what was not executed, for
gaps and for counts: that a function is not in the files does not mean that it did
not run. What has no place in the format is left out and counted by reason. What
becomes what is in docs/export.md.

It exits with 0 if the files were written, with 1 if anything is not sound, and with 3
if it could not look or write.`,
		Args: files("spool, archive or chunk file"),
		RunE: func(cmd *cobra.Command, paths []string) error {
			switch {
			case format != export.Format:
				return exitError{exitUsage, fmt.Errorf("export: --format %.64q: want %s", format, export.Format)}
			case dir == "":
				return exitError{exitUsage, errors.New("export: --out DIR is required")}
			case (keyFile == "") == (trustFile == ""):
				return exitError{exitUsage, errors.New("export: --key FILE (the node's public key) or --trust FILE (a fleet's) is required, one of the two")}
			}
			keys, err := readKeys(keyFile, trustFile)
			if err != nil {
				return blind(err)
			}
			var e export.StellaOps
			rep, err := verify.Path(cmd.Context(), paths, keys, verify.Options{Stdin: cmd.InOrStdin(), Chunk: e.Add})
			if code := verify.ExitCode(rep, err); code != exitSound {
				for _, f := range rep.Findings {
					fmt.Fprintln(c.errOut, verify.Printable(f.String()))
				}
				if code == exitFinding {
					return exitError{code, errors.Join(err, errors.New("export: not everything is sound, nothing was written"))}
				}
				return exitError{code, fmt.Errorf("export: nothing was written: %w", err)}
			}
			out, err := e.Write(dir)
			if err != nil {
				return blind(fmt.Errorf("export: %w", err))
			}
			out.Verified(rep)
			return c.print(out, func(w io.Writer) error { return writeExported(w, out) })
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "the format: "+export.Format)
	cmd.Flags().StringVar(&dir, "out", "", "write the files to this `directory`, which must be empty if it is there")
	cmd.Flags().StringVar(&keyFile, "key", "", "the node's public key, PEM `file`")
	cmd.Flags().StringVar(&trustFile, "trust", "", "the keys of a fleet, trust `file` (docs/keys.md)")
	return cmd
}

func writeExported(w io.Writer, r export.Report) error {
	for _, f := range r.Files {
		fmt.Fprintf(w, "%s: node %s, boot %s, %d records\n", f.Name, verify.Printable(f.Node), verify.Printable(f.BootID), f.Records)
	}
	for _, typ := range slices.Sorted(maps.Keys(r.Types)) {
		fmt.Fprintf(w, "%s: %d\n", typ, r.Types[typ])
	}
	for _, why := range slices.Sorted(maps.Keys(r.LeftOut)) {
		fmt.Fprintf(w, "left out, %s: %d\n", why, r.LeftOut[why])
	}
	for _, state := range evidence.States {
		if n := r.States[state]; n > 0 && state != evidence.Hit {
			fmt.Fprintf(w, "left out, the format has no word for %s: %d\n", state, n)
		}
	}
	if r.Gaps > 0 {
		fmt.Fprintf(w, "left out, the format has no word for gaps: %d\n", r.Gaps)
	}
	if r.Removed > 0 {
		fmt.Fprintf(w, "not there, chunks that the node removed: %d\n", r.Removed)
	}
	if r.Holes > 0 {
		fmt.Fprintf(w, "not there, ranges of sequence numbers: %d\n", r.Holes)
	}
	_, err := fmt.Fprintf(w, "%d records of %d sites and entries that were hit, in %d files; log: %s\n", r.Records, r.States[evidence.Hit], len(r.Files), r.Log)
	return err
}
