package evidence

import (
	"errors"
	"fmt"
	"reflect"
)

// SuccessionType is the DSSE payload type under which a succession is signed.
const SuccessionType = "application/vnd.probity.succession+json"

// MaxSuccessions bounds those of one epoch: a leaf has room for no more.
const MaxSuccessions = 10

// Succession says that one key of a node follows another, which signs it. Who
// trusts the one before can trust the one after.
type Succession struct {
	At        Time   `json:"at"`
	PublicKey string `json:"publicKey"` // the key before: SubjectPublicKeyInfo, base64
	Next      string `json:"next"`      // the key after, likewise
	Signature string `json:"signature"` // by the key before, DER, base64
}

// unsignedSuccession is what is signed.
type unsignedSuccession struct {
	At        Time   `json:"at"`
	PublicKey string `json:"publicKey"`
	Next      string `json:"next"`
}

var (
	successionShape = shapeOf(reflect.TypeFor[Succession]())
	unsignedShape   = shapeOf(reflect.TypeFor[unsignedSuccession]())
)

// Unsigned returns the bytes that are signed.
func (s Succession) Unsigned() ([]byte, error) {
	w := writer{}
	w.value(unsignedShape, reflect.ValueOf(&unsignedSuccession{s.At, s.PublicKey, s.Next}).Elem())
	return w.b, w.err
}

// EncodeSuccession returns the canonical bytes, which follow the rules of a line's.
func EncodeSuccession(s Succession) ([]byte, error) {
	if err := s.validate(); err != nil {
		return nil, fmt.Errorf("encode succession: %w", err)
	}
	w := writer{}
	w.value(successionShape, reflect.ValueOf(&s).Elem())
	return w.b, w.err
}

// DecodeSuccession takes exactly what EncodeSuccession writes.
func DecodeSuccession(line string) (Succession, error) {
	var s Succession
	if len(line) > MaxLeafBytes {
		return s, fmt.Errorf("%d bytes, a succession has at most %d", len(line), MaxLeafBytes)
	}
	if err := decodeCanonical(line, successionShape, reflect.ValueOf(&s).Elem()); err != nil {
		return s, explain(line, new(Succession), err)
	}
	return s, s.validate()
}

func (s Succession) validate() error {
	if s.At.IsZero() {
		return errors.New("at: missing")
	}
	if s.PublicKey == s.Next {
		return errors.New("next: the same key")
	}
	return firstOf(spelled("publicKey", s.PublicKey), spelled("next", s.Next), spelled("signature", s.Signature))
}

// followOn checks that each succession goes on where the one before it ended, and
// the last with this key.
func followOn(list []Succession, last string) error {
	if len(list) > MaxSuccessions {
		return fmt.Errorf("%d, at most %d are allowed", len(list), MaxSuccessions)
	}
	for i, s := range list {
		if err := s.validate(); err != nil {
			return err
		}
		next := last
		if i+1 < len(list) {
			next = list[i+1].PublicKey
		}
		if s.Next != next {
			return errors.New("they do not follow from one another, up to publicKey")
		}
	}
	return nil
}
