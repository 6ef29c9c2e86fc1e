package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"probity/agent"
	"probity/evidence"
	"probity/evidence/spool"
	"probity/evidence/verify"
)

func (c *cli) pending() *cobra.Command {
	var consumer string
	cmd := &cobra.Command{
		Use: "pending SPOOL [--consumer NAME]", Short: "List the chunks that a consumer has not acknowledged",
		Long: `Pending lists the chunks that a consumer has not acknowledged yet, in the order
of the node's log. Deliver them in this order; a chunk may be delivered twice, and
its log, leaf and a line's number in it tell every line from all others.

Without --consumer it lists the consumers, and how much each of them has not
acknowledged.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if consumer == "" {
				return c.consumers(cmd.Context(), args[0])
			}
			r, err := consumerOf(args[0], consumer)
			if err != nil {
				return err
			}
			items, err := r.Pending(cmd.Context())
			if err != nil {
				return blind(err)
			}
			if items == nil {
				items = []spool.Item{}
			}
			return blind(c.print(items, func(w io.Writer) error {
				t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
				fmt.Fprintln(t, "CHUNK\tLEAF\tBYTES\tFILE")
				for _, it := range items {
					fmt.Fprintf(t, "%s\t%d\t%d\t%s\n", it.Chunk, it.Leaf, it.Bytes, it.Path)
				}
				return t.Flush()
			}))
		},
	}
	cmd.Flags().StringVar(&consumer, "consumer", "", "the consumer's `name`: lower-case letters, digits, '.', '_' and '-'; all of them without")
	return cmd
}

// consumerRow is how far one consumer is.
type consumerRow struct {
	Consumer string          `json:"consumer"`
	Origin   string          `json:"origin"`
	Size     evidence.Uint64 `json:"size"` // leaves of that log
	At       evidence.Time   `json:"at"`
	Chunks   int             `json:"pendingChunks"`
	Bytes    evidence.Uint64 `json:"pendingBytes"`
	Problem  string          `json:"problem,omitempty"`
}

func (c *cli) consumers(ctx context.Context, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return blind(err)
	}
	defer root.Close()
	acks, bad, err := verify.Acks(root)
	if err != nil {
		return blind(err)
	}
	rows := []consumerRow{}
	for _, a := range acks {
		row := consumerRow{Consumer: a.Consumer, Origin: a.Origin, Size: a.Size, At: a.At}
		r, err := spool.NewReader(dir, a.Consumer)
		if err != nil {
			return blind(err)
		}
		items, err := r.Pending(ctx)
		if err != nil {
			row.Problem = err.Error()
		}
		row.Chunks = len(items)
		for _, it := range items {
			row.Bytes += it.Bytes
		}
		rows = append(rows, row)
	}
	for file, err := range bad {
		rows = append(rows, consumerRow{Consumer: file, Problem: err.Error()})
	}
	slices.SortFunc(rows, func(a, b consumerRow) int { return strings.Compare(a.Consumer, b.Consumer) })
	return printRows(c, rows, "CONSUMER\tLOG\tHAS LEAVES\tSINCE\tPENDING\tBYTES", func(r consumerRow) (line, file, problem string) {
		return fmt.Sprintf("%s\t%s\t%d\t%s\t%d\t%d", r.Consumer, verify.Printable(r.Origin), r.Size, r.At, r.Chunks, r.Bytes), r.Consumer, r.Problem
	})
}

func consumerOf(dir, consumer string) (*spool.Reader, error) {
	if consumer == "" {
		return nil, exitError{exitUsage, errors.New("--consumer NAME is required")}
	}
	r, err := spool.NewReader(dir, consumer)
	if err != nil {
		return nil, exitError{exitUsage, err}
	}
	return r, nil
}

func (c *cli) ack() *cobra.Command {
	var consumer, received string
	cmd := &cobra.Command{
		Use: "ack SPOOL [CHUNK] --consumer NAME [--received FILE|DIR]", Short: "Say that a consumer has everything up to a chunk",
		Long: `Ack writes SPOOL/ack/NAME.json: the consumer has every chunk up to and with CHUNK,
or all that there are. With --received it is what the far side has: FILE is what
probity evidence received printed there (- is standard input), DIR is the directory
that it is printed of, where that can be reached. Acknowledged is then the longest
beginning of what is pending of which nothing is missing there; a digest that is not
the one in the node's log ends it and is a finding (exit code 1). Ack prints what it wrote. Keep that where the node cannot
change it: probity verify --checkpoint holds the node's log against it, so that
evidence that is taken back later shows.

The agent may then remove these chunks, once every consumer has them: when the
spool's quota needs the room, or at probity evidence gc.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := consumerOf(args[0], consumer)
			if err != nil {
				return err
			}
			if received != "" {
				if len(args) > 1 {
					return exitError{exitUsage, errors.New("CHUNK and --received exclude each other")}
				}
				return c.ackReceived(cmd, r, received)
			}
			a, err := acknowledge(cmd.Context(), r, args[1:])
			if err != nil {
				return blind(err)
			}
			return blind(c.print(a, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s has the first %d leaves of %s, with root %s\n", a.Consumer, a.Size, a.Origin, a.Root)
				return err
			}))
		},
	}
	cmd.Flags().StringVar(&consumer, "consumer", "", "the consumer's `name`: lower-case letters, digits, '.', '_' and '-' (required)")
	cmd.Flags().StringVar(&received, "received", "", "what the far side has: a list, or the `directory` that chunks are put together in")
	return cmd
}

func (c *cli) ackReceived(cmd *cobra.Command, r *spool.Reader, name string) error {
	items, err := r.Pending(cmd.Context())
	if err != nil {
		return blind(err)
	}
	pending := map[string]bool{}
	for _, it := range items {
		pending[it.Chunk] = true
	}
	far, err := receivedAt(cmd, name, func(chunk string) bool { return pending[chunk] })
	if err != nil {
		return blind(err)
	}
	got, err := r.AckReceived(cmd.Context(), func(chunk string) string { return far[chunk].Digest })
	if err != nil {
		return blind(err)
	}
	err = c.print(got, func(w io.Writer) error {
		fmt.Fprintf(w, "%d chunks acknowledged, %d are pending\n", got.Chunks, got.Pending)
		if got.Missing != "" {
			fmt.Fprintf(w, "the far side does not have %s\n", got.Missing)
		}
		if got.Wrong != "" {
			fmt.Fprintf(w, "%s\n", verify.Printable(got.Wrong))
		}
		if a := got.Ack; a != nil {
			fmt.Fprintf(w, "%s has the first %d leaves of %s, with root %s\n", a.Consumer, a.Size, a.Origin, a.Root)
		}
		return nil
	})
	if err == nil && got.Wrong != "" {
		return exitError{code: exitFinding}
	}
	return blind(err)
}

func acknowledge(ctx context.Context, r *spool.Reader, chunk []string) (evidence.Ack, error) {
	items, err := r.Pending(ctx)
	if err != nil {
		return evidence.Ack{}, err
	}
	if len(items) == 0 {
		return evidence.Ack{}, errors.New("nothing is pending")
	}
	last := items[len(items)-1]
	if len(chunk) == 0 {
		return r.Ack(ctx, last)
	}
	for _, it := range items {
		if it.Chunk == chunk[0] {
			return r.Ack(ctx, it)
		}
	}
	return evidence.Ack{}, fmt.Errorf("chunk %.80q is not pending: see probity evidence pending", chunk[0])
}

func (c *cli) collect() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use: "gc", Short: "Remove the chunks that every consumer has acknowledged",
		Long: `Gc asks the agent to remove every chunk that all consumers have acknowledged. The
agent signs in the node's log that it did, so that what is missing can be told
from what somebody else removed. Without any consumer nothing is removed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			got, err := agent.Collect(cmd.Context(), socket)
			if err != nil {
				return blind(err)
			}
			return blind(c.print(got, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%d chunks removed\n", got.Chunks)
				return err
			}))
		},
	}
	cmd.Flags().StringVar(&socket, "admin-socket", defaultAdmin, "the agent's administration socket")
	return cmd
}
