package sign_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"probity/evidence"
	"probity/evidence/sign"
	"probity/tests/need"
)

func created(t testing.TB) (string, *sign.Signer) {
	t.Helper()
	dir := t.TempDir()
	s, err := sign.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, s
}

func TestLoadOrCreate(t *testing.T) {
	dir, s := created(t)
	for name, mode := range map[string]os.FileMode{sign.KeyFile: 0o600, sign.PublicFile: 0o644} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != mode {
			t.Errorf("%s has mode %v, want %v", name, st.Mode(), mode)
		}
	}
	again, err := sign.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again.KeyID() != s.KeyID() {
		t.Fatal("a second start has another key")
	}
	pub, err := os.ReadFile(filepath.Join(dir, sign.PublicFile))
	if err != nil {
		t.Fatal(err)
	}
	key, err := sign.LoadPublic(pub)
	if err != nil {
		t.Fatal(err)
	}
	if key.KeyID() != s.KeyID() {
		t.Fatal("node.pub has another id")
	}
	block, _ := pem.Decode(pub)
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sshKey, err := ssh.NewPublicKey(k)
	if err != nil {
		t.Fatal(err)
	}
	if want := ssh.FingerprintSHA256(sshKey); key.KeyID() != want {
		t.Fatalf("key id %s, OpenSSH says %s", key.KeyID(), want)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 2 {
		t.Fatalf("temporary files are left: %v", left)
	}
}

// Of agents that start at once, all get the one key.
func TestCreateOnce(t *testing.T) {
	dir := t.TempDir()
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			if s, err := sign.LoadOrCreate(dir); err == nil {
				ids[i] = s.KeyID()
			} else {
				ids[i] = err.Error()
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] || !strings.HasPrefix(id, "SHA256:") {
			t.Fatalf("keys: %q", ids)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	rsaLike := func(k any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	for _, c := range []struct {
		why, err string
		spoil    func(dir, key string) error
	}{
		{"readable by others", "mode 0644", func(_, key string) error { return os.Chmod(key, 0o644) }},
		{"empty", "no PEM block", func(_, key string) error { return os.WriteFile(key, nil, 0o600) }},
		{"huge", "more than", func(_, key string) error { return os.WriteFile(key, make([]byte, 1<<20), 0o600) }},
		{"ed25519", "want ECDSA", func(_, key string) error { return os.WriteFile(key, rsaLike(ed), 0o600) }},
		{"P-384", "P-384", func(_, key string) error { return os.WriteFile(key, rsaLike(p384), 0o600) }},
		{"two blocks", "something follows", func(_, key string) error {
			b, err := os.ReadFile(key)
			return errors.Join(err, os.WriteFile(key, append(b, b...), 0o600))
		}},
		{"a link", "too many levels", func(dir, key string) error {
			return errors.Join(os.Rename(key, filepath.Join(dir, "other")), os.Symlink("other", key))
		}},
		{"others may write to its directory", "lets others put another key there", func(dir, _ string) error { return os.Chmod(dir, 0o777) }},
		{"a directory", "not a regular file", func(_, key string) error {
			return errors.Join(os.Remove(key), os.Mkdir(key, 0o700))
		}},
		{"lost", "the node's key is lost", func(_, key string) error { return os.Remove(key) }},
		{"another node.pub", "the node's key is lost", func(dir, _ string) error {
			_, other := created(t)
			return os.WriteFile(filepath.Join(dir, sign.PublicFile), other.Public().PEM(), 0o644)
		}},
	} {
		t.Run(c.why, func(t *testing.T) {
			dir, _ := created(t)
			if err := c.spoil(dir, filepath.Join(dir, sign.KeyFile)); err != nil {
				t.Fatal(err)
			}
			if _, err := sign.LoadOrCreate(dir); err == nil || !strings.Contains(err.Error(), c.err) {
				t.Fatalf("got %v, want an error with %q", err, c.err)
			}
		})
	}
}

// A key that somebody else owns is somebody else's.
func TestOwner(t *testing.T) {
	need.Root(t)
	for _, name := range []string{sign.KeyFile, ""} {
		dir, _ := created(t)
		if err := os.Chown(filepath.Join(dir, name), 65534, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := sign.LoadOrCreate(dir); err == nil || !strings.Contains(err.Error(), "uid 65534") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// One block and nothing else: another reader of the same file must not find
// another key in it.
func TestLoadPublicRefuses(t *testing.T) {
	_, s := created(t)
	_, o := created(t)
	own, other := string(s.Public().PEM()), string(o.Public().PEM())
	if _, err := sign.LoadPublic([]byte(own)); err != nil {
		t.Fatal(err)
	}
	for why, text := range map[string]string{
		"two keys":             own + other,
		"a broken key before":  strings.Replace(other, "-----END PUBLIC KEY-----", "-----END PUBLIC KEY----", 1) + own,
		"a broken block after": own + strings.Replace(other, "-----END", "----END", 1),
		"text after":           own + "comment\n",
		"a byte order mark":    "\ufeff" + own, // so that the block does not begin a line
		"NUL before":           "\x00" + own,
		"NUL after":            own + "\x00",
		"a header":             strings.Replace(own, "KEY-----\n", "KEY-----\nName: value\n\n", 1),
		"another kind":         strings.ReplaceAll(own, "PUBLIC KEY", "EC PUBLIC KEY"),
		"nothing":              "",
	} {
		if _, err := sign.LoadPublic([]byte(text)); err == nil {
			t.Errorf("%s: taken", why)
		}
	}
}

// A crash after node.key and before node.pub is completed by the next start.
func TestPublicIsCompleted(t *testing.T) {
	dir, s := created(t)
	if err := os.Remove(filepath.Join(dir, sign.PublicFile)); err != nil {
		t.Fatal(err)
	}
	again, err := sign.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, sign.PublicFile))
	if err != nil || again.KeyID() != s.KeyID() || !bytes.Equal(b, s.Public().PEM()) {
		t.Fatalf("node.pub was not written again: %v", err)
	}
}

func TestOpenTakesOneForm(t *testing.T) {
	_, s := created(t)
	_, other := created(t)
	payload := []byte(`{"a":"b"}`)
	line, err := s.Envelope(payload)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := sign.Open(line, s.Public()); err != nil || !bytes.Equal(got, payload) {
		t.Fatalf("own envelope: %q, %v", got, err)
	}
	text := string(line)
	sigAt := strings.Index(text, `"sig":"`) + len(`"sig":"`)
	sig := text[sigAt : strings.Index(text[sigAt:], `"`)+sigAt]
	for _, c := range []struct {
		why  string
		line string
		key  *sign.PublicKey
		err  error
	}{
		{"another key", text, other.Public(), sign.ErrKey},
		{"a space", strings.Replace(text, `,"payload"`, `, "payload"`, 1), s.Public(), sign.ErrEnvelope},
		{"order", `{"payload":"eyJhIjoiYiJ9","payloadType":"application/vnd.in-toto+json",` + text[strings.Index(text, `"signatures"`):], s.Public(), sign.ErrEnvelope},
		{"two signatures", strings.Replace(text, `}]}`, `},{"keyid":"x","sig":""}]}`, 1), s.Public(), sign.ErrEnvelope},
		{"no signature", text[:strings.Index(text, `[`)] + `[]}`, s.Public(), sign.ErrEnvelope},
		{"unknown member", strings.Replace(text, `{"payloadType"`, `{"a":1,"payloadType"`, 1), s.Public(), sign.ErrEnvelope},
		{"another type", strings.Replace(text, "in-toto+json", "in-toto", 1), s.Public(), sign.ErrEnvelope},
		{"trailing data", text + "{}", s.Public(), sign.ErrEnvelope},
		{"newline in base64", strings.Replace(text, "eyJh", `ey\nJh`, 1), s.Public(), sign.ErrEnvelope},
		{"other payload", strings.Replace(text, base64.StdEncoding.EncodeToString(payload), base64.StdEncoding.EncodeToString([]byte(`{"a":"c"}`)), 1), s.Public(), sign.ErrSignature},
		{"empty", "", s.Public(), sign.ErrEnvelope},
		{"huge", strings.Repeat("x", 32<<10), s.Public(), sign.ErrEnvelope},
		{"the other s", strings.Replace(text, sig, otherS(t, sig), 1), s.Public(), sign.ErrSignature},
		{"not DER", strings.Replace(text, sig, base64.StdEncoding.EncodeToString([]byte("sig")), 1), s.Public(), sign.ErrSignature},
	} {
		if _, err := sign.Open([]byte(c.line), c.key); !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", c.why, err, c.err)
		}
	}
}

// otherS returns the signature's twin, which verifies as well in most verifiers.
func otherS(t *testing.T, sig string) string {
	t.Helper()
	der, err := base64.StdEncoding.DecodeString(sig)
	if err != nil {
		t.Fatal(err)
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		t.Fatal(err)
	}
	rs.S.Sub(elliptic.P256().Params().N, rs.S)
	b, err := asn1.Marshal(rs)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(b)
}

// Base64 has spare bits at the end of most texts: only zero is taken there.
func TestPaddingBits(t *testing.T) {
	_, s := created(t)
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	for _, payload := range []string{"a", "ab", `{"a":1}`} { // one and two padding characters
		line, err := s.Envelope([]byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.IndexByte(line, '=') - 1
		i := strings.IndexByte(alphabet, line[at])
		line[at] = alphabet[i|1]
		if _, err := sign.Open(line, s.Public()); !errors.Is(err, sign.ErrEnvelope) {
			t.Errorf("%q with spare bits: got %v", payload, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	_, s := created(f)
	line, err := s.Envelope([]byte(`{"_type":"x"}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add([]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"","signatures":[{"keyid":"","sig":""}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := sign.Open(b, s.Public()); err == nil && !bytes.Equal(b, line) {
			t.Fatalf("taken: %q", b)
		}
	})
}

func FuzzLoadPublic(f *testing.F) {
	_, s := created(f)
	f.Add(s.Public().PEM())
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMAo=\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := sign.LoadPublic(b); err == nil && !strings.HasPrefix(k.KeyID(), "SHA256:") {
			t.Fatal("a key without an id")
		}
	})
}

// node.pub of another key gives way to one that follows it, and to no other; and not
// back.
func TestSettle(t *testing.T) {
	dir, old := created(t)
	_, next := created(t)
	if err := sign.Settle(dir, next); !errors.Is(err, sign.ErrKeyLost) {
		t.Fatalf("another key: %v", err)
	}
	link, err := old.Succeed(next.Public(), evidence.TimeOf(time.Unix(1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sign.WriteChain(dir, []evidence.Succession{link}), sign.Settle(dir, old)); err != nil {
		t.Fatalf("a rotation that was not carried out: %v", err)
	}
	if err := errors.Join(sign.Published(dir, old), sign.Settle(dir, next), sign.Published(dir, next)); err != nil {
		t.Fatal(err)
	}
	if next.Key(old.KeyID()) == nil || len(next.Successions()) != 1 {
		t.Error("it does not know whom it follows")
	}
	if err := sign.Settle(dir, old); !errors.Is(err, sign.ErrKeyLost) {
		t.Errorf("back to the old key: %v", err)
	}
	if err := sign.Published(dir, old); !errors.Is(err, sign.ErrKeyLost) {
		t.Errorf("the old key is published: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, sign.ChainFile), []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sign.Settle(dir, next); err == nil {
		t.Error("a chain that is none")
	}
}

// A chain that no start would read is not written: the one before stays.
func TestChainIsBounded(t *testing.T) {
	dir, a := created(t)
	_, b := created(t)
	link, err := a.Succeed(b.Public(), evidence.TimeOf(time.Unix(1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	links := []evidence.Succession{link}
	if err := sign.WriteChain(dir, links); err != nil {
		t.Fatal(err)
	}
	for range 12 { // 4,096 rotations
		links = append(links, links...)
	}
	if err := sign.WriteChain(dir, links); err == nil {
		t.Error("written")
	}
	if err := sign.Recall(dir, b); err != nil || len(b.Successions()) != 1 {
		t.Errorf("%d successions, %v", len(b.Successions()), err)
	}
}

func FuzzChain(f *testing.F) {
	_, a := created(f)
	_, b := created(f)
	link, err := a.Succeed(b.Public(), evidence.TimeOf(time.Unix(1, 0)))
	if err != nil {
		f.Fatal(err)
	}
	line, err := evidence.EncodeSuccession(link)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(line, '\n'))
	f.Fuzz(func(t *testing.T, text []byte) {
		links, err := sign.ParseChain(text)
		if err == nil && b.Inherit(links) == nil && b.Key(a.KeyID()) == nil {
			t.Error("it leads to this key from nowhere")
		}
	})
}
