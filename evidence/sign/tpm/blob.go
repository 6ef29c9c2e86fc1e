package tpm

import (
	"bytes"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// ownerHierarchy is the parent of a key whose storage root key is made anew from
// the TCG's template for P-256.
const ownerHierarchy = tpm2.TPMRHOwner

// maxBlob bounds a blob's text.
const maxBlob = 8 << 10

// blob is a key as it lies on disk.
type blob struct {
	parent  tpm2.TPMHandle
	public  []byte // TPM2B_PUBLIC
	private []byte // TPM2B_PRIVATE
}

// loadable is the one kind of key that is read.
var loadable = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}

// tpmKey is TPMKey of "ASN.1 Specification for TPM 2.0 Key Files", without what
// this package never writes: policies, secrets, a description, an RSA parent.
type tpmKey struct {
	Type      asn1.ObjectIdentifier
	EmptyAuth bool `asn1:"optional,explicit,tag:0"`
	Parent    int64
	Public    []byte
	Private   []byte
}

const pemType = "TSS2 PRIVATE KEY"

func encode(b blob) ([]byte, error) {
	der, err := asn1.Marshal(tpmKey{Type: loadable, EmptyAuth: true, Parent: int64(b.parent), Public: b.public, Private: b.private})
	if err != nil {
		return nil, fmt.Errorf("encode the TPM's key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), nil
}

// decode reads what encode writes, and what other software writes of the same
// kind.
func decode(text []byte) (blob, error) {
	if len(text) > maxBlob {
		return blob{}, fmt.Errorf("more than %d bytes", maxBlob)
	}
	p, rest := pem.Decode(text)
	if p == nil || p.Type != pemType || len(p.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 || bytes.Count(text, []byte("-----BEGIN ")) != 1 {
		return blob{}, fmt.Errorf("not one PEM block %q", pemType)
	}
	var k tpmKey
	rest, err := asn1.Unmarshal(p.Bytes, &k)
	if err != nil {
		return blob{}, fmt.Errorf("not a key file that is understood: %w", err)
	}
	switch again, err := asn1.Marshal(k); {
	case len(rest) > 0, err != nil, !bytes.Equal(again, p.Bytes):
		return blob{}, errors.New("not DER, or with a policy, a description or an RSA parent, which are not supported")
	case !k.Type.Equal(loadable):
		return blob{}, fmt.Errorf("a key of type %v, want a loadable one, %v", k.Type, loadable)
	case !k.EmptyAuth:
		return blob{}, errors.New("it has a password, which is not supported")
	case k.Parent != int64(ownerHierarchy) && k.Parent>>24 != 0x81:
		return blob{}, fmt.Errorf("its parent is 0x%x, want the owner hierarchy or a persistent handle", k.Parent)
	}
	return blob{parent: tpm2.TPMHandle(k.Parent), public: k.Public, private: k.Private}, nil
}
