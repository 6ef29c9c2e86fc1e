//go:build cgo

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/miekg/pkcs11"

	"probity/evidence/sign/pkcs11/wire"
)

// p256 is the curve's name as CKA_EC_PARAMS has it.
var p256 = []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}

// token is a session with a private key.
type token struct {
	ctx     *pkcs11.Ctx
	session pkcs11.SessionHandle
	key     pkcs11.ObjectHandle
}

// open loads the module, logs in and finds the one key that is meant.
func open(o wire.Open) (_ session, der []byte, err error) {
	if _, err := os.Stat(o.Module); err != nil {
		return nil, nil, fmt.Errorf("the module: %w", err)
	}
	t := &token{ctx: pkcs11.New(o.Module)}
	if t.ctx == nil {
		return nil, nil, fmt.Errorf("%s cannot be loaded as a PKCS#11 module", o.Module)
	}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if err := t.ctx.Initialize(); err != nil {
		return nil, nil, fmt.Errorf("initialize the module: %w", err)
	}
	slot, info, err := t.slot(o)
	if err != nil {
		return nil, nil, err
	}
	flags := uint(pkcs11.CKF_SERIAL_SESSION)
	if o.Generate {
		flags |= pkcs11.CKF_RW_SESSION
	}
	if t.session, err = t.ctx.OpenSession(slot, flags); err != nil {
		return nil, nil, fmt.Errorf("open a session with the token: %w", err)
	}
	if info.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0 {
		// A token that has one try left is not asked: who starts this again and again
		// with a wrong PIN must not lock it.
		switch {
		case len(o.PIN) == 0:
			return nil, nil, errors.New("the token wants a PIN: give pin-source")
		case info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
			return nil, nil, errLocked
		case info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
			return nil, nil, errors.New("one more wrong PIN locks the token, so it is not tried: make sure that it is right, and log in once with another program (pkcs11-tool --login)")
		}
		if err := t.ctx.Login(t.session, pkcs11.CKU_USER, string(o.PIN)); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", whyNot(err), err)
		}
	}
	if o.Generate {
		if err := t.generate(o); err != nil {
			return nil, nil, err
		}
	}
	return t.find(o)
}

// whyNot says whether a login failed for its PIN: one that failed for anything else may
// be tried again.
func whyNot(err error) error {
	switch code := pkcs11.Error(0); {
	case !errors.As(err, &code):
	case code == pkcs11.CKR_PIN_INCORRECT, code == pkcs11.CKR_PIN_INVALID, code == pkcs11.CKR_PIN_LEN_RANGE, code == pkcs11.CKR_PIN_EXPIRED:
		return errPIN
	case code == pkcs11.CKR_PIN_LOCKED:
		return errLocked
	}
	return errors.New("log in to the token")
}

// slot finds the one token that is meant.
func (t *token) slot(o wire.Open) (uint, pkcs11.TokenInfo, error) {
	slots, err := t.ctx.GetSlotList(true)
	if err != nil {
		return 0, pkcs11.TokenInfo{}, fmt.Errorf("list the tokens: %w", err)
	}
	var found []uint
	var of pkcs11.TokenInfo
	for _, s := range slots {
		info, err := t.ctx.GetTokenInfo(s)
		if err != nil {
			continue // taken out since
		}
		fits := func(want, have string) bool { return want == "" || want == strings.TrimRight(have, " \x00") }
		if (o.Slot == nil || *o.Slot == uint64(s)) && info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 &&
			fits(o.Token, info.Label) && fits(o.Manufacturer, info.ManufacturerID) && fits(o.Serial, info.SerialNumber) && fits(o.Model, info.Model) {
			found, of = append(found, s), info
		}
	}
	switch len(found) {
	case 0:
		return 0, of, fmt.Errorf("none of %d tokens is the one that the URI names", len(slots))
	case 1:
		return found[0], of, nil
	}
	return 0, of, fmt.Errorf("the URI names %d tokens: it has to say which (token, serial)", len(found))
}

// template is what the key's objects have in common.
func template(o wire.Open, class uint) []*pkcs11.Attribute {
	a := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC)}
	if o.Object != "" {
		a = append(a, pkcs11.NewAttribute(pkcs11.CKA_LABEL, o.Object))
	}
	if len(o.ID) > 0 {
		a = append(a, pkcs11.NewAttribute(pkcs11.CKA_ID, o.ID))
	}
	return a
}

// objects finds at most three objects.
func (t *token) objects(a []*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	if err := t.ctx.FindObjectsInit(t.session, a); err != nil {
		return nil, fmt.Errorf("look for the key: %w", err)
	}
	found, _, err := t.ctx.FindObjects(t.session, 3)
	if err := errors.Join(err, t.ctx.FindObjectsFinal(t.session)); err != nil {
		return nil, fmt.Errorf("look for the key: %w", err)
	}
	return found, nil
}

func (t *token) attribute(h pkcs11.ObjectHandle, kind uint) ([]byte, error) {
	got, err := t.ctx.GetAttributeValue(t.session, h, []*pkcs11.Attribute{pkcs11.NewAttribute(kind, nil)})
	if err != nil {
		return nil, err
	}
	if len(got) != 1 {
		return nil, fmt.Errorf("%d values", len(got))
	}
	return got[0].Value, nil
}

// find finds the private key, and its public half.
func (t *token) find(o wire.Open) (session, []byte, error) {
	keys, err := t.objects(template(o, pkcs11.CKO_PRIVATE_KEY))
	if err != nil {
		return nil, nil, err
	}
	switch len(keys) {
	case 0:
		return nil, nil, errors.New("the token has no such private key on an elliptic curve")
	case 1:
	default:
		return nil, nil, errors.New("the URI names several private keys: it has to say which (object, id)")
	}
	t.key = keys[0]
	curve, err := t.attribute(t.key, pkcs11.CKA_EC_PARAMS)
	if err != nil {
		return nil, nil, fmt.Errorf("read the key's curve: %w", err)
	}
	if !bytes.Equal(curve, p256) {
		return nil, nil, fmt.Errorf("the key is on another curve than P-256 (CKA_EC_PARAMS %x)", curve[:min(len(curve), 16)])
	}
	// Its public half is an object of its own with the same id, or label. Some
	// tokens give the point of the private object too.
	of := o
	if id, err := t.attribute(t.key, pkcs11.CKA_ID); err == nil && len(id) > 0 {
		of.Object, of.ID = "", id
	}
	public, err := t.objects(template(of, pkcs11.CKO_PUBLIC_KEY))
	if err != nil {
		return nil, nil, err
	}
	for _, h := range append(public, t.key) {
		point, err := t.attribute(h, pkcs11.CKA_EC_POINT)
		if err != nil {
			continue
		}
		der, err := publicKey(point)
		if err != nil {
			return nil, nil, fmt.Errorf("the key's public half: %w", err)
		}
		return t, der, nil
	}
	return nil, nil, errors.New("the token has the private key and not its public half")
}

// publicKey reads CKA_EC_POINT: an octet string with the point in it, or, of older
// modules, the point itself.
func publicKey(point []byte) ([]byte, error) {
	var raw []byte
	if rest, err := asn1.Unmarshal(point, &raw); err != nil || len(rest) > 0 {
		raw = point
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), raw)
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(key)
}

// generate makes the key. What is there already stays.
func (t *token) generate(o wire.Open) error {
	if o.Object == "" {
		return errors.New("a new key needs a label: give object")
	}
	for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY} {
		of := o
		if len(of.ID) > 0 {
			of.Object = "" // neither may be taken
			if found, err := t.objects(template(of, class)); err != nil || len(found) > 0 {
				return errors.Join(errors.New("the token has a key with this id already (--existing takes it)"), err)
			}
		}
		of.Object, of.ID = o.Object, nil
		if found, err := t.objects(template(of, class)); err != nil || len(found) > 0 {
			return errors.Join(errors.New("the token has a key with this label already (--existing takes it)"), err)
		}
	}
	if len(o.ID) == 0 {
		id, err := t.ctx.GenerateRandom(t.session, 16)
		if err != nil {
			return fmt.Errorf("make an id: %w", err)
		}
		o.ID = id
	}
	public := append(template(o, pkcs11.CKO_PUBLIC_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true), pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, p256))
	private := append(template(o, pkcs11.CKO_PRIVATE_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_SIGN, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false))
	if _, _, err := t.ctx.GenerateKeyPair(t.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)}, public, private); err != nil {
		return fmt.Errorf("make the key: %w", err)
	}
	return nil
}

func (t *token) sign(digest []byte) ([]byte, error) {
	if len(digest) != 32 {
		return nil, fmt.Errorf("a digest of %d bytes, want 32", len(digest))
	}
	if err := t.ctx.SignInit(t.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}, t.key); err != nil {
		return nil, fmt.Errorf("begin to sign: %w", err)
	}
	sig, err := t.ctx.Sign(t.session, digest)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if len(sig) != 64 {
		return nil, fmt.Errorf("a signature of %d bytes, want 64", len(sig))
	}
	return sig, nil
}

func (t *token) close() {
	t.ctx.Finalize()
	t.ctx.Destroy()
}
