package tlog

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"probity/evidence"
)

// Live follows what the chunks of an epoch say of the runs that are live: what a
// heartbeat's root is over. The writer and the verifier use the same Live, so a
// heartbeat over other lines differs. The zero value is ready to use.
type Live struct {
	runs map[string][sha256.Size]byte // of the latest coverage line
}

// Restart forgets all runs: an agent that starts knows of none. A rotation of the
// checkpoint key is no start.
func (v *Live) Restart() { clear(v.runs) }

// Change is what one line means to a Live. The zero value changes nothing.
type Change struct {
	RunID    string
	Live     bool // else the run is not live any more
	Coverage [sha256.Size]byte
}

// ChangeOf returns what a line with these canonical bytes changes.
func ChangeOf(l evidence.Line, line []byte) Change {
	switch l := l.(type) {
	case *evidence.Coverage:
		if l.Final {
			return Change{RunID: l.RunID}
		}
		return Change{RunID: l.RunID, Live: true, Coverage: sha256.Sum256(line)}
	case *evidence.Gap:
		if l.Scope == evidence.ScopeRun && l.Reason == evidence.GapAgentDown {
			return Change{RunID: l.RunID} // somebody else's, from before
		}
	}
	return Change{}
}

// See takes a line of a chunk in the log, in order, with its canonical bytes.
func (v *Live) See(l evidence.Line, line []byte) { v.Apply(ChangeOf(l, line)) }

// Apply takes what a line changes.
func (v *Live) Apply(c Change) {
	switch {
	case c.RunID == "":
	case c.Live:
		if v.runs == nil {
			v.runs = map[string][sha256.Size]byte{}
		}
		v.runs[strings.Clone(c.RunID)] = c.Coverage
	default:
		delete(v.runs, c.RunID)
	}
}

// Root returns how many runs are live, and the RFC 6962 hash over one item for
// each, in order of their ids: "RUNID SHA256\n", the SHA-256 in hex of the run's
// latest coverage line without its newline.
func (v *Live) Root() (runs uint64, root Hash) {
	if len(v.runs) == 0 {
		return 0, Empty
	}
	var items []Hash
	for _, id := range slices.Sorted(maps.Keys(v.runs)) {
		items = append(items, tlog.RecordHash(fmt.Appendf(nil, "%s %x\n", id, v.runs[id])))
	}
	return uint64(len(items)), rfc6962(items)
}
