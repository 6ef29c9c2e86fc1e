// Package sign makes and checks the signature of a chunk: one node key, one
// DSSE envelope.
//
// In: a payload's bytes, and a directory for the key or a [Key] that is kept
// elsewhere, which only signs. Out: the envelope line's
// bytes, or, from an envelope line and a public key, the payload that was
// signed. On return of LoadOrCreate both halves of the key are durable.
//
// It trusts the file system it keeps the key on, and whoever is root on the
// node: they can sign what they like from now on, also where the key itself is in a
// TPM or a token and cannot be copied. A signature from there is not believed: it
// is checked against the public key before it is used. It is not a control against
// a lie of the node, against deletion of evidence (a signature says nothing of
// a chunk that is not there), or against time: there is no timestamp here.
//
// The signature is ECDSA over P-256 with SHA-256, DER, over DSSE's
// pre-authentication encoding, because transparency logs and TPMs take no
// Ed25519 of that kind. s is at most half the group's order: everybody could
// turn (r, s) into (r, n-s), and then one chunk would have two sets of bytes.
package sign

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"probity/evidence"
)

// Errors of Open, wrapped with the facts.
var (
	// ErrEnvelope: the line is not an envelope in the one form that is written.
	ErrEnvelope = errors.New("not a canonical envelope")
	// ErrKey: the envelope says that another key signed it.
	ErrKey = errors.New("signed with another key")
	// ErrSignature: the signature does not belong to this payload and key.
	ErrSignature = errors.New("the signature does not match")
)

// MaxKeyFile bounds a key's file.
const MaxKeyFile = 16 << 10

// Signer holds the node's private key, or reaches it. Its methods may be called
// concurrently.
type Signer struct {
	pub *PublicKey
	// One of the two.
	key    *ecdsa.PrivateKey
	remote *remote
	// The keys of the node before this one, and how it came to follow them.
	links  []evidence.Succession
	before map[string]*PublicKey
}

// PublicKey is the node's public key and its name.
type PublicKey struct {
	key *ecdsa.PublicKey
	id  string
	der []byte // SubjectPublicKeyInfo
}

// Keys is whom a verifier trusts. A *PublicKey trusts itself.
type Keys interface {
	// Key returns the trusted key with this id, or nil.
	Key(id string) *PublicKey
}

// Key implements Keys.
func (p *PublicKey) Key(id string) *PublicKey {
	if p == nil || id != p.id {
		return nil
	}
	return p
}

// ParsePrivate reads the content of node.key.
func ParsePrivate(b []byte) (*Signer, error) {
	der, err := onlyBlock(b, "PRIVATE KEY")
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("private key: a %T, want ECDSA on P-256", k)
	}
	return newSigner(key)
}

func newSigner(key *ecdsa.PrivateKey) (*Signer, error) {
	pub, err := newPublic(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	return &Signer{pub: pub, key: key}, nil
}

func newPublic(key *ecdsa.PublicKey) (*PublicKey, error) {
	if key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("the key is on curve %s, want P-256", key.Curve.Params().Name)
	}
	point, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return &PublicKey{key: key, id: fingerprint(point), der: der}, nil
}

// fingerprint is OpenSSH's SHA256 fingerprint of a P-256 point (RFC 5656
// section 3.1 and ssh-keygen -l): the one kind of keyid, but none at all, that
// cosign does not skip.
func fingerprint(point []byte) string {
	var wire []byte
	for _, s := range [][]byte{[]byte("ecdsa-sha2-nistp256"), []byte("nistp256"), point} {
		wire = binary.BigEndian.AppendUint32(wire, uint32(len(s)))
		wire = append(wire, s...)
	}
	sum := sha256.Sum256(wire)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// Public returns the public half.
func (s *Signer) Public() *PublicKey { return s.pub }

// KeyID returns the key's OpenSSH SHA256 fingerprint.
func (s *Signer) KeyID() string { return s.pub.id }

// KeyID returns the key's OpenSSH SHA256 fingerprint.
func (p *PublicKey) KeyID() string { return p.id }

// PEM returns the key as PEM SubjectPublicKeyInfo, the content of node.pub.
func (p *PublicKey) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: p.der})
}

// LoadPublic reads node.pub: exactly one PEM block with a P-256
// SubjectPublicKeyInfo.
func LoadPublic(b []byte) (*PublicKey, error) {
	block, err := onlyBlock(b, "PUBLIC KEY")
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return ParsePublic(block)
}

// DER is the key as SubjectPublicKeyInfo.
func (p *PublicKey) DER() []byte { return bytes.Clone(p.der) }

// ParsePublic reads a key from its SubjectPublicKeyInfo.
func ParsePublic(der []byte) (*PublicKey, error) {
	k, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	key, ok := k.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("public key: a %T, want ECDSA on P-256", k)
	}
	return newPublic(key)
}

// onlyBlock returns the content of the one PEM block in b; text may precede it.
// Readers differ in which block they take where there are several, and in what
// they make of one that is broken, so there may be none.
func onlyBlock(b []byte, kind string) ([]byte, error) {
	if len(b) > MaxKeyFile {
		return nil, fmt.Errorf("more than %d bytes", MaxKeyFile)
	}
	block, rest := pem.Decode(b)
	switch {
	case block == nil:
		return nil, errors.New("no PEM block")
	case block.Type != kind:
		return nil, fmt.Errorf("a PEM block %q, want %q", block.Type, kind)
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("something follows the PEM block")
	case bytes.Count(b, []byte("-----BEGIN ")) != 1:
		return nil, errors.New("more than one PEM block, or a broken one")
	case len(block.Headers) > 0:
		return nil, errors.New("a PEM block with headers")
	}
	return block.Bytes, nil
}

// Envelope signs payload and returns the envelope line's bytes, without a
// newline.
func (s *Signer) Envelope(payload []byte) ([]byte, error) {
	sig, err := s.Sign(evidence.PayloadType, payload)
	if err != nil {
		return nil, err
	}
	return encode(payload, s.pub.id, sig), nil
}

// Sign returns the signature, in DER, over DSSE's encoding of a payload of some
// type. What is signed as one type is no signature of another.
func (s *Signer) Sign(payloadType string, payload []byte) ([]byte, error) {
	digest := sha256.Sum256(dsse.PAE(payloadType, payload))
	var rs pair
	var err error
	if s.remote != nil {
		rs, err = s.remote.sign(digest)
	} else {
		rs.R, rs.S, err = ecdsa.Sign(rand.Reader, s.key, digest[:])
	}
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	n := elliptic.P256().Params().N
	if rs.S.Cmp(new(big.Int).Rsh(n, 1)) > 0 {
		rs.S.Sub(n, rs.S)
	}
	sig, err := asn1.Marshal(rs)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return sig, nil
}

type pair struct{ R, S *big.Int }

// encode writes the one form of an envelope. Nothing in it needs an escape.
func encode(payload []byte, keyID string, sig []byte) []byte {
	b := make([]byte, 0, 256+base64.StdEncoding.EncodedLen(len(payload)))
	b = append(b, `{"payloadType":"`+evidence.PayloadType+`","payload":"`...)
	b = base64.StdEncoding.AppendEncode(b, payload)
	b = append(b, `","signatures":[{"keyid":"`+keyID+`","sig":"`...)
	b = base64.StdEncoding.AppendEncode(b, sig)
	return append(b, `"}]}`...)
}

// Envelope is the JSON form of the envelope line.
type Envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     string      `json:"payload"`
	Signatures  []Signature `json:"signatures"`
}

// Signature is the one signature of an Envelope.
type Signature struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

// Open checks an envelope line, without its newline, and returns the payload
// that key signed. It takes exactly what Envelope writes: any other bytes are
// an error, even where they mean the same.
func Open(line []byte, key *PublicKey) ([]byte, error) {
	if len(line) >= evidence.MaxLineBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrEnvelope, len(line), evidence.MaxLineBytes-1)
	}
	var e Envelope
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEnvelope, err)
	}
	if e.PayloadType != evidence.PayloadType {
		return nil, fmt.Errorf("%w: payloadType %.64q, want %q", ErrEnvelope, e.PayloadType, evidence.PayloadType)
	}
	if len(e.Signatures) != 1 {
		return nil, fmt.Errorf("%w: %d signatures, want 1", ErrEnvelope, len(e.Signatures))
	}
	payload, err := base64.StdEncoding.Strict().DecodeString(e.Payload)
	if err != nil {
		return nil, fmt.Errorf("%w: payload: %w", ErrEnvelope, err)
	}
	sig, err := base64.StdEncoding.Strict().DecodeString(e.Signatures[0].Sig)
	if err != nil {
		return nil, fmt.Errorf("%w: sig: %w", ErrEnvelope, err)
	}
	if !bytes.Equal(encode(payload, e.Signatures[0].KeyID, sig), line) {
		return nil, fmt.Errorf("%w: other white space, order or spelling", ErrEnvelope)
	}
	if e.Signatures[0].KeyID != key.id {
		return nil, fmt.Errorf("%w: %.64q, not %s", ErrKey, e.Signatures[0].KeyID, key.id)
	}
	if err := key.Verify(evidence.PayloadType, payload, sig); err != nil {
		return nil, err
	}
	return payload, nil
}

// Verify checks a signature of Sign, and takes it in its one spelling only.
func (p *PublicKey) Verify(payloadType string, payload, sig []byte) error {
	var rs pair
	rest, err := asn1.Unmarshal(sig, &rs)
	if err != nil || len(rest) > 0 {
		return fmt.Errorf("%w: not DER", ErrSignature)
	}
	if again, err := asn1.Marshal(rs); err != nil || !bytes.Equal(again, sig) {
		return fmt.Errorf("%w: not DER", ErrSignature)
	}
	if rs.S.Cmp(new(big.Int).Rsh(elliptic.P256().Params().N, 1)) > 0 {
		return fmt.Errorf("%w: s is more than half the group's order", ErrSignature)
	}
	digest := sha256.Sum256(dsse.PAE(payloadType, payload))
	if !ecdsa.VerifyASN1(p.key, digest[:], sig) {
		return ErrSignature
	}
	return nil
}
