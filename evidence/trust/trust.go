// Package trust reads the trust file of a fleet: which key speaks for which node,
// from when to when, and which was revoked.
//
// In: the file's bytes, JSON, which whoever verifies keeps and vouches for. Out: a
// [File], which finds a key by its id and says what speaks against a signature of
// it. True of a File: each key is in it once, is a P-256 key, has the id that it
// is listed under, and speaks for exactly one node.
//
// The package trusts the file. It is not a control against who can change it, nor
// against who has a key that is not revoked: the times that it compares with are
// those that the signer itself wrote, so notAfter keeps nobody from signing with
// an earlier date. For a key that others had, only what was anchored before counts:
// see [Compromised].
package trust

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"probity/evidence/sign"
)

// Format is the version of the file.
const Format = "probity-trust/1"

// Bounds of a file.
const (
	MaxBytes = 16 << 20
	MaxKeys  = 1 << 15
	maxText  = 512 // characters of a name or a note
)

// Why a key was revoked.
const (
	// Retired: it is not used any more, and nobody else ever had it. What it signed
	// before stands.
	Retired = "retired"
	// Compromised: somebody else may have it, and can sign with any date. What it
	// signed before stands only where a state of the log that somebody kept from
	// before holds it.
	Compromised = "compromised"
)

// Reasons lists them.
var Reasons = []string{Retired, Compromised}

// ErrNewer is wrapped where the file is of a version that this reader does not
// know.
var ErrNewer = errors.New("made for a newer version")

// Entry is one key of the file.
type Entry struct {
	Node      string      `json:"node"`
	KeyID     string      `json:"keyId"`              // OpenSSH SHA256 fingerprint
	PublicKey string      `json:"publicKey"`          // SubjectPublicKeyInfo, base64
	NotBefore time.Time   `json:"notBefore,omitzero"` // the first moment for which it speaks
	NotAfter  time.Time   `json:"notAfter,omitzero"`  // and the last
	Revoked   *Revocation `json:"revoked,omitempty"`
	Note      string      `json:"note,omitempty"` // for a person

	key *sign.PublicKey
}

// Revocation says that a key counts for nothing from At on.
type Revocation struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
	Note   string    `json:"note,omitempty"` // for a person
}

// document is the file.
type document struct {
	Format string  `json:"format"`
	Keys   []Entry `json:"keys"`
}

// File is a trust file that was read.
type File struct {
	entries []Entry
	byID    map[string]*Entry
}

// Parse reads a trust file. It takes no member that it does not know, in no other
// spelling, and none twice: another reader would make something else of it.
func Parse(b []byte) (*File, error) {
	if len(b) > MaxBytes {
		return nil, fmt.Errorf("trust file: more than %d bytes", MaxBytes)
	}
	var claim struct {
		Format string `json:"format"`
	}
	if json.Unmarshal(b, &claim) == nil && claim.Format != Format && strings.HasPrefix(claim.Format, "probity-trust/") {
		return nil, fmt.Errorf("trust file: format %.40q: %w than %s", claim.Format, ErrNewer, Format)
	}
	if err := plain(b); err != nil {
		return nil, fmt.Errorf("trust file: %w", err)
	}
	var d document
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return nil, fmt.Errorf("trust file: %w", err)
	}
	if d.Format != Format {
		return nil, fmt.Errorf("trust file: format %.40q, want %s", d.Format, Format)
	}
	if len(d.Keys) == 0 || len(d.Keys) > MaxKeys {
		return nil, fmt.Errorf("trust file: %d keys, want 1 to %d", len(d.Keys), MaxKeys)
	}
	f := &File{entries: d.Keys, byID: map[string]*Entry{}}
	for i := range f.entries {
		e := &f.entries[i]
		if err := e.check(); err != nil {
			return nil, fmt.Errorf("trust file: key %d (%.80q): %w", i+1, e.Node, err)
		}
		if other := f.byID[e.KeyID]; other != nil {
			return nil, fmt.Errorf("trust file: key %d (%.80q): %s is %.80q's already", i+1, e.Node, e.KeyID, other.Node)
		}
		f.byID[e.KeyID] = e
	}
	return f, nil
}

// members are those that a file may have, at any level: which belongs where is the
// decoder's to check.
var members = map[string]bool{
	"format": true, "keys": true, "node": true, "keyId": true, "publicKey": true, "notBefore": true, "notAfter": true,
	"revoked": true, "note": true, "at": true, "reason": true,
}

// plain refuses what encoding/json forgives: a member twice, in other letters, or
// null, and what follows the document.
func plain(b []byte) error {
	if !utf8.Valid(b) {
		return errors.New("not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	type level struct {
		object bool
		seen   map[string]bool
		member bool // the next token is a member's name
	}
	var open []level
	for {
		t, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		at := &level{}
		if len(open) > 0 {
			at = &open[len(open)-1]
		}
		if name, ok := t.(string); ok && at.member {
			if !members[name] {
				return fmt.Errorf("the member %.40q is not known", name)
			}
			if at.seen[name] {
				return fmt.Errorf("the member %q twice", name)
			}
			at.seen[name], at.member = true, false
			continue
		}
		at.member = at.object
		switch t {
		case nil:
			return errors.New("a null: leave out what is not there")
		case json.Delim('{'):
			open = append(open, level{object: true, seen: map[string]bool{}, member: true})
		case json.Delim('['):
			open = append(open, level{})
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
		}
		if len(open) > 4 {
			return errors.New("nested deeper than any trust file")
		}
		if len(open) == 0 && dec.More() {
			return errors.New("something follows the document")
		}
	}
}

func (e *Entry) check() error {
	if err := name(e.Node); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	der, err := base64.StdEncoding.Strict().DecodeString(e.PublicKey)
	if err != nil || base64.StdEncoding.EncodeToString(der) != e.PublicKey {
		return errors.New("publicKey: not base64 in its one spelling (see: probity key export --format trust)")
	}
	if e.key, err = sign.ParsePublic(der); err != nil {
		return fmt.Errorf("publicKey: %w", err)
	}
	if e.key.KeyID() != e.KeyID {
		return fmt.Errorf("keyId: %.64q, and the publicKey is %s", e.KeyID, e.key.KeyID())
	}
	if !e.NotBefore.IsZero() && !e.NotAfter.IsZero() && e.NotAfter.Before(e.NotBefore) {
		return errors.New("notAfter: before notBefore")
	}
	if utf8.RuneCountInString(e.Note) > maxText {
		return fmt.Errorf("note: more than %d characters", maxText)
	}
	r := e.Revoked
	switch {
	case r == nil:
	case r.At.IsZero():
		return errors.New("revoked.at: missing")
	case r.Reason != Retired && r.Reason != Compromised:
		return fmt.Errorf("revoked.reason: %.40q, want %s", r.Reason, strings.Join(Reasons, " or "))
	case utf8.RuneCountInString(r.Note) > maxText:
		return fmt.Errorf("revoked.note: more than %d characters", maxText)
	}
	return nil
}

func name(s string) error {
	switch {
	case s == "":
		return errors.New("missing")
	case utf8.RuneCountInString(s) > maxText:
		return fmt.Errorf("more than %d characters", maxText)
	case strings.ContainsFunc(s, unicode.IsControl):
		return errors.New("a control character")
	}
	return nil
}

// Key implements [sign.Keys].
func (f *File) Key(id string) *sign.PublicKey {
	if e := f.byID[id]; e != nil {
		return e.key
	}
	return nil
}

// Entries returns what the file lists, in its order.
func (f *File) Entries() []Entry { return f.entries }

// Entry returns a key's.
func (f *File) Entry(id string) (Entry, bool) {
	e := f.byID[id]
	if e == nil {
		return Entry{}, false
	}
	return *e, true
}

// Doubt is something that speaks against a signature although it is one of the
// key.
type Doubt string

// The doubts. A signature may have several.
const (
	// OtherNode: the key speaks for another node than the one that is named.
	OtherNode Doubt = "otherNode"
	// NotValid: it was made, as it says itself, when the key did not speak yet, or
	// not any more.
	NotValid Doubt = "notValid"
	// Revoked: it was made, as it says itself, after the key was revoked.
	Revoked Doubt = "revoked"
	// Unanchored: it was made, as it says itself, before others had the key, who can
	// write any date: it stands only where a kept state of the log holds it.
	Unanchored Doubt = "unanchored"
)

// Doubts lists them.
var Doubts = []Doubt{OtherNode, NotValid, Revoked, Unanchored}

// Judge says what speaks against a signature of key id, made for a node at a time,
// both as the signed bytes say, with the reason of each. A key that is not in the
// file has no doubts: it has no trust.
func (f *File) Judge(id, node string, at time.Time) map[Doubt]string {
	e := f.byID[id]
	if e == nil {
		return nil
	}
	var doubts map[Doubt]string
	say := func(d Doubt, format string, args ...any) {
		if doubts == nil {
			doubts = map[Doubt]string{}
		}
		doubts[d] = fmt.Sprintf(format, args...)
	}
	if node != e.Node {
		say(OtherNode, "key %s speaks for node %.200q, not for %.200q", id, e.Node, node)
	}
	switch {
	case !e.NotBefore.IsZero() && at.Before(e.NotBefore):
		say(NotValid, "signed at %s with key %s, which speaks from %s on", stamp(at), id, stamp(e.NotBefore))
	case !e.NotAfter.IsZero() && at.After(e.NotAfter):
		say(NotValid, "signed at %s with key %s, which speaks up to %s", stamp(at), id, stamp(e.NotAfter))
	}
	switch r := e.Revoked; {
	case r == nil:
	case !at.Before(r.At):
		say(Revoked, "signed at %s with key %s, which was revoked at %s (%s)", stamp(at), id, stamp(r.At), r.Reason)
	case r.Reason == Compromised:
		say(Unanchored, "signed with key %s, which others have since %s: that it is from before, as it says, nothing shows", id, stamp(r.At))
	}
	return doubts
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Write returns the file of these entries, which are checked as Parse would.
func Write(entries []Entry) ([]byte, error) {
	b, err := json.MarshalIndent(document{Format: Format, Keys: entries}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("trust file: %w", err)
	}
	b = append(b, '\n')
	if _, err := Parse(b); err != nil {
		return nil, err
	}
	return b, nil
}

// EntryOf is the entry of a key that speaks for a node from now on.
func EntryOf(node string, key *sign.PublicKey) Entry {
	return Entry{Node: node, KeyID: key.KeyID(), PublicKey: base64.StdEncoding.EncodeToString(key.DER())}
}
