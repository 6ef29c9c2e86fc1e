package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"probity/agent"
	"probity/evidence"
	"probity/evidence/spool"
)

func (c *cli) pending() *cobra.Command {
	var consumer string
	cmd := &cobra.Command{
		Use: "pending SPOOL --consumer NAME", Short: "List the chunks that a consumer has not acknowledged",
		Long: `Pending lists the chunks that a consumer has not acknowledged yet, in the order
of the node's log. Deliver them in this order; a chunk may be delivered twice, and
its log, leaf and a line's number in it tell every line from all others.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
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
	cmd.Flags().StringVar(&consumer, "consumer", "", "the consumer's `name`: lower-case letters, digits, '.', '_' and '-' (required)")
	return cmd
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
	var consumer string
	cmd := &cobra.Command{
		Use: "ack SPOOL [CHUNK] --consumer NAME", Short: "Say that a consumer has everything up to a chunk",
		Long: `Ack writes SPOOL/ack/NAME.json: the consumer has every chunk up to and with CHUNK,
or all that there are. It prints what it wrote. Keep that where the node cannot
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
	return cmd
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
