package verify

import (
	"fmt"
	"time"

	"probity/evidence/sign"
	"probity/evidence/trust"
)

// ring is whom one verification trusts, and for what.
type ring struct {
	keys sign.Keys
	file *trust.File // keys, where it says more than that it trusts one
}

func ringOf(keys sign.Keys) *ring {
	r := &ring{keys: keys}
	r.file, _ = keys.(*trust.File)
	return r
}

func (r *ring) key(id string) *sign.PublicKey { return r.keys.Key(id) }

// alone is the one key that is trusted, or nil.
func (r *ring) alone() *sign.PublicKey {
	k, _ := r.keys.(*sign.PublicKey)
	return k
}

// unknown says that nobody trusts a key.
func (r *ring) unknown(id string) string {
	if k := r.alone(); k != nil {
		return fmt.Sprintf("%.64s, not %s", id, k.KeyID())
	}
	return fmt.Sprintf("%.64s, which is not in the trust file", id)
}

// doubt is what speaks against a signature that is one of a trusted key.
type doubt struct {
	kind Kind
	why  string
}

// doubtKinds says which finding each doubt is.
var doubtKinds = map[trust.Doubt]Kind{
	trust.OtherNode: WrongNode, trust.NotValid: KeyNotValid, trust.Revoked: KeyRevoked, trust.Unanchored: Unanchored,
}

// doubts returns what speaks against a signature that says of itself who made it,
// for which node, and when. What is anchored was seen by somebody who kept a state
// of the log with it.
func (r *ring) doubts(id, node string, at time.Time, anchored bool) (out []doubt) {
	if r.file == nil {
		return nil
	}
	said := r.file.Judge(id, node, at)
	for _, d := range trust.Doubts {
		if why, ok := said[d]; ok && (d != trust.Unanchored || !anchored) {
			out = append(out, doubt{doubtKinds[d], why})
		}
	}
	return out
}

// holds reports whether one of the kept states is of this log and has this leaf.
// That the log grew out of that state is checked with the log.
func holds(kept []Kept, log string, leaf uint64) bool {
	for _, k := range kept {
		if k.Origin == log && leaf < k.size {
			return true
		}
	}
	return false
}
