package verify

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/tlog"
	"probity/evidence/trust"
)

// ring is whom one verification trusts, and for what: the keys that it was given,
// and those that follow them, as the node's logs say.
type ring struct {
	keys sign.Keys
	file *trust.File // keys, where it says more than that it trusts one
	// links reads the successions in the logs; nil where there are none. It is asked
	// only if something is signed by a key that is not trusted.
	links func() []evidence.Succession
	once  sync.Once
	heirs map[string][]heir // one for each trusted key that the key follows
}

// heir is a key that follows a trusted one.
type heir struct {
	key  *sign.PublicKey
	root string // the trusted key that it follows in the end
	Followed
}

// Followed is a key that is trusted because a trusted one signed that it comes
// after it.
type Followed struct {
	KeyID string        `json:"keyId"`
	After string        `json:"after"` // the key before
	Since evidence.Time `json:"since"` // as the key before says
}

func ringOf(keys sign.Keys) *ring {
	r := &ring{keys: keys}
	r.file, _ = keys.(*trust.File)
	return r
}

func (r *ring) key(id string) *sign.PublicKey {
	if k := r.keys.Key(id); k != nil {
		return k
	}
	r.once.Do(r.follow)
	if h := r.heirs[id]; len(h) > 0 {
		return h[0].key
	}
	return nil
}

// follow finds the keys that follow trusted ones. A succession needs no log to be
// believed: whom it is signed by is enough.
func (r *ring) follow() {
	if r.links == nil {
		return
	}
	r.heirs = map[string][]heir{}
	type step struct {
		before, after *sign.PublicKey
		at            evidence.Time
	}
	var steps []step
	for _, l := range r.links() {
		if before, after, err := sign.Follow(l); err == nil && r.keys.Key(after.KeyID()) == nil {
			steps = append(steps, step{before, after, l.At})
		}
	}
	for more := true; more; {
		more = false
		for _, s := range steps {
			before, after := s.before.KeyID(), s.after.KeyID()
			roots := []string{before}
			for _, h := range r.heirs[before] {
				roots = append(roots, h.root)
			}
			for _, root := range roots {
				if r.keys.Key(root) == nil || r.file != nil && !r.mayName(root, before, s.at) || r.follows(after, root) {
					continue
				}
				r.heirs[after] = append(r.heirs[after], heir{s.after, root, Followed{after, before, s.at}})
				more = true
			}
		}
	}
}

// follows reports whether it is known that a key follows this trusted one. It may
// follow several: who signs that a key is the next has not asked its owner, and
// must not take it away from the node that it belongs to.
func (r *ring) follows(id, root string) bool {
	return slices.ContainsFunc(r.heirs[id], func(h heir) bool { return h.root == root })
}

// mayName reports whether the trust file lets a key, or one that follows it, name
// the next: not out of its time, and not at all if others have it, who could name
// one of theirs. Such a node's new key has to be in the file itself.
func (r *ring) mayName(root, by string, at evidence.Time) bool {
	e, _ := r.file.Entry(root)
	if root != by { // of a key that follows, the file says nothing but for which node it is
		return e.Revoked == nil || e.Revoked.Reason != trust.Compromised
	}
	return r.file.Judge(root, e.Node, at.Std()) == nil
}

// followed lists the keys that follow trusted ones, and were needed.
func (r *ring) followed() (out []Followed) {
	for _, id := range slices.Sorted(maps.Keys(r.heirs)) {
		for _, h := range r.heirs[id] {
			out = append(out, h.Followed)
		}
	}
	return out
}

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
	if r.keys.Key(id) == nil { // it speaks for the node of the key that it follows
		if why := r.notOf(id, node); why != "" {
			said = map[trust.Doubt]string{trust.OtherNode: why}
		}
	}
	for _, d := range trust.Doubts {
		if why, ok := said[d]; ok && (d != trust.Unanchored || !anchored) {
			out = append(out, doubt{doubtKinds[d], why})
		}
	}
	return out
}

// notOf says why a key that follows trusted ones does not speak for a node: none of
// those does.
func (r *ring) notOf(id, node string) (why string) {
	for _, h := range r.heirs[id] {
		e, _ := r.file.Entry(h.root)
		if e.Node == node {
			return ""
		}
		why = fmt.Sprintf("key %s follows %s, which speaks for node %.200q, not for %.200q", id, h.root, e.Node, node)
	}
	return why
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

// successionsIn reads the successions in the logs of spools. What is wrong with a
// log is said where it is checked.
func successionsIn(ctx context.Context, paths []string) (links []evidence.Succession) {
	for _, p := range paths {
		if root, err := os.OpenRoot(p); err == nil {
			links = append(links, successionsOfSpool(ctx, mindfulFS{root})...)
			root.Close()
			continue // else a file, or said already
		}
		for _, s := range spoolsIn(ctx, p) {
			links = append(links, successionsOfSpool(ctx, s.fsys)...)
		}
	}
	return links
}

// spoolsIn reads an archive for its logs alone. Standard input cannot be read twice.
func spoolsIn(ctx context.Context, p string) []spool {
	if p == stdin || !looksLikeArchive(p) {
		return nil
	}
	f, err := openFile(p, false)
	if err != nil {
		return nil
	}
	defer f.Close()
	a := newArchive(p)
	_ = a.read(ctx, f, func(file, io.Reader, int64) error { return nil }) // it is read again, and then it is said
	return a.spools()
}

func successionsOfSpool(ctx context.Context, fsys fs.FS) (links []evidence.Succession) {
	dirs := []string{logDir}
	old, _ := fs.ReadDir(fsys, retiredDir)
	for _, e := range old {
		dirs = append(dirs, path.Join(retiredDir, e.Name()))
	}
	seen := map[evidence.Succession]bool{}
	for _, d := range dirs {
		for _, l := range successionsOf(ctx, fsys, d) {
			if !seen[l] && len(links) < maxLinks {
				seen[l] = true
				links = append(links, l)
			}
		}
	}
	return links
}

func successionsOf(ctx context.Context, fsys fs.FS, dir string) (links []evidence.Succession) {
	sub, err := fs.Sub(fsys, dir)
	if err != nil {
		return nil
	}
	r := tlog.NewReader(sub)
	note, err := r.Checkpoint()
	if err != nil {
		return nil
	}
	tree, err := tlog.Claim(note)
	if err != nil {
		return nil
	}
	_ = r.Scan(ctx, tree, func(_ uint64, entry []byte) error {
		if !strings.HasPrefix(string(entry), `{"leaf":"`+evidence.LeafEpoch+`"`) || len(links) >= maxLinks*evidence.MaxSuccessions {
			return nil
		}
		if l, err := evidence.DecodeLeaf(string(entry)); err == nil {
			links = append(links, l.(*evidence.EpochLeaf).Successions...)
		}
		return nil
	})
	return links
}

// maxLinks bounds the successions of one spool that are looked at: each costs a
// signature to check. What is wrong in one spool costs no other one its own.
const maxLinks = 200

// checkSuccessions checks what an epoch says of how its key came to be the node's.
func checkSuccessions(l *evidence.EpochLeaf) error {
	for i, s := range l.Successions {
		_, after, err := sign.Follow(s)
		if err != nil {
			return err
		}
		if i == len(l.Successions)-1 && base64.StdEncoding.EncodeToString(after.DER()) != l.PublicKey {
			return fmt.Errorf("the successions do not lead to %.64s", l.KeyID)
		}
	}
	return nil
}
