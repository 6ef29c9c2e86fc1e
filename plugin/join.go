package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"probity/evidence/delivery"
	"probity/evidence/verify"
)

func (c *cli) join() *cobra.Command {
	return &cobra.Command{
		Use: "join DIR FILE...", Short: "Put chunks together again from the lines that a shipper delivered",
		Long: `Join reads what a log shipper delivered (FILE, or - for standard input): JSON objects,
one a line, each with a line of a chunk, the file's name and the line's offset, in any
order and as often as the shipper liked. It writes the chunks byte for byte to
DIR/INSTANCE/ready. What is not whole yet waits in DIR/INSTANCE/partial for the next
delivery. No signature is checked: see probity verify, and docs/shipping.md.

It exits with 1 if anything that was delivered is wrong, and with 3 if it could not
look. A chunk of which lines are missing is listed and is no finding.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			rep, err := joined(cmd, args[0], args[1:])
			if perr := c.print(rep, func(w io.Writer) error { return writeJoined(w, rep) }); err == nil {
				err = perr
			}
			switch {
			case len(rep.Findings) > 0:
				return exitError{exitFinding, err}
			case err != nil:
				return blind(err)
			}
			return nil
		},
	}
}

func joined(cmd *cobra.Command, dir string, files []string) (rep delivery.Report, err error) {
	j, err := delivery.Open(dir)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	for _, name := range files {
		if err = joinFile(cmd, j, name); err != nil {
			break
		}
	}
	rep, rerr := j.Report()
	return rep, errors.Join(err, rerr)
}

func joinFile(cmd *cobra.Command, j *delivery.Joiner, name string) error {
	if name == "-" {
		return j.Read(cmd.Context(), "standard input", cmd.InOrStdin())
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return j.Read(cmd.Context(), name, f)
}

func (c *cli) received() *cobra.Command {
	return &cobra.Command{
		Use: "received DIR", Short: "List, at the far side, the chunks that are whole",
		Long: `Received lists the chunks that probity evidence join has put together in DIR, each
with the digest of the bytes that are there now: one JSON object a line, whatever -o
says. On the node, probity evidence ack --received takes it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			lines := json.NewEncoder(c.out)
			return blind(delivery.Whole(cmd.Context(), args[0], func(k delivery.Chunk) error { return lines.Encode(k) }))
		},
	}
}

// receivedAt reads what a far side says that it has: a list, or the directory itself.
func receivedAt(cmd *cobra.Command, name string, want func(chunk string) bool) (map[string]delivery.Chunk, error) {
	if name == "-" {
		return delivery.ReadReceived(cmd.InOrStdin(), want)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return delivery.ReadReceived(f, want)
	}
	got := map[string]delivery.Chunk{}
	err = delivery.Whole(cmd.Context(), name, func(k delivery.Chunk) error {
		if want(k.Chunk) {
			got[k.Chunk] = k
		}
		return nil
	})
	return got, err
}

func writeJoined(w io.Writer, r delivery.Report) error {
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s:%d: %s\n", verify.Printable(f.Source), f.Line, verify.Printable(f.Reason))
	}
	if r.More > 0 {
		fmt.Fprintf(w, "and %d more findings\n", r.More)
	}
	for _, p := range r.Partial {
		fmt.Fprintf(w, "%s: lines are missing\n", verify.Printable(p))
	}
	_, err := fmt.Fprintf(w, "%d chunks are whole now, %d are partial; %d lines, %d of them there already; %d records of other files\n", len(r.Chunks), len(r.Partial), r.Lines, r.Duplicates, r.Others)
	return err
}
