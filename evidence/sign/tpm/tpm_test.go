package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"probity/evidence/sign"
	"probity/tests/tokens"
)

func made(t testing.TB, path string) []byte {
	t.Helper()
	b, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// signs has the key sign something, and checks it by the public key alone.
func signs(t testing.TB, k sign.Key) {
	t.Helper()
	digest := sha256.Sum256([]byte(t.Name()))
	r, s, err := k.SignDigest(digest)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.ParsePKIXPublicKey(k.Public().DER())
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.Verify(pub.(*ecdsa.PublicKey), digest[:], r, s) {
		t.Error("the signature does not match")
	}
}

func TestTPM(t *testing.T) {
	m := tokens.NewTPM(t)
	blob := made(t, m.Socket)
	for range 5 { // more than the TPM has room for, if something stayed in it
		k, err := Open(m.Socket, blob)
		if err != nil {
			t.Fatal(err)
		}
		signs(t, k)
		if p, err := PublicOf(blob); err != nil || p.KeyID() != k.Public().KeyID() {
			t.Errorf("%v, %v", p, err)
		}
		if err := errors.Join(k.Close(), k.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if other := made(t, m.Socket); bytes.Equal(other, blob) {
		t.Error("the same key twice")
	}
	// After loss of power it is still that TPM's key.
	m.Stop()
	m.Start()
	k, err := Open(m.Socket, blob)
	if err != nil {
		t.Fatal(err)
	}
	signs(t, k)
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
}

// On another machine the blob is of no use.
func TestBlobIsOfOneTPM(t *testing.T) {
	blob := made(t, tokens.NewTPM(t).Socket)
	if _, err := Open(tokens.NewTPM(t).Socket, blob); !errors.Is(err, ErrOtherTPM) {
		t.Errorf("got %v", err)
	}
}

// The private half of the blob is not the key: it is encrypted, and changing it or
// the public half is found by the TPM.
func TestBlobIsSealed(t *testing.T) {
	m := tokens.NewTPM(t)
	b, err := decode(made(t, m.Socket))
	if err != nil {
		t.Fatal(err)
	}
	b.private[len(b.private)-1] ^= 1
	text, err := encode(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(m.Socket, text); !errors.Is(err, ErrOtherTPM) {
		t.Errorf("a changed private half: %v", err)
	}
	b.private[len(b.private)-1] ^= 1
	other, err := decode(made(t, m.Socket))
	if err != nil {
		t.Fatal(err)
	}
	b.public = other.public
	if text, err = encode(b); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(m.Socket, text); err == nil {
		t.Error("another key's public half was taken")
	}
}

// A TPM that does not answer is given up in time, and one that goes away at once.
func TestAbsentTPM(t *testing.T) {
	m := tokens.NewTPM(t)
	blob := made(t, m.Socket)
	k, err := Open(m.Socket, blob)
	if err != nil {
		t.Fatal(err)
	}
	was := patience
	patience = 100 * time.Millisecond
	t.Cleanup(func() { patience = was })
	m.Hang()
	if _, _, err := k.SignDigest([32]byte{}); err == nil || !strings.Contains(err.Error(), "no answer within") {
		t.Errorf("a TPM that hangs: %v", err)
	}
	if _, _, err := k.SignDigest([32]byte{}); err == nil || !strings.Contains(err.Error(), "no answer within") {
		t.Errorf("it was asked again: %v", err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	patience = was
	m.Wake()
	if k, err = Open(m.Socket, blob); err != nil {
		t.Fatal(err)
	}
	m.Stop()
	if _, _, err := k.SignDigest([32]byte{}); err == nil {
		t.Error("a TPM that is gone signed")
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Open(m.Socket, blob); err == nil {
		t.Error("a TPM that is gone was opened")
	}
	if _, err := Open(t.TempDir(), blob); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("a directory: %v", err)
	}
}

// A read of a TPM's device waits for the answer only where the descriptor is blocking.
// The console's multiplexer stands for it: a device that everybody has, and that can
// be polled as well.
func TestDeviceBlocks(t *testing.T) {
	c, err := dial("/dev/ptmx")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.rw.(*os.File).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("flags %#o, %v", flags, err)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// What answers need not be a TPM.
func TestBadAnswers(t *testing.T) {
	for why, answer := range map[string]string{
		"nothing": "", "half a header": "\x80\x01\x00", "too long": "\x80\x01\xff\xff\xff\xff\x00\x00\x00\x00", "too short": "\x80\x01\x00\x00\x00\x04\x00\x00\x00\x00",
		"cut off": "\x80\x01\x00\x00\x01\x00\x00\x00\x00\x00", "more than it says": "\x80\x01\x00\x00\x00\x0a\x00\x00\x00\x00x", "success and nothing else": "\x80\x02\x00\x00\x00\x0a\x00\x00\x00\x00",
		"garbage": strings.Repeat("\x80\x02\x00\x00\x00\x40", 12)[:64],
	} {
		t.Run(why, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.Read(make([]byte, maxAnswer))
					c.Write([]byte(answer))
					c.Close()
				}
			}()
			if _, err := Create(path); err == nil {
				t.Error("it made a key")
			}
		})
	}
}

func publicBytes(t testing.TB, change func(*tpm2.TPMTPublic)) []byte {
	t.Helper()
	p := template
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}})
	change(&p)
	return tpm2.Marshal(tpm2.New2B(p))
}

func TestBlobRefuses(t *testing.T) {
	der := func(v any) []byte {
		b, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: b})
	}
	good := tpmKey{Type: loadable, EmptyAuth: true, Parent: int64(ownerHierarchy), Public: []byte{0, 0}, Private: []byte{0, 0}}
	with := func(f func(*tpmKey)) []byte { k := good; f(&k); return der(k) }
	type withPolicy struct {
		Type      asn1.ObjectIdentifier
		EmptyAuth bool     `asn1:"optional,explicit,tag:0"`
		Policy    []string `asn1:"optional,explicit,tag:1"`
		Parent    int64
		Public    []byte
		Private   []byte
	}
	for _, c := range []struct {
		why, err string
		text     []byte
	}{
		{"nothing", "PEM", nil},
		{"another block", "PEM", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}})},
		{"two blocks", "PEM", append(der(good), der(good)...)},
		{"not DER", "not a key file", pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: []byte{1, 2, 3}})},
		{"something behind", "not DER", pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: append(must(t, good), 0)})},
		{"a policy", "", der(withPolicy{Type: loadable, EmptyAuth: true, Policy: []string{"x"}, Parent: int64(ownerHierarchy)})},
		{"an importable key", "want a loadable one", with(func(k *tpmKey) { k.Type = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 4} })},
		{"a password", "password", with(func(k *tpmKey) { k.EmptyAuth = false })},
		{"another hierarchy", "parent", with(func(k *tpmKey) { k.Parent = 0x40000007 })},
		{"a transient parent", "parent", with(func(k *tpmKey) { k.Parent = 0x80000001 })},
		{"a parent that is too large", "parent", with(func(k *tpmKey) { k.Parent = 0x8100000001 })},
		{"no public area", "public area", der(good)},
		{"can leave the TPM", "can leave it", with(func(k *tpmKey) {
			k.Public = publicBytes(t, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false })
		})},
		{"was imported", "not made in a TPM", with(func(k *tpmKey) {
			k.Public = publicBytes(t, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false })
		})},
		{"decrypts", "signing key", with(func(k *tpmKey) {
			k.Public = publicBytes(t, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true })
		})},
		{"no point of the curve", "point", with(func(k *tpmKey) { k.Public = publicBytes(t, func(*tpm2.TPMTPublic) {}) })},
		{"huge", "more than", make([]byte, 1<<16)},
	} {
		t.Run(c.why, func(t *testing.T) {
			if _, err := PublicOf(c.text); err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %v, want %q", err, c.err)
			}
		})
	}
}

func must(t testing.TB, k tpmKey) []byte {
	t.Helper()
	b, err := asn1.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzPublicOf(f *testing.F) {
	f.Add(pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: must(f, tpmKey{Type: loadable, EmptyAuth: true, Parent: int64(ownerHierarchy), Public: publicBytes(f, func(*tpm2.TPMTPublic) {}), Private: []byte{0, 0}})}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := PublicOf(b); err == nil && !strings.HasPrefix(k.KeyID(), "SHA256:") {
			t.Error("a key without an id")
		}
	})
}
