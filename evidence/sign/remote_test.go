package sign_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"probity/evidence"
	"probity/evidence/sign"
)

// token is a key that is kept elsewhere, and that can be told to misbehave.
type token struct {
	t      testing.TB
	key    *ecdsa.PrivateKey
	opened int
	closed int
	away   error // opening fails
	answer func(digest [32]byte) (r, s *big.Int, err error)
}

func newToken(t testing.TB) *token {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &token{t: t, key: key}
}

func (k *token) open() (sign.Key, error) {
	k.opened++
	if k.away != nil {
		return nil, k.away
	}
	return k, nil
}

func (k *token) Public() *sign.PublicKey {
	der, err := x509.MarshalPKIXPublicKey(&k.key.PublicKey)
	if err != nil {
		k.t.Fatal(err)
	}
	p, err := sign.ParsePublic(der)
	if err != nil {
		k.t.Fatal(err)
	}
	return p
}

func (k *token) SignDigest(d [32]byte) (*big.Int, *big.Int, error) {
	if k.answer != nil {
		return k.answer(d)
	}
	return ecdsa.Sign(rand.Reader, k.key, d[:])
}

func (k *token) Close() error { k.closed++; return nil }

// unknown is which key a token is expected to have where nobody knows.
func unknown() (*sign.PublicKey, error) { return nil, nil }

func TestRemoteSigns(t *testing.T) {
	k := newToken(t)
	s, err := sign.Reach(k.open, unknown)
	if err != nil {
		t.Fatal(err)
	}
	for range 64 { // half of them have the greater s
		line, err := s.Envelope([]byte(`{"a":1}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sign.Open(line, k.Public()); err != nil {
			t.Fatal(err)
		}
	}
	if k.opened != 1 || k.closed != 0 || s.KeyID() != k.Public().KeyID() {
		t.Errorf("opened %d times, closed %d times, %s", k.opened, k.closed, s.KeyID())
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil || k.closed != 1 {
		t.Errorf("closed %d times, %v", k.closed, err)
	}
	if _, err := s.Sign(evidence.PayloadType, nil); !errors.Is(err, sign.ErrAway) {
		t.Errorf("after Close: %v", err)
	}
}

// What is kept elsewhere may answer anything.
func TestRemoteIsNotBelieved(t *testing.T) {
	other := newToken(t)
	n := elliptic.P256().Params().N
	for why, answer := range map[string]func([32]byte) (*big.Int, *big.Int, error){
		"another key's signature": other.SignDigest,
		"another digest's":        nil, // below
		"nothing":                 func([32]byte) (*big.Int, *big.Int, error) { return nil, nil, nil },
		"zeroes":                  func([32]byte) (*big.Int, *big.Int, error) { return new(big.Int), new(big.Int), nil },
		"the group's order":       func([32]byte) (*big.Int, *big.Int, error) { return n, n, nil },
		"a negative":              func([32]byte) (*big.Int, *big.Int, error) { return big.NewInt(-1), big.NewInt(-1), nil },
		"huge": func([32]byte) (*big.Int, *big.Int, error) {
			h := new(big.Int).Lsh(big.NewInt(1), 1<<16)
			return h, h, nil
		},
		"an error": func([32]byte) (*big.Int, *big.Int, error) { return nil, nil, errors.New("it died") },
	} {
		t.Run(why, func(t *testing.T) {
			k := newToken(t)
			if answer == nil {
				answer = func(d [32]byte) (*big.Int, *big.Int, error) {
					d[0] ^= 1
					return ecdsa.Sign(rand.Reader, k.key, d[:])
				}
			}
			s, err := sign.Reach(k.open, unknown)
			if err != nil {
				t.Fatal(err)
			}
			k.answer = answer
			if sig, err := s.Sign("t", []byte("p")); !errors.Is(err, sign.ErrAway) {
				t.Errorf("it signed: %x, %v", sig, err)
			}
			if k.closed != 1 {
				t.Errorf("closed %d times", k.closed)
			}
			if err := s.Ready(); !errors.Is(err, sign.ErrAway) {
				t.Errorf("it is ready: %v", err)
			}
		})
	}
}

// A key that comes up late, or goes and comes back, is asked for again, and not too
// often.
func TestRemoteComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newToken(t)
		k.away = errors.New("no reader")
		if _, err := sign.Reach(k.open, unknown); err == nil {
			t.Fatal("an unknown key that cannot be reached")
		}
		s := sign.NewRemote(k.Public(), k.open)
		k.opened = 0
		for range 3600 {
			if _, err := s.Sign("t", nil); !errors.Is(err, sign.ErrAway) || !strings.Contains(err.Error(), "no reader") {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if s.Failing() == nil {
			t.Error("nothing is said to fail")
		}
		if k.opened < 60 || k.opened > 70 {
			t.Errorf("tried %d times in an hour", k.opened)
		}
		k.away = nil
		time.Sleep(time.Minute)
		if err := errors.Join(s.Ready(), s.Failing()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Sign("t", nil); err != nil {
			t.Fatal(err)
		}
		// It was well: the next failure is a first one.
		k.answer = func([32]byte) (*big.Int, *big.Int, error) { return nil, nil, errors.New("pulled out") }
		if _, err := s.Sign("t", nil); err == nil {
			t.Fatal("it signed")
		}
		k.answer = nil
		time.Sleep(time.Second)
		if _, err := s.Sign("t", nil); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRemoteIsAnotherKey(t *testing.T) {
	k := newToken(t)
	s := sign.NewRemote(newToken(t).Public(), k.open)
	if _, err := s.Sign("t", nil); !errors.Is(err, sign.ErrAway) || !strings.Contains(err.Error(), "another key") || k.closed != 1 {
		t.Errorf("%v, closed %d times", err, k.closed)
	}
}

// A token that hangs is left alone for as long as it hung, and the attempt of the start
// counts: what waits for a signature at the start, for which there is a time limit, is
// told at once.
func TestRemoteHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const hang = 30 * time.Second
		k := newToken(t)
		open := func() (sign.Key, error) {
			time.Sleep(hang)
			k.opened++
			return nil, errors.New("none within 30s")
		}
		began := time.Now()
		s, err := sign.Reach(open, func() (*sign.PublicKey, error) { return k.Public(), nil })
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Ready(); !errors.Is(err, sign.ErrAway) || !strings.Contains(err.Error(), "none within") || s.Failing() == nil {
			t.Error(err)
		}
		if took := time.Since(began); took != hang || k.opened != 1 {
			t.Errorf("the start took %v, in %d attempts", took, k.opened)
		}
		held := time.Duration(0) // of two hours, with a signature asked for every second
		for time.Since(began) < 2*time.Hour {
			asked := time.Now()
			if _, err := s.Sign("t", nil); !errors.Is(err, sign.ErrAway) {
				t.Fatal(err)
			}
			held += time.Since(asked)
			time.Sleep(time.Second)
		}
		if held > time.Hour {
			t.Errorf("who signs was held for %v of two hours", held)
		}
		if _, err := sign.Reach(open, func() (*sign.PublicKey, error) { return nil, errors.New("node.pub is broken") }); err == nil || !strings.Contains(err.Error(), "none within") || !strings.Contains(err.Error(), "broken") {
			t.Errorf("nobody knows which: %v", err)
		}
	})
}
