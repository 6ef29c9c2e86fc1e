package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"probity/evidence/sign"
	"probity/evidence/tlog"
	"probity/evidence/trust"
	"probity/evidence/verify"
)

func (c *cli) verify() *cobra.Command {
	var keyFile, trustFile, bundles string
	var checkpoints, images, proofs []string
	var witnesses, since string
	var complete bool
	cmd := &cobra.Command{
		Use: "verify SPOOL|ARCHIVE|FILE|-... --key FILE|--trust FILE", Short: "Verify evidence and say what it says",
		Long: `Verify recomputes every digest and signature, offline, and prints one row per
site of each container. Of a spool it checks the node's log too: that nothing in
it was changed, exchanged or removed. Whom to trust is one node's public key, or a
trust file with those of many nodes, for which node each speaks and when, and which
was revoked (docs/keys.md). An archive is a spool in a tar file, which gzip may have
packed; - is standard input, with an archive, or with chunks one behind another.
The page docs/trust.md says what is promised, and what each option adds. That the newest part of a log was cut off
shows only against a checkpoint of it that somebody kept: see --checkpoint.

It exits with 0 if all is sound, with 1 if anything is wrong with a file that it
could read, and with 3 if it could not look.`,
		Args: files("spool, archive or chunk file"),
		RunE: func(cmd *cobra.Command, paths []string) error {
			if (keyFile == "") == (trustFile == "") {
				return exitError{exitUsage, errors.New("verify: --key FILE (the node's public key) or --trust FILE (a fleet's) is required, one of the two")}
			}
			keys, err := readKeys(keyFile, trustFile)
			if err != nil {
				return blind(err)
			}
			if bundles != "" {
				if err := os.MkdirAll(bundles, 0o755); err != nil {
					return blind(fmt.Errorf("make the bundles' directory: %w", err))
				}
			}
			opts := verify.Options{Bundles: bundles, Images: images, RequireComplete: complete, Stdin: cmd.InOrStdin()}
			if since != "" {
				if opts.Since, err = sinceWhen(since, time.Now()); err != nil {
					return exitError{exitUsage, err}
				}
			}
			if witnesses != "" {
				b, err := readUpTo(witnesses, maxWitnessFile)
				if err != nil {
					return blind(fmt.Errorf("read the witnesses: %w", err))
				}
				if opts.Witnesses, err = verify.ParseWitnesses(b); err != nil {
					return blind(fmt.Errorf("read the witnesses %s: %w", witnesses, err))
				}
			}
			for _, name := range checkpoints {
				b, err := readCheckpoint(name)
				if err != nil {
					return blind(fmt.Errorf("read the checkpoint: %w", err))
				}
				kept, err := verify.ParseKept(name, b)
				if err != nil {
					return blind(fmt.Errorf("read the checkpoint %s: %w", name, err))
				}
				opts.Kept = append(opts.Kept, kept)
			}
			for _, name := range proofs {
				b, err := readUpTo(name, tlog.MaxCheckpointBytes)
				if err != nil {
					return blind(fmt.Errorf("read the proof: %w", err))
				}
				proof, err := verify.ParseProof(name, b)
				if err != nil {
					return blind(fmt.Errorf("read the proof %s: %w", name, err))
				}
				opts.Proofs = append(opts.Proofs, proof)
			}
			rep, err := verify.Path(cmd.Context(), paths, keys, opts)
			if perr := c.print(rep, func(w io.Writer) error { return rep.WriteTable(w) }); perr != nil {
				return blind(perr)
			}
			if code := verify.ExitCode(rep, err); code != exitSound {
				return exitError{code, err}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&keyFile, "key", "", "the node's public key, PEM `file`")
	cmd.Flags().StringVar(&trustFile, "trust", "", "the keys of a fleet, trust `file` (docs/keys.md)")
	cmd.Flags().StringArrayVar(&checkpoints, "checkpoint", nil, "a checkpoint of the node's log (SPOOL/log/checkpoint as it was then) or an acknowledgement, which somebody kept: the log must have grown out of it. May be given more than once")
	cmd.Flags().StringArrayVar(&proofs, "proof", nil, "what evidence proof printed, with and without --epoch: the chunk files that are named must be in the node's log, which need not be here. May be given more than once")
	cmd.Flags().StringVar(&witnesses, "witness", "", "the verifier keys of witnesses, one a line, in this `file`: one of them must have cosigned a state of each log, its own checkpoint or one of --checkpoint (C2SP tlog-cosignature)")
	cmd.Flags().StringVar(&since, "since", "", "list only what did not end before this `time`, as 2026-01-02T15:04:05Z, or that long ago, as 36h; everything is checked all the same")
	cmd.Flags().StringArrayVar(&images, "image", nil, "list only containers of the image with this manifest `digest`, or with this name, which is no identity. May be given more than once")
	cmd.Flags().BoolVar(&complete, "require-complete", false, "make a finding of whatever is missing, was not covered or not searched in what is listed")
	cmd.Flags().StringVar(&bundles, "bundles", "", "write NAME.sigstore.json and NAME.blob of each sound chunk to this `directory`")
	return cmd
}

// maxWitnessFile bounds a file of witnesses.
const maxWitnessFile = 64 << 10

// sinceWhen reads a time, or how long ago it was.
func sinceWhen(s string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return time.Time{}, fmt.Errorf("verify: --since %.64q: want a time, as 2026-01-02T15:04:05Z, or how long ago, as 36h", s)
	}
	return now.Add(-d), nil
}

// readKeys reads whichever of the two was named.
func readKeys(keyFile, trustFile string) (sign.Keys, error) {
	if trustFile != "" {
		b, err := readUpTo(trustFile, trust.MaxBytes)
		if err != nil {
			return nil, fmt.Errorf("read the trust file: %w", err)
		}
		f, err := trust.Parse(b)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", trustFile, err)
		}
		return f, nil
	}
	b, err := readUpTo(keyFile, sign.MaxKeyFile)
	if err != nil {
		return nil, fmt.Errorf("read the key: %w", err)
	}
	key, err := sign.LoadPublic(b)
	if err != nil {
		return nil, fmt.Errorf("read the key %s: %w", keyFile, err)
	}
	return key, nil
}

// readCheckpoint reads a signed note that somebody kept. In what `evidence ack --received -o json` printed
// the acknowledgement is one member.
func readCheckpoint(name string) ([]byte, error) {
	b, err := readUpTo(name, tlog.MaxCheckpointBytes)
	var printed struct{ Ack json.RawMessage }
	if err == nil && json.Unmarshal(b, &printed) == nil && len(printed.Ack) > 0 {
		return printed.Ack, nil
	}
	return b, err
}

func readUpTo(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("%s: more than %d bytes", name, most)
	}
	return b, nil
}
