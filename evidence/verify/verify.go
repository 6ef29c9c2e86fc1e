// Package verify checks evidence offline: chunk files against a node's public
// key.
//
// In: paths of spools or chunk files, and the key. Out: a [Report] with every
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
// The package trusts the key that it is given and nothing else; a file may be
// anything and of any size. It is not a control against who removes the newest
// chunks together with the newest leaves and puts an older checkpoint in place:
// only somebody who has seen a later one knows. Nor is it a control against a node
// that lied before it signed.
package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"probity/evidence"
	"probity/evidence/sign"
)

// Options of Path. The zero value checks and writes nothing.
type Options struct {
	// Bundles, if set, is a directory that gets NAME.sigstore.json and
	// NAME.blob of every sound chunk.
	Bundles string
	// Kept are states of logs that somebody kept: a shipper, a witness, an earlier
	// verification. What a log in a spool says must have grown out of them. One of
	// a log that is in no spool is a finding.
	Kept []Kept
	// Workers is how many chunks are checked at once; GOMAXPROCS if 0.
	Workers int
}

// Kind names what is wrong, for programs.
type Kind string

// The kinds of finding.
const (
	Malformed   Kind = "malformed"   // not the one spelling of a chunk, or against the format's rules
	Truncated   Kind = "truncated"   // cut off, or something was added behind it
	NewerFormat Kind = "newerFormat" // made by a newer version: somebody else has to judge it
	KeyUnknown  Kind = "keyUnknown"  // signed with a key that is not trusted
	Forged      Kind = "forged"      // a signature that the key did not make
	Modified    Kind = "modified"    // not the bytes that were signed, or that are in the log
	Misplaced   Kind = "misplaced"   // under a name that is not its own
	Duplicated  Kind = "duplicated"  // the same chunk twice
	Reordered   Kind = "reordered"   // not at the place of the log that it names
	RolledBack  Kind = "rolledBack"  // not the log that somebody has seen: shorter, or with another history
	Removed     Kind = "removed"     // in the log, not here, and the node does not say that it removed it
	NotInLog    Kind = "notInLog"    // not in the log that it names
	LogMissing  Kind = "logMissing"  // the log that a chunk names is not here
	LogDamaged  Kind = "logDamaged"  // a log that is not what its checkpoint says, or whose leaves do not follow from one another
	Heartbeat   Kind = "heartbeat"   // a heartbeat over other coverage lines than those that are here
	WrongNode   Kind = "wrongNode"   // signed with a trusted key, and it is another node's
	KeyNotValid Kind = "keyNotValid" // signed, as it says, when the key did not speak yet or not any more
	KeyRevoked  Kind = "keyRevoked"  // signed, as it says, after the key was revoked
	Unanchored  Kind = "unanchored"  // others have the key, and no kept state of the log shows that it is from before
)

// Kinds lists them all.
var Kinds = []Kind{Malformed, Truncated, NewerFormat, KeyUnknown, Forged, Modified, Misplaced, Duplicated, Reordered, RolledBack, Removed, NotInLog, LogMissing, LogDamaged, Heartbeat, WrongNode, KeyNotValid, KeyRevoked, Unanchored}

// Finding is one thing that is wrong.
type Finding struct {
	Kind   Kind   `json:"kind"`
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"` // from 1; absent where the whole file is meant
	Reason string `json:"reason"`
}

func (f Finding) String() string {
	if f.Line == 0 {
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
	// names one, or LogNotChecked where files were named themselves.
	Log  string      `json:"log"`
	Logs []LogReport `json:"logs,omitempty"`
	// Followed are the keys that were trusted because a trusted one signed that they
	// come after it.
	Followed []Followed `json:"followed,omitempty"`
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

// Path checks spools (directories with ready/ in them) and chunk files. The
// report is valid also with an error, which wraps ErrLook and names everything
// that could not be looked at: a path that is missing or unreadable, a directory
// that is no spool, a spool without a chunk. Anything wrong inside a readable file
// is a finding instead. Whom it trusts is one key ([sign.PublicKey]), or a fleet's
// ([trust.File]), which says also for which node and when.
func Path(ctx context.Context, paths []string, keys sign.Keys, opts Options) (Report, error) {
	rep := Report{Log: LogNotChecked, Findings: []Finding{}}
	key := ringOf(keys)
	key.links = func() []evidence.Succession { return successionsIn(ctx, paths) }
	if k := key.alone(); k != nil {
		rep.KeyID = k.KeyID()
	}
	files, found, err := find(paths)
	rep.Findings = append(rep.Findings, found...)
	if opts.Workers <= 0 {
		opts.Workers = runtime.GOMAXPROCS(0)
	}

	var (
		mu   sync.Mutex
		next int
		all  = newFold()
		wg   sync.WaitGroup
		errs = []error{err}
	)
	for range min(opts.Workers, len(files)) {
		wg.Go(func() {
			var w worker
			for ctx.Err() == nil {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i >= len(files) {
					break
				}
				res, err := w.check(files[i], key, opts, all)
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				}
				if res.looked {
					rep.Files++
				}
				rep.Findings = append(rep.Findings, res.findings...)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		errs = append(errs, fmt.Errorf("%w: %w", ErrLook, err))
	}
	if len(files) > 0 && rep.Files == 0 && errors.Join(errs...) == nil {
		// A shipper took them all meanwhile. Nothing is wrong, but nothing was looked at either.
		errs = append(errs, fmt.Errorf("%w: %d chunks, all removed while we looked", ErrLook, len(files)))
	}
	rep.Findings = append(rep.Findings, all.repeated()...)
	if err := rep.checkLogs(ctx, paths, all.inLog, key, opts); err != nil {
		errs = append(errs, err)
	}
	all.fill(&rep)
	rep.Followed = key.followed()
	slices.SortFunc(rep.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Reason, b.Reason))
	})
	slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return rep, errors.Join(errs...)
}

// checkLogs checks the logs of the paths that are spools.
func (r *Report) checkLogs(ctx context.Context, paths []string, chunks map[string]map[string]inLog, key *ring, opts Options) error {
	var errs []error
	before := len(r.Findings)
	spools := 0
	for _, p := range paths {
		if st, err := os.Stat(p); err != nil || !st.IsDir() || slices.ContainsFunc(paths[:slices.Index(paths, p)], func(q string) bool { return q == p }) {
			continue
		}
		spools++
		logs, found, err := checkLogs(ctx, p, chunks[filepath.Clean(p)], key, opts.Kept)
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
	switch {
	case spools == 0 && len(opts.Kept) == 0:
	case len(r.Findings) > before:
		r.Log = LogUnsound
	case len(r.Logs) == 0:
		r.Log = LogNone
	default:
		r.Log = LogSound
	}
	return errors.Join(errs...)
}

type result struct {
	looked   bool
	findings []Finding
}

// worker checks one file after another. Nothing of a file is kept, so that the next
// one is read into the same memory.
type worker struct {
	buf   []byte
	lines evidence.Decoder
}

// check reads and checks one file and folds it into all if it is sound.
func (w *worker) check(f file, key *ring, opts Options, all *fold) (result, error) {
	data, err := f.read(&w.buf)
	switch {
	case errors.Is(err, errVanished):
		return result{}, nil
	case errors.Is(err, errNotChunk):
		return result{looked: true, findings: []Finding{{Kind: Malformed, File: f.path, Reason: err.Error()}}}, nil
	case err != nil:
		return result{}, fmt.Errorf("%w: %w", ErrLook, err)
	}
	var kept []Kept
	if f.rel != "" { // of a file that is named itself no log is checked
		kept = opts.Kept
	}
	defer w.lines.Reset()
	c, findings := checkBytes(f.path, data, key, kept, &w.lines)
	if c != nil {
		findings = append(findings, f.named(c)...)
	}
	res := result{looked: true, findings: findings}
	if len(findings) > 0 {
		all.found(f, nil)
		return res, nil
	}
	all.found(f, c)
	if opts.Bundles == "" {
		return res, nil
	}
	if err := WriteBundle(opts.Bundles, c); err != nil {
		return res, fmt.Errorf("%w: bundle of %s: %w", ErrLook, f.path, err)
	}
	return res, nil
}
