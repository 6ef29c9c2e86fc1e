// Package verify checks evidence offline: chunk files against a node's public
// key.
//
// In: spools, archives of them, chunk files or a stream of chunks, and whom to trust. Out: a [Report] with every
// finding (file, line, reason), and the rows that the sound chunks say. All is
// computed again from the bytes: the chunk's digest, the statement with the
// writer's own Tally, the signature over exactly the payload bytes that are
// expected. What is not sound adds nothing to the rows.
//
// Of a spool the node's log is checked too: that it is what its checkpoint says,
// that its leaves follow from one another, and that it and the chunks agree, so
// that a chunk that was changed, exchanged, moved or removed shows. Of files that
// are named one by one it is not, and the report says so.
//
// The package trusts the keys that it is given and nothing else; a file may be
// anything and of any size, and nothing is ever unpacked to disk. It is not a control against who removes the newest
// chunks together with the newest leaves and puts an older checkpoint in place:
// only somebody who has seen a later one knows. Nor is it a control against a node
// that lied before it signed.
package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"

	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/tlog"
)

// Options of Path. The zero value checks and writes nothing.
type Options struct {
	// Bundles, if set, is a directory that gets NAME.sigstore.json and
	// NAME.blob of every sound chunk.
	Bundles string
	// Chunk, if set, is called with every sound chunk, in no order, from one goroutine
	// at a time. The chunk is the caller's until it returns. Whether all is sound is
	// known only when Path returns.
	Chunk func(*Chunk)
	// Kept are states of logs that somebody kept: a shipper, a witness, an earlier
	// verification. What a log in a spool says must have grown out of them. One of
	// a log that is in no spool is a finding.
	Kept []Kept
	// Witnesses, if there are any: each log must have a state that one of them
	// cosigned, among Kept or as its own checkpoint.
	Witnesses []*tlog.Witness
	// Proofs show that chunks which were named themselves are in their node's log: one
	// of each of them, and of each epoch that signed a checkpoint that is in one. A chunk
	// that was named and has none is a finding.
	Proofs []Proof
	// Since leaves out of the report what ended before; it is checked all the same.
	Since time.Time
	// Images leaves out of the report what is not about containers of one of these
	// images, each a manifest digest, or a name as the runtime was told it.
	Images []string
	// RequireComplete makes a finding of everything for which what is reported may
	// not be all that happened: see Incomplete.
	RequireComplete bool
	// Stdin is what the path "-" stands for: an archive, or chunks one behind
	// another.
	Stdin io.Reader
	// Workers is how many chunks are checked at once; GOMAXPROCS if 0.
	Workers int
}

// Kind names what is wrong, for programs.
type Kind string

// The kinds of finding.
const (
	Malformed    Kind = "malformed"    // not the one spelling of a chunk, or against the format's rules
	Truncated    Kind = "truncated"    // cut off, or something was added behind it
	NewerFormat  Kind = "newerFormat"  // made by a newer version: somebody else has to judge it
	KeyUnknown   Kind = "keyUnknown"   // signed with a key that is not trusted
	Forged       Kind = "forged"       // a signature that the key did not make
	Modified     Kind = "modified"     // not the bytes that were signed, or that are in the log
	Misplaced    Kind = "misplaced"    // under a name that is not its own
	Duplicated   Kind = "duplicated"   // the same chunk twice
	Reordered    Kind = "reordered"    // not at the place of the log that it names
	RolledBack   Kind = "rolledBack"   // not the log that somebody has seen: shorter, or with another history
	Removed      Kind = "removed"      // in the log, not here, and the node does not say that it removed it
	NotInLog     Kind = "notInLog"     // not in the log that it names
	LogMissing   Kind = "logMissing"   // the log that a chunk names is not here
	LogDamaged   Kind = "logDamaged"   // a log that is not what its checkpoint says, or whose leaves do not follow from one another
	Heartbeat    Kind = "heartbeat"    // a heartbeat over other coverage lines than those that are here
	WrongNode    Kind = "wrongNode"    // signed with a trusted key, and it is another node's
	KeyNotValid  Kind = "keyNotValid"  // signed, as it says, when the key did not speak yet or not any more
	KeyRevoked   Kind = "keyRevoked"   // signed, as it says, after the key was revoked
	Unwitnessed  Kind = "unwitnessed"  // no witness that was named has cosigned a state of the log
	Incomplete   Kind = "incomplete"   // sound, and it was asked that it is complete too
	BadArchive   Kind = "archive"      // an archive that is none, is past a bound, or has what no spool has
	HitTakenBack Kind = "hitTakenBack" // a later line of the same agent does not say what an earlier one does: the site was executed
	Unanchored   Kind = "unanchored"   // others have the key, and no kept state of the log shows that it is from before
)

// Kinds lists them all.
var Kinds = []Kind{Malformed, Truncated, NewerFormat, KeyUnknown, Forged, Modified, Misplaced, Duplicated, Reordered, RolledBack, Removed, NotInLog, LogMissing, LogDamaged, Heartbeat, WrongNode, KeyNotValid, KeyRevoked, Unanchored, HitTakenBack, Unwitnessed, Incomplete, BadArchive}

// Finding is one thing that is wrong.
type Finding struct {
	Kind   Kind   `json:"kind"`
	File   string `json:"file,omitempty"` // absent where the report as a whole is meant
	Line   int    `json:"line,omitempty"` // from 1; absent where the whole file is meant
	Reason string `json:"reason"`
}

func (f Finding) String() string {
	switch {
	case f.File == "":
		return fmt.Sprintf("%s: %s", f.Kind, f.Reason)
	case f.Line == 0:
		return fmt.Sprintf("%s: %s: %s", f.File, f.Kind, f.Reason)
	}
	return fmt.Sprintf("%s:%d: %s: %s", f.File, f.Line, f.Kind, f.Reason)
}

// Report is what Path found.
type Report struct {
	KeyID    string    `json:"keyId,omitempty"` // the one that is trusted; absent with a trust file
	Files    int       `json:"files"`           // looked at
	Chunks   int       `json:"chunks"`          // sound
	Runs     int       `json:"runs"`            // of sound chunks
	Lines    int       `json:"lines"`           // between header and envelope, of sound chunks
	Findings []Finding `json:"findings"`
	Rows     []Row     `json:"rows"`
	Gaps     []GapRow  `json:"gaps"`
	Holes    []Hole    `json:"holes"` // in the sequence numbers: no finding, see Hole
	// Log is LogSound, LogUnsound, LogNone where a spool has none and no chunk
	// names one, LogProven where files were named themselves and Options.Proofs show
	// them in it, or LogNotChecked where none do, or one could not be looked at.
	Log  string      `json:"log"`
	Logs []LogReport `json:"logs,omitempty"`
	// Followed are the keys that were trusted because a trusted one signed that they
	// come after it.
	Followed []Followed `json:"followed,omitempty"`
	// Since and Images say what Rows and Gaps were asked to be about.
	Since  evidence.Time `json:"since,omitzero"`
	Images []string      `json:"images,omitempty"`
}

// Hole is a range of sequence numbers that no chunk in a spool has although later
// ones are there. A shipper that removes what it delivered leaves holes, and an
// agent that is killed leaves one of at most 64 numbers; somebody who deletes
// evidence does too. A chunk that is there and not sound is a finding, no hole.
type Hole struct {
	Instance string `json:"instance"`
	From     uint64 `json:"from,string"`
	To       uint64 `json:"to,string"`
}

// Sound reports whether nothing is wrong with what was looked at.
func (r Report) Sound() bool { return len(r.Findings) == 0 }

// ErrLook is wrapped by an error of Path: something could not be looked at.
var ErrLook = errors.New("could not look")

// ExitCode is the command line's: 0 sound; 1 a finding, which wins; 3 something
// could not be looked at.
func ExitCode(r Report, err error) int {
	switch {
	case !r.Sound():
		return 1
	case err != nil:
		return 3
	}
	return 0
}

// Path checks spools (directories with ready/ in them), archives of them (tar, or
// tar in gzip), and chunk files; "-" is opts.Stdin. The
// report is valid also with an error, which wraps ErrLook and names everything
// that could not be looked at: a path that is missing or unreadable, a directory
// that is no spool, a spool without a chunk. Anything wrong inside a readable file
// is a finding instead. Whom it trusts is one key ([sign.PublicKey]), or a fleet's
// ([trust.File]), which says also for which node and when.
func Path(ctx context.Context, paths []string, keys sign.Keys, opts Options) (Report, error) {
	rep := Report{Log: LogNotChecked, Findings: []Finding{}}
	key := ringOf(keys)
	key.links = func() []evidence.Succession {
		return append(successionsIn(ctx, paths), successionsOfProofs(opts.Proofs)...)
	}
	if k := key.alone(); k != nil {
		rep.KeyID = k.KeyID()
	}
	in, err := find(paths)
	rep.Findings = append(rep.Findings, in.found...)
	if opts.Workers <= 0 {
		opts.Workers = runtime.GOMAXPROCS(0)
	}
	c := newCrew(key, opts)
	var wg sync.WaitGroup
	for range opts.Workers {
		wg.Go(c.work)
	}
	trees, listErr := c.list(ctx, in)
	close(c.jobs)
	wg.Wait()
	errs := append(c.errs, err, listErr)
	if err := ctx.Err(); err != nil {
		errs = append(errs, fmt.Errorf("%w: %w", ErrLook, err))
	}
	rep.Files = c.files
	rep.Findings = append(rep.Findings, c.findings...)
	if len(in.files) > 0 && rep.Files == 0 && errors.Join(errs...) == nil {
		// A shipper took them all meanwhile. Nothing is wrong, but nothing was looked at either.
		errs = append(errs, fmt.Errorf("%w: %d chunks, all removed while we looked", ErrLook, len(in.files)))
	}
	rep.Findings = append(rep.Findings, c.all.repeated()...)
	if err := rep.checkLogs(ctx, append(in.spools, trees...), c); err != nil {
		errs = append(errs, err)
	}
	rep.checkProofs(c)
	rep.Files = c.files
	c.all.fill(&rep, opts.Workers)
	rep.Followed = key.followed()
	rep.narrow(c.all, opts)
	if opts.RequireComplete {
		rep.Findings = append(rep.Findings, rep.incompletes(c.all)...)
	}
	slices.SortFunc(rep.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Reason, b.Reason))
	})
	slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return rep, errors.Join(errs...)
}

// checkLogs checks the logs of the spools.
func (r *Report) checkLogs(ctx context.Context, spools []spool, c *crew) error {
	var errs []error
	before, opts := len(r.Findings), c.opts
	for _, s := range spools {
		logs, found, err := s.checkLogs(ctx, c, r.Findings)
		r.Logs = append(r.Logs, logs...)
		r.Findings = append(r.Findings, found...)
		if err != nil {
			errs = append(errs, err)
		}
	}
	for _, k := range opts.Kept {
		if !slices.ContainsFunc(r.Logs, func(l LogReport) bool { return l.Origin == k.Origin }) {
			r.Findings = append(r.Findings, Finding{Kind: LogMissing, File: k.Name, Reason: fmt.Sprintf("its log, %.200s, is in none of the spools", k.Origin)})
		}
	}
	if len(opts.Witnesses) > 0 && len(r.Logs) == 0 {
		r.Findings = append(r.Findings, Finding{Kind: Unwitnessed, Reason: "no log was checked, so there is nothing that a witness could speak for"})
	}
	switch {
	case len(spools) == 0 && len(opts.Kept) == 0:
	case len(r.Findings) > before:
		r.Log = LogUnsound
	case len(errs) > 0: // it stays what was not checked
	case len(r.Logs) == 0:
		r.Log = LogNone
	default:
		r.Log = LogSound
	}
	return errors.Join(errs...)
}
