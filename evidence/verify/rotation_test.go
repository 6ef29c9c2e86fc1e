package verify_test

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/evidence/tlog"
	"probity/evidence/trust"
	"probity/evidence/verify"
)

// succeeded gives the node another key, which the one before has signed.
func (n *theNode) succeeded(t testing.TB) *sign.Signer {
	t.Helper()
	next := another(t)
	l, err := n.signer.Succeed(next.Public(), n.clock().Wall)
	must(t, err)
	must(t, next.Inherit(append(slices.Clone(n.signer.Successions()), l)))
	n.signer = next
	return next
}

func kindsOf(rep verify.Report) (kinds []verify.Kind) {
	for _, f := range rep.Findings {
		if !slices.Contains(kinds, f.Kind) {
			kinds = append(kinds, f.Kind)
		}
	}
	slices.Sort(kinds)
	return kinds
}

// The node's key changes twice, the second time without a life in between. Old and
// new evidence verify from the first key alone, from a trust file with all of them,
// and from one with the first; and the log goes on.
func TestRotation(t *testing.T) {
	n := nodeAt(t, t.TempDir())
	first := n.signer
	n.life(t, 1, 2)
	second := n.succeeded(t)
	n.life(t, 3)
	n.succeeded(t)
	third := n.succeeded(t)
	n.life(t, 4, 5)
	at := signedAt(t, n.chunks(t)[2])

	entry := func(s *sign.Signer, change ...func(*trust.Entry)) trust.Entry {
		e := trust.EntryOf("node-a", s.Public())
		for _, c := range change {
			c(&e)
		}
		return e
	}
	revoked := func(reason string, at time.Time) func(*trust.Entry) {
		return func(e *trust.Entry) { e.Revoked = &trust.Revocation{At: at, Reason: reason} }
	}
	for _, c := range []struct {
		why      string
		keys     sign.Keys
		sound    int
		followed int
		want     []verify.Kind
	}{
		{"the first key alone", first.Public(), 5, 3, nil},
		{"a trust file with all", trusting(t, entry(first), entry(second), entry(third)), 5, 0, nil},
		{"a trust file with the first", trusting(t, entry(first)), 5, 3, nil},
		{"with the first, retired at its end", trusting(t, entry(first, revoked(trust.Retired, at))), 5, 3, nil},
		{"with the first, which may only sign until before it named the next", trusting(t, entry(first, func(e *trust.Entry) { e.NotAfter = signedAt(t, n.chunks(t)[1]) })), 2, 0, []verify.Kind{verify.KeyUnknown, verify.LogMissing}},
		{"with the first, of another node", trusting(t, entry(first, func(e *trust.Entry) { e.Node = "node-z" })), 0, 3, []verify.Kind{verify.WrongNode}},
		{"with the first, which others have: it can name nobody", trusting(t, entry(first, revoked(trust.Compromised, time.Now()))), 0, 0,
			[]verify.Kind{verify.KeyUnknown, verify.Unanchored}},
		{"the second key alone: what came before is not its own", second.Public(), 3, 2, []verify.Kind{verify.KeyUnknown, verify.LogMissing}},
	} {
		t.Run(c.why, func(t *testing.T) {
			rep, err := verify.Path(t.Context(), []string{n.dir}, c.keys, verify.Options{})
			must(t, err)
			if rep.Chunks != c.sound || len(rep.Followed) != c.followed || !slices.Equal(kindsOf(rep), c.want) {
				t.Errorf("%d sound chunks, want %d; followed %v; %v", rep.Chunks, c.sound, rep.Followed, rep.Findings)
			}
			if c.want == nil && (len(rep.Logs) != 1 || rep.Log != verify.LogSound) {
				t.Errorf("log: %s, %d", rep.Log, len(rep.Logs))
			}
		})
	}
	found, err := spool.Recover(t.Context(), n.dir, third, nil)
	if err != nil || len(found.Runs) != 0 || found.Until.IsZero() {
		t.Errorf("the agent's own view: %+v, %v", found, err)
	}
	if _, err := spool.Recover(t.Context(), n.dir, third.Public(), nil); !errors.Is(err, spool.ErrUnsound) {
		t.Errorf("without what it follows: %v", err)
	}
}

// A key that nobody announced ends the log: a new one begins, and says why; and the
// log that was put aside cannot be gone on with by anybody.
func TestUnannouncedKey(t *testing.T) {
	n := nodeAt(t, t.TempDir())
	first := n.signer
	n.life(t, 1)
	n.signer = another(t)
	n.life(t, 2)
	rep, err := verify.Path(t.Context(), []string{n.dir}, trusting(t, trust.EntryOf("node-a", first.Public()), trust.EntryOf("node-a", n.signer.Public())), verify.Options{})
	must(t, err)
	if len(rep.Logs) != 2 || !rep.Sound() || rep.Logs[0].Begins == "" {
		t.Errorf("%+v, %v", rep.Logs, rep.Findings)
	}
}

// Somebody who has the new key, and not the old one, cannot put it into the log.
func TestForgedSuccession(t *testing.T) {
	for why, forge := range map[string]func(l *evidence.Succession, thief *sign.Signer){
		"signed by itself": func(l *evidence.Succession, thief *sign.Signer) {
			unsigned, err := l.Unsigned()
			must(t, err)
			sig, err := thief.Sign(evidence.SuccessionType, unsigned)
			must(t, err)
			l.Signature = base64.StdEncoding.EncodeToString(sig)
		},
		"an epoch's signature": func(l *evidence.Succession, thief *sign.Signer) {
			unsigned, err := l.Unsigned()
			must(t, err)
			sig, err := thief.Sign(evidence.EpochType, unsigned)
			must(t, err)
			l.Signature = base64.StdEncoding.EncodeToString(sig)
		},
		"another time": func(l *evidence.Succession, _ *sign.Signer) { l.At = evidence.TimeOf(l.At.Std().Add(time.Hour)) },
		"another next": func(l *evidence.Succession, _ *sign.Signer) {
			l.Next = base64.StdEncoding.EncodeToString(another(t).Public().DER())
		},
	} {
		t.Run(why, func(t *testing.T) {
			own, thief := another(t), another(t)
			l, err := own.Succeed(thief.Public(), evidence.TimeOf(time.Unix(1_700_000_000, 0)))
			must(t, err)
			if _, _, err := sign.Follow(l); err != nil {
				t.Fatal(err)
			}
			forge(&l, thief)
			if _, _, err := sign.Follow(l); !errors.Is(err, sign.ErrSignature) {
				t.Errorf("followed: %v", err)
			}
			if err := thief.Inherit([]evidence.Succession{l}); err == nil {
				t.Error("inherited")
			}
		})
	}
}

// A log of the new key alone, after the old one was lost, still says whom it
// follows: the chain starts anew in each first epoch.
func TestSuccessionOutlivesTheLog(t *testing.T) {
	n := nodeAt(t, t.TempDir())
	first := n.signer
	n.life(t, 1)
	n.succeeded(t)
	n.life(t, 2)
	must(t, errors.Join(os.RemoveAll(filepath.Join(n.dir, "log")), os.RemoveAll(filepath.Join(n.dir, "ready"))))
	n.life(t, 3)
	rep, err := verify.Path(t.Context(), []string{n.dir}, first.Public(), verify.Options{})
	must(t, err)
	if !rep.Sound() || rep.Chunks != 1 || len(rep.Followed) != 1 {
		t.Errorf("%v, %d chunks, followed %v", rep.Findings, rep.Chunks, rep.Followed)
	}
}

// A trusted node signs that another node's new key comes after its own, and fills
// its log with such things. It takes nothing from the other one.
func TestSuccessorOfAnotherNode(t *testing.T) {
	n, b := nodeAt(t, t.TempDir()), nodeAt(t, t.TempDir())
	keys := trusting(t, trust.EntryOf("node-a", n.signer.Public()), trust.EntryOf("node-b", b.signer.Public()))
	n.life(t, 1)
	next := n.succeeded(t).Public()
	n.life(t, 2)
	b.life(t, 3)
	b.last = read(t, filepath.Join(b.dir, "log", "checkpoint"))
	captured, err := b.signer.Succeed(next, b.clock().Wall)
	must(t, err)
	key := checkpointKey(t, b)
	for why, junk := range map[string]int{"it signs that it follows it": 0, "and a thousand times more, falsely": 1000} {
		t.Run(why, func(t *testing.T) {
			b.rebuilt(t, key, func([][]byte) (list [][]byte) {
				for i := range junk + 1 {
					link := captured
					link.At = evidence.TimeOf(link.At.Std().Add(time.Duration(junk-i) * time.Second)) // the last is true
					start := evidence.StartUnclean
					if i == 0 {
						start = evidence.StartFirst
					}
					leaf, err := evidence.EncodeLeaf(&evidence.EpochLeaf{
						At: link.At, Format: evidence.LogFormat2, Start: start, Epoch: evidence.Uint64(i), Origin: tlog.OriginOf(b.last), Node: "node-b", BootID: "boot", Agent: "probity test",
						KeyID: next.KeyID(), PublicKey: base64.StdEncoding.EncodeToString(next.DER()), CheckpointKey: key.Verifier(), Signature: link.Signature,
						Successions: []evidence.Succession{link},
					}, uint64(i), link.At)
					must(t, err)
					list = append(list, leaf)
				}
				return list
			})
			rep, err := verify.Path(t.Context(), []string{b.dir, n.dir}, keys, verify.Options{})
			must(t, err)
			found := false
			for _, f := range rep.Findings {
				found = found || strings.HasPrefix(f.File, b.dir)
				if strings.HasPrefix(f.File, n.dir) {
					t.Error(f)
				}
			}
			if !found {
				t.Error("nothing is wrong with that node")
			}
		})
	}
}
