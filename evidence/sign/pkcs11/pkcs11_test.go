package pkcs11

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/evidence/sign"
	"probity/evidence/sign/pkcs11/wire"
	"probity/tests/need"
	"probity/tests/tokens"
)

// behave is the variable that makes this test binary a helper that misbehaves.
const behave = "PROBITY_TEST_HELPER"

func TestMain(m *testing.M) {
	if how := os.Getenv(behave); how != "" {
		misbehave(how)
	}
	os.Exit(m.Run())
}

// misbehave is a helper that goes wrong.
func misbehave(how string) {
	opens := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			panic(err)
		}
		if _, _, err := wire.Read(os.Stdin); err != nil {
			os.Exit(3)
		}
		wire.Write(os.Stdout, wire.Done, der)
		return key
	}
	asked := func() { wire.Read(os.Stdin) }
	switch how {
	case "dies at once":
		fmt.Fprintln(os.Stderr, "cannot\x1b open shared object")
		os.Exit(7)
	case "dies while it signs":
		opens()
		asked()
		os.Exit(9)
	case "hangs at once", "hangs and leaves a child":
		if how != "hangs at once" {
			c := exec.Command("sleep", "1000")
			c.Stderr = os.Stderr
			c.Start()
			os.WriteFile(os.Getenv("PROBITY_TEST_PID"), []byte(strconv.Itoa(c.Process.Pid)), 0o600)
		}
		asked()
		select {}
	case "hangs while it signs":
		opens()
		asked()
		select {}
	case "says it in text":
		fmt.Println("Segmentation fault (core dumped)")
	case "answers too much":
		asked()
		os.Stdout.Write([]byte{0xff, 0xff, 0xff, 0xff})
		select {}
	case "no public key":
		asked()
		wire.Write(os.Stdout, wire.Done, []byte("key"))
	case "another kind":
		asked()
		wire.Write(os.Stdout, 9, nil)
	case "refuses":
		asked()
		wire.Write(os.Stdout, wire.Refused, []byte("CKR_PIN_INCORRECT\x1b[31m"))
	case "is locked":
		asked()
		wire.Write(os.Stdout, wire.Locked, []byte("CKR_PIN_LOCKED\x1b[31m"))
	case "short signature":
		opens()
		asked()
		wire.Write(os.Stdout, wire.Done, make([]byte, 63))
	case "wrong signature":
		opens()
		asked()
		wire.Write(os.Stdout, wire.Done, bytes.Repeat([]byte{7}, 64))
	case "floods its standard error":
		go func() {
			for {
				os.Stderr.Write(make([]byte, 1<<16))
			}
		}()
		key := opens()
		for {
			_, d, err := wire.Read(os.Stdin)
			if err != nil {
				os.Exit(0)
			}
			r, s, _ := ecdsa.Sign(rand.Reader, key, d)
			wire.Write(os.Stdout, wire.Done, append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
		}
	}
	os.Exit(0)
}

// A helper that dies, hangs or answers nonsense is an error in bounded time, and
// nothing of it stays.
func TestHelperMisbehaves(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for how, want := range map[string]string{
		"dies at once": `exit status 7, and said "cannot\x1b open shared object"`, "dies while it signs": "exit status 9", "hangs at once": "none within", "hangs while it signs": "none within",
		"says it in text": "not a frame", "answers too much": "not a frame", "no public key": "is the key", "another kind": "begins with 9",
		"refuses": `"CKR_PIN_INCORRECT\x1b[31m"`, "is locked": `locked: "CKR_PIN_LOCKED\x1b[31m"`, "short signature": "63 bytes", "wrong signature": "no signature of", "floods its standard error": "",
	} {
		t.Run(how, func(t *testing.T) {
			t.Setenv(behave, how)
			cfg := Config{Helper: self, URI: URI{Module: self, Object: "node"}}
			if strings.HasPrefix(how, "hangs") {
				cfg.Patience = 300 * time.Millisecond
			}
			var pid int
			s, err := sign.Reach(func() (sign.Key, error) {
				k, err := Open(cfg)
				if err != nil {
					return nil, err
				}
				pid = k.cmd.Process.Pid
				return k, nil
			}, func() (*sign.PublicKey, error) { return nil, nil })
			if err == nil {
				_, err = s.Sign("t", []byte("payload"))
				if cerr := s.Close(); cerr != nil {
					t.Error(cerr)
				}
			}
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
			if pid != 0 {
				if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
					t.Error("the helper is still there")
				}
			}
		})
	}
}

// What a helper has started ends with it.
func TestHelperLeavesAChild(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	t.Setenv(behave, "hangs and leaves a child")
	t.Setenv("PROBITY_TEST_PID", pidFile)
	var pid []byte
	for patience := 300 * time.Millisecond; len(pid) == 0; patience *= 2 { // until it has come so far
		if _, err := Open(Config{Helper: self, URI: URI{Module: self, Object: "node"}, Patience: patience}); err == nil || !strings.Contains(err.Error(), "none within") {
			t.Fatalf("got %v", err)
		}
		if pid, err = os.ReadFile(pidFile); err != nil && (!errors.Is(err, fs.ErrNotExist) || patience > time.Minute) {
			t.Fatal(err)
		}
	}
	n, err := strconv.Atoi(string(pid))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(n, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for {
		ended, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || ended != 1 {
			t.Errorf("its child is still there (%v)", err)
		}
		return
	}
}

func TestHelperIsOurs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "helper")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := ours(path); err != nil {
		t.Error(err)
	}
	// Its name is in a directory that everybody can write to, or the directory that
	// the name leads to is one.
	open, shut := filepath.Join(dir, "open"), filepath.Join(dir, "shut")
	link, behind := filepath.Join(open, "link"), filepath.Join(shut, "link")
	if err := errors.Join(os.Mkdir(open, 0o777), os.Chmod(open, 0o777), os.Mkdir(shut, 0o755), os.Symlink(path, link),
		os.Symlink(filepath.Join(open, "there"), behind), os.WriteFile(filepath.Join(open, "there"), nil, 0o755),
		os.WriteFile(filepath.Join(dir, "lax"), nil, 0o755), os.Chmod(filepath.Join(dir, "lax"), 0o775)); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{
		filepath.Join(dir, "lax"): "mode 0775", dir: "not a regular file", "helper": "absolute", filepath.Join(dir, "none"): "no such file", link: "in its place", behind: "in its place",
	} {
		for what, cfg := range map[string]Config{"the helper": {Helper: p}, "the module": {Helper: path, URI: URI{Module: p}}} {
			if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %s: got %v, want %q", what, p, err, want)
			}
		}
	}
	if err := errors.Join(os.Chmod(open, 0o777|fs.ModeSticky), ours(link), ours(behind)); err != nil {
		t.Error(err) // as /tmp is
	}
}

func TestReadPIN(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pin")
	for content, want := range map[string]string{"1234\n": "1234", "1234": "1234", "12 34\n\n": "12 34\n", "": "!", "\n": "!", strings.Repeat("1", 257): "!", strings.Repeat("1", 4000): "!"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadPIN(path); (err != nil) != (want == "!") || err == nil && string(got) != want {
			t.Errorf("%.10q: %q, %v", content, got, err)
		}
	}
	if err := errors.Join(os.WriteFile(path, []byte("1234"), 0o600), os.Chmod(path, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPIN(path); err == nil {
		t.Error("a PIN that everybody can read")
	}
}

func config(t testing.TB, h *tokens.SoftHSM, helper, object string) Config {
	t.Helper()
	u, err := ParseURI(h.URI(object))
	if err != nil {
		t.Fatal(err)
	}
	pin, err := ReadPIN(u.PINSource)
	if err != nil {
		t.Fatal(err)
	}
	return Config{Helper: helper, URI: u, PIN: pin}
}

// A real token: the key is made on it, found again, and signs; what is not exactly
// one key is refused.
func TestSoftHSM(t *testing.T) {
	h, helper := tokens.NewSoftHSM(t), tokens.Helper(t)
	cfg := config(t, h, helper, "node")
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "no such private key") {
		t.Fatalf("an empty token: %v", err)
	}
	made, err := Generate(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	if _, err := Generate(cfg); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("made over another: %v", err)
	}
	k, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if k.Public().KeyID() != made.Public().KeyID() {
		t.Error("another key was opened")
	}
	digest := sha256.Sum256([]byte("x"))
	pub, err := x509.ParsePKIXPublicKey(k.Public().DER())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		r, s, err := k.SignDigest(digest)
		if err != nil {
			t.Fatal(err)
		}
		if !ecdsa.Verify(pub.(*ecdsa.PublicKey), digest[:], r, s) {
			t.Fatal("the signature does not match")
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", k.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !bytes.Contains(status, []byte(want)) {
			t.Errorf("the helper has not %q:\n%s", want, status)
		}
	}
	if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", k.cmd.Process.Pid)); err == nil && os.Geteuid() != 0 {
		t.Error("another process of this user can look into the helper")
	}

	for why, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"another PIN":     {func(c *Config) { c.PIN = []byte("1111") }, "PIN_INCORRECT"},
		"no PIN":          {func(c *Config) { c.PIN = nil }, "wants a PIN"},
		"another token":   {func(c *Config) { c.URI.Token = "other" }, "none of"},
		"another maker":   {func(c *Config) { c.URI.Manufacturer = "other" }, "none of"},
		"another serial":  {func(c *Config) { c.URI.Serial = "other" }, "none of"},
		"another object":  {func(c *Config) { c.URI.Object = "other" }, "no such private key"},
		"another id":      {func(c *Config) { c.URI.ID = []byte{1} }, "no such private key"},
		"no module":       {func(c *Config) { c.URI.Module = "/nowhere.so" }, "the module"},
		"not a module":    {func(c *Config) { c.URI.Module = helper }, "cannot be loaded"},
		"another slot":    {func(c *Config) { n := uint64(99); c.URI.Slot = &n }, "none of"},
		"killed by hand":  {nil, "signal: killed"},
		"a missing label": {func(c *Config) { c.URI.Object, c.URI.ID = "", nil }, "are missing"},
	} {
		t.Run(why, func(t *testing.T) {
			if c.change == nil {
				if err := k.cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				if _, _, err := k.SignDigest(digest); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				return
			}
			other := cfg
			c.change(&other)
			if k, err := Open(other); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, %v, want %q", k, err, c.want)
			}
		})
	}
	// Two of the same name are none.
	h.Token(t, need.Command(t, "softhsm2-util")[0], h.Label)
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "names 2 tokens") {
		t.Errorf("two tokens: %v", err)
	}
}

// A module writes to where the frames go, or reads where they come from, and a token has
// one try left, or none.
func TestModuleBetween(t *testing.T) {
	h, helper := tokens.NewSoftHSM(t), tokens.Helper(t)
	h.Between(t)
	logins := filepath.Join(t.TempDir(), "logins")
	t.Setenv(tokens.LoginsVariable, logins)
	cfg := config(t, h, helper, "node")
	k, err := Generate(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	loggedIn := func() int {
		t.Helper()
		b, err := os.ReadFile(logins)
		if err != nil {
			t.Fatal(err)
		}
		return len(b)
	}
	for how, want := range map[string]string{"": "", tokens.Prints: "", tokens.Asks: "", tokens.FinalTry: "one more wrong PIN", tokens.Locked: "is locked", tokens.Locks: "is locked"} {
		t.Run(how, func(t *testing.T) {
			t.Setenv(tokens.BetweenVariable, how)
			c, before := cfg, loggedIn()
			c.Patience = time.Minute
			k, err := Open(c)
			if err == nil {
				_, _, err = k.SignDigest([32]byte{1})
				k.Close()
			}
			if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || errors.Is(err, ErrPIN) || errors.Is(err, ErrLocked) != (want == "is locked")) {
				t.Errorf("got %v, want %q", err, want)
			}
			if logins := loggedIn() - before; (logins == 0) != (want != "" && how != tokens.Locks) {
				t.Errorf("it logged in %d times", logins)
			}
		})
	}
	before := loggedIn()
	cfg.PIN = []byte("1111")
	if _, err := Open(cfg); !errors.Is(err, ErrPIN) || loggedIn()-before != 1 {
		t.Errorf("a wrong PIN: %v, tried %d times", err, loggedIn()-before)
	}
}

// Where root asks for it, the helper is somebody else.
func TestHelperUser(t *testing.T) {
	need.Root(t)
	helper := tokens.Helper(t)
	for d := filepath.Dir(helper); d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	k := &Key{cfg: Config{Helper: helper, User: &User{UID: 65534, GID: 65534}}, said: new(tail)}
	if err := k.run(); err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if _, err := k.ask(wire.OpOpen, []byte(`{"module":"/nowhere.so","object":"o"}`), 20*time.Second); err == nil || !strings.Contains(err.Error(), "nowhere.so") {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", k.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "Groups:\t \n", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the helper has not %q:\n%s", want, status)
		}
	}
}
