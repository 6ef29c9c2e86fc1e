// Package tpm keeps the node's key in a TPM 2.0: a P-256 signing key that the TPM
// made itself and that is of no use outside of it.
//
// In: the path of a TPM, and the key's blob. Out: a [sign.Key]. The blob is a "TSS2
// PRIVATE KEY", as OpenSSL's TPM provider reads it too: the public half, and the
// private one encrypted by the TPM's storage root key, which never leaves it and
// changes when the TPM is cleared. True of an open key: the TPM has loaded it, and
// says that it was made in this TPM and cannot be moved to another (fixedTPM,
// fixedParent, sensitiveDataOrigin).
//
// A blob file rather than a persistent handle: a TPM has room for a few handles,
// which other software deletes or reuses, and a file lies where the rest of the
// node's state does and is written like it. The parent is made anew at each start
// from the TCG's template, which gives the same key each time.
//
// The package trusts the TPM, the kernel's resource manager (/dev/tpmrm0) and who
// may open it: the key has no password of its own, since whoever could read that
// from the node's disk could ask the TPM as well. So it is a control against who
// takes the disk, a backup or an image of it to another machine. It is none against
// root on the running node, who can have anything signed as long as they are root,
// nor against who clears the TPM: then the key is gone, and that shows. What is
// signed does not depend on the state of the boot (no policy over PCRs): an update
// of the firmware must not cost the node its name.
package tpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"probity/evidence/sign"
)

// DefaultDevice is the kernel's resource manager.
const DefaultDevice = "/dev/tpmrm0"

// template is what the TPM is asked to make.
var template = tpm2.TPMTPublic{
	Type:    tpm2.TPMAlgECC,
	NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
		NoDA:        true, // no password, so nothing to guess, and no lockout to be caught in
		SignEncrypt: true,
	},
	Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		CurveID: tpm2.TPMECCNistP256,
		Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
	}),
}

// Key is a key that a TPM has loaded.
type Key struct {
	conn   *conn
	public *sign.PublicKey
	loaded tpm2.TPMHandle
	name   tpm2.TPM2BName
	closed bool
}

// Create has the TPM at path make a key, and returns its blob.
func Create(path string) (_ []byte, err error) {
	c, err := dial(path)
	if err != nil {
		return nil, fmt.Errorf("create a key in the TPM %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	parent, err := c.root(ownerHierarchy)
	if err != nil {
		return nil, fmt.Errorf("create a key in the TPM %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, c.flush(parent.Handle)) }()
	made, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: parent.Handle, Name: parent.Name, Auth: tpm2.PasswordAuth(nil)},
		InPublic:     tpm2.New2B(template),
	}.Execute(c)
	if err != nil {
		return nil, fmt.Errorf("create a key in the TPM %s: %w", path, err)
	}
	return encode(blob{parent: ownerHierarchy, public: tpm2.Marshal(made.OutPublic), private: tpm2.Marshal(made.OutPrivate)})
}

// PublicOf reads the public half of a blob, which needs no TPM.
func PublicOf(text []byte) (*sign.PublicKey, error) {
	b, err := decode(text)
	if err != nil {
		return nil, fmt.Errorf("the TPM's key: %w", err)
	}
	public, _, err := b.publicKey()
	return public, err
}

// Open loads a key into the TPM at path.
func Open(path string, text []byte) (_ *Key, err error) {
	b, err := decode(text)
	if err != nil {
		return nil, fmt.Errorf("the TPM's key: %w", err)
	}
	public, area, err := b.publicKey()
	if err != nil {
		return nil, err
	}
	c, err := dial(path)
	if err != nil {
		return nil, fmt.Errorf("open the TPM %s: %w", path, err)
	}
	k := &Key{conn: c, public: public}
	if err := k.load(b, area); err != nil {
		return nil, errors.Join(fmt.Errorf("load the key into the TPM %s: %w", path, err), c.Close())
	}
	return k, nil
}

// ErrOtherTPM is wrapped where the TPM does not know a key's blob: it was made in
// another one, or this one was cleared since.
var ErrOtherTPM = errors.New("the key was made in another TPM, or this one was cleared since")

func (k *Key) load(b blob, area tpm2.TPM2BPublic) (err error) {
	parent, err := k.conn.root(b.parent)
	if err != nil {
		return err
	}
	if b.parent == ownerHierarchy {
		defer func() { err = errors.Join(err, k.conn.flush(parent.Handle)) }()
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](b.private)
	if err != nil {
		return fmt.Errorf("the private half: %w", err)
	}
	got, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: parent.Handle, Name: parent.Name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate:    *private, InPublic: area,
	}.Execute(k.conn)
	if errors.Is(err, tpm2.TPMRCIntegrity) {
		return fmt.Errorf("%w (%w)", ErrOtherTPM, err)
	}
	if err != nil {
		return err
	}
	k.loaded, k.name = got.ObjectHandle, got.Name
	return nil
}

// Public implements [sign.Key].
func (k *Key) Public() *sign.PublicKey { return k.public }

// SignDigest implements [sign.Key].
func (k *Key) SignDigest(digest [32]byte) (r, s *big.Int, err error) {
	got, err := tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: k.loaded, Name: k.name, Auth: tpm2.PasswordAuth(nil)},
		Digest:     tpm2.TPM2BDigest{Buffer: digest[:]},
		InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
	}.Execute(k.conn)
	if err != nil {
		return nil, nil, fmt.Errorf("the TPM did not sign: %w", err)
	}
	sig, err := got.Signature.Signature.ECDSA()
	if err != nil {
		return nil, nil, fmt.Errorf("the TPM's signature: %w", err)
	}
	return new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer), nil
}

// Close implements [sign.Key]. It makes room in the TPM.
func (k *Key) Close() error {
	if k.closed {
		return nil
	}
	k.closed = true
	return errors.Join(k.conn.flush(k.loaded), k.conn.Close())
}

// root is the storage root key.
func (c *conn) root(parent tpm2.TPMHandle) (tpm2.NamedHandle, error) {
	if parent != ownerHierarchy { // somebody made it persistent
		got, err := tpm2.ReadPublic{ObjectHandle: parent}.Execute(c)
		if err != nil {
			return tpm2.NamedHandle{}, fmt.Errorf("read the parent 0x%x: %w", uint32(parent), err)
		}
		return tpm2.NamedHandle{Handle: parent, Name: got.Name}, nil
	}
	got, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: ownerHierarchy, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
	}.Execute(c)
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("make the storage root key (has the owner hierarchy a password?): %w", err)
	}
	return tpm2.NamedHandle{Handle: got.ObjectHandle, Name: got.Name}, nil
}

func (c *conn) flush(h tpm2.TPMHandle) error {
	if c.broken() || h == 0 {
		return nil // the resource manager does it when the connection ends
	}
	if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(c); err != nil {
		return fmt.Errorf("flush the TPM's handle 0x%x: %w", uint32(h), err)
	}
	return nil
}

// publicKey checks what a blob's public area says, and returns the key in it.
func (b blob) publicKey() (*sign.PublicKey, tpm2.TPM2BPublic, error) {
	fail := func(format string, args ...any) (*sign.PublicKey, tpm2.TPM2BPublic, error) {
		return nil, tpm2.TPM2BPublic{}, fmt.Errorf("the TPM's key: "+format, args...)
	}
	area, err := tpm2.Unmarshal[tpm2.TPM2BPublic](b.public)
	if err != nil {
		return fail("its public area: %w", err)
	}
	p, err := area.Contents()
	if err != nil {
		return fail("its public area: %w", err)
	}
	if a := p.ObjectAttributes; p.Type != tpm2.TPMAlgECC || !a.SignEncrypt || a.Decrypt || a.Restricted {
		return fail("not an unrestricted signing key on an elliptic curve")
	}
	if a := p.ObjectAttributes; !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin {
		return fail("it was not made in a TPM, or can leave it (want fixedTPM, fixedParent, sensitiveDataOrigin)")
	}
	parms, err := p.Parameters.ECCDetail()
	if err != nil {
		return fail("its parameters: %w", err)
	}
	point, err := p.Unique.ECC()
	if err != nil {
		return fail("its point: %w", err)
	}
	if parms.CurveID != tpm2.TPMECCNistP256 || len(point.X.Buffer) > 32 || len(point.Y.Buffer) > 32 {
		return fail("not on P-256")
	}
	raw := make([]byte, 65)
	raw[0] = 4 // uncompressed
	copy(raw[33-len(point.X.Buffer):33], point.X.Buffer)
	copy(raw[65-len(point.Y.Buffer):], point.Y.Buffer)
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), raw)
	if err != nil {
		return fail("its point: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return fail("%w", err)
	}
	public, err := sign.ParsePublic(der)
	if err != nil {
		return fail("%w", err)
	}
	return public, *area, nil
}
