package sign

import (
	"encoding/base64"
	"errors"
	"fmt"

	"probity/evidence"
)

// Succeed signs that next follows this signer's key: who trusts this one can trust
// that one from here on.
func (s *Signer) Succeed(next *PublicKey, at evidence.Time) (evidence.Succession, error) {
	l := evidence.Succession{At: at, PublicKey: base64.StdEncoding.EncodeToString(s.pub.der), Next: base64.StdEncoding.EncodeToString(next.der)}
	unsigned, err := l.Unsigned()
	if err != nil {
		return l, fmt.Errorf("sign the succession: %w", err)
	}
	sig, err := s.Sign(evidence.SuccessionType, unsigned)
	if err != nil {
		return l, fmt.Errorf("sign the succession: %w", err)
	}
	l.Signature = base64.StdEncoding.EncodeToString(sig)
	return l, nil
}

// Follow checks a succession: that the key before signed that the key after
// follows it. Whether the key before is to be trusted is the caller's to say.
func Follow(l evidence.Succession) (before, after *PublicKey, err error) {
	var der [3][]byte
	for i, text := range []string{l.PublicKey, l.Next, l.Signature} {
		if der[i], err = base64.StdEncoding.Strict().DecodeString(text); err != nil {
			return nil, nil, fmt.Errorf("succession: %w", err)
		}
	}
	if before, err = ParsePublic(der[0]); err != nil {
		return nil, nil, fmt.Errorf("succession: the key before: %w", err)
	}
	if after, err = ParsePublic(der[1]); err != nil {
		return nil, nil, fmt.Errorf("succession: the key after: %w", err)
	}
	unsigned, err := l.Unsigned()
	if err != nil {
		return nil, nil, fmt.Errorf("succession: %w", err)
	}
	if err := before.Verify(evidence.SuccessionType, unsigned, der[2]); err != nil {
		return nil, nil, fmt.Errorf("succession of %s by %s: %w", before.id, after.id, err)
	}
	return before, after, nil
}

// ErrOrphan is returned by Inherit where no succession leads to the signer's key.
var ErrOrphan = errors.New("no succession leads to this key")

// Inherit tells a signer which keys of its node came before its own, oldest first.
// Those after its own, of a rotation that was begun and not carried out, are left
// aside. It is to be called before the signer is used.
func (s *Signer) Inherit(links []evidence.Succession) error {
	own := base64.StdEncoding.EncodeToString(s.pub.der)
	n := len(links)
	for n > 0 && links[n-1].Next != own {
		n--
	}
	if n == 0 {
		return ErrOrphan
	}
	before := map[string]*PublicKey{}
	for i, l := range links[:n] {
		if i > 0 && links[i-1].Next != l.PublicKey {
			return errors.New("the successions do not follow from one another")
		}
		key, _, err := Follow(l)
		if err != nil {
			return err
		}
		before[key.id] = key
	}
	s.links, s.before = links[:n:n], before
	return nil
}

// Successions are those that lead to this key, oldest first.
func (s *Signer) Successions() []evidence.Succession { return s.links }

// Key implements [Keys]: a signer trusts its own key, and those that it follows.
func (s *Signer) Key(id string) *PublicKey {
	if id == s.pub.id {
		return s.pub
	}
	return s.before[id]
}
