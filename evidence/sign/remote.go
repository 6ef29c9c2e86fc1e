package sign

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"sync/atomic"
	"time"
)

// Key is a private key that is kept outside of this process: in a TPM, in a token.
// Its methods are not called concurrently.
type Key interface {
	// Public is the public half.
	Public() *PublicKey
	// SignDigest returns r and s of ECDSA over a SHA-256 digest. It returns within a
	// bounded time. After an error the Key is closed.
	SignDigest(digest [32]byte) (r, s *big.Int, err error)
	// Close lets go of it. It is idempotent.
	Close() error
}

// How long a key that cannot be reached is left alone: the first time, and at most.
const (
	firstWait = time.Second
	mostWait  = time.Minute
)

// ErrAway is wrapped while a key that is kept elsewhere cannot be reached. Trying
// again later can help.
var ErrAway = errors.New("the node's key cannot be reached")

// NewRemote returns a signer by a key that is kept elsewhere and that open reaches,
// which is not called yet. It must be public. After an error open is called again, not
// more often than every second at first and every minute later, and not sooner than
// the attempt before took: in between signing is refused at once.
func NewRemote(public *PublicKey, open func() (Key, error)) *Signer {
	return &Signer{pub: public, remote: &remote{pub: public, open: open}}
}

// Reach is NewRemote for a key that says itself which it is, and calls open now. If
// the key cannot be reached, it is expected to be the one that expected returns, and
// that is no error of Reach's: a node whose token comes up late observes meanwhile,
// and its evidence waits.
func Reach(open func() (Key, error), expected func() (*PublicKey, error)) (*Signer, error) {
	began := time.Now()
	k, err := open()
	if err == nil {
		s := NewRemote(k.Public(), open)
		s.remote.key = k
		return s, nil
	}
	public, perr := expected()
	if public == nil {
		return nil, errors.Join(err, perr)
	}
	s := NewRemote(public, open)
	s.remote.fail(err, began)
	return s, nil
}

// remote reaches a key, one caller after another.
type remote struct {
	pub  *PublicKey
	open func() (Key, error)

	mu      sync.Mutex
	key     Key           // nil while it is not reached
	closed  bool          // for good
	failing error         // why it was not reached, or did not sign
	wait    time.Duration // before the next attempt
	next    time.Time     // not before

	told atomic.Pointer[error] // failing, for who does not wait
}

func (r *remote) sign(digest [32]byte) (pair, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.reach(); err != nil {
		return pair{}, err
	}
	began := time.Now()
	rs, err := r.checked(digest)
	if err != nil {
		return pair{}, r.fail(err, began)
	}
	r.failing, r.wait = nil, 0
	r.told.Store(nil)
	return rs, nil
}

// checked believes nothing: what comes from elsewhere may be of another key, or of
// another digest.
func (r *remote) checked(digest [32]byte) (pair, error) {
	x, y, err := r.key.SignDigest(digest)
	if err != nil {
		return pair{}, err
	}
	if x == nil || y == nil || x.Sign() <= 0 || y.Sign() <= 0 || !ecdsa.Verify(r.pub.key, digest[:], x, y) {
		return pair{}, fmt.Errorf("what it returned is no signature of %s over what was asked for", r.pub.id)
	}
	return pair{x, new(big.Int).Set(y)}, nil
}

// reach opens the key if it is not, with mu held.
func (r *remote) reach() error {
	switch {
	case r.closed:
		return fmt.Errorf("%w: it was closed", ErrAway)
	case r.key != nil:
		return nil
	case time.Now().Before(r.next):
		return fmt.Errorf("%w (next attempt in %v): %w", ErrAway, time.Until(r.next).Round(time.Second), r.failing)
	}
	began := time.Now()
	k, err := r.open()
	if err == nil && k.Public().id != r.pub.id {
		err = errors.Join(fmt.Errorf("another key is there: %s, not %s", k.Public().id, r.pub.id), k.Close())
	}
	if err != nil {
		return r.fail(err, began)
	}
	r.key = k
	r.told.Store(nil)
	return nil
}

// fail gives up the key for a while after an attempt, with mu held. What hangs is left
// alone for as long as it hung, so that who signs is not kept all of the time.
func (r *remote) fail(err error, began time.Time) error {
	if r.key != nil {
		err = errors.Join(err, r.key.Close())
		r.key = nil
	}
	r.wait = min(max(2*r.wait, firstWait, time.Since(began)), mostWait)
	r.failing, r.next = err, time.Now().Add(r.wait)
	r.told.Store(&err)
	return fmt.Errorf("%w: %w", ErrAway, err)
}

// Ready returns nil if a signature may be asked for now. Of a key that is kept
// elsewhere and that cannot be reached it says why, without asking again before
// its time.
func (s *Signer) Ready() error {
	if s.remote == nil {
		return nil
	}
	s.remote.mu.Lock()
	defer s.remote.mu.Unlock()
	return s.remote.reach()
}

// Failing returns why the last attempt to reach a key that is kept elsewhere, or to
// sign with it, failed; nil if it did not. It does not wait for one.
func (s *Signer) Failing() error {
	if s.remote == nil {
		return nil
	}
	if err := s.remote.told.Load(); err != nil {
		return *err
	}
	return nil
}

// Rest lets go of a key that is kept elsewhere until it is asked to sign again: so
// that somebody else can reach what serves one at a time.
func (s *Signer) Rest() error {
	if s.remote == nil {
		return nil
	}
	s.remote.mu.Lock()
	defer s.remote.mu.Unlock()
	if s.remote.key == nil {
		return nil
	}
	err := s.remote.key.Close()
	s.remote.key = nil
	return err
}

// Close lets go of a key that is kept elsewhere: signing is refused from then on.
// It is idempotent.
func (s *Signer) Close() error {
	if s.remote == nil {
		return nil
	}
	s.remote.mu.Lock()
	defer s.remote.mu.Unlock()
	s.remote.closed = true
	if s.remote.key == nil {
		return nil
	}
	err := s.remote.key.Close()
	s.remote.key = nil
	return err
}
