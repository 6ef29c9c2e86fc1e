//go:build unix

package nodekey_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/evidence/nodekey"
	"probity/evidence/redact"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/evidence/verify"
	"probity/tests/tokens"
)

func source(t testing.TB, text string) nodekey.Source {
	t.Helper()
	s, err := nodekey.ParseSource(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseSource(t *testing.T) {
	for text, want := range map[string]string{
		"": "file", "file": "file", "credential:node.key": "credential", "tpm": "tpm", "tpm:/dev/tpmrm1": "tpm", "pkcs11:object=n?module-path=/m.so": "pkcs11",
		"file:/x": "", "credential": "", "credential:": "", "credential:../x": "", "credential:a/b": "", "tpm:": "", "tpm:device": "", "pkcs11": "", "pkcs11:object=n": "", "hsm": "", "File": "",
	} {
		s, err := nodekey.ParseSource(text)
		if (err == nil) != (want != "") || s.Kind != want {
			t.Errorf("%q: %q, %v", text, s.Kind, err)
		}
	}
}

// seal writes a chunk as an agent with this key does, and stops.
func seal(t testing.TB, s *sign.Signer, dir, state string, n int) {
	t.Helper()
	clock := func() evidence.Clock {
		return evidence.Clock{BootNs: 1, Wall: evidence.TimeOf(time.Now())}
	}
	sp, err := spool.Open(spool.Config{Dir: dir, State: state, Node: "node-a", BootID: "boot", Agent: "probity test", Signer: s, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	err = sp.Append("", func(c evidence.Clock) []redact.Line {
		return noRules.Lines(&evidence.Gap{GapID: fmt.Sprintf("%032x", n), Scope: evidence.ScopeNode, Reason: evidence.GapAgentDown, From: c.Wall, To: c.Wall, Count: evidence.Loss{N: 1}})
	})
	if err := errors.Join(err, sp.Flush(t.Context()), sp.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
}

// A node's key goes from a file to a credential, a TPM, another key of the TPM, a
// token, another key of the token, and back to a file. After each step it signs; and
// at the end all that was ever signed verifies from the first key alone.
func TestEverySource(t *testing.T) {
	tpm, hsm, helper := tokens.NewTPM(t), tokens.NewSoftHSM(t), tokens.Helper(t)
	credentials := t.TempDir()
	if _, err := sign.CreateFile(credentials, "node.key"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	root := t.TempDir()
	state, dir := filepath.Join(root, "state"), filepath.Join(root, "spool")
	cfg := nodekey.Config{State: state, Source: source(t, "file"), Helper: helper}

	if _, _, err := nodekey.Show(cfg); err == nil || !strings.Contains(err.Error(), "no key yet") {
		t.Errorf("show without a key: %v", err)
	}
	if _, _, err := nodekey.Rotate(cfg, cfg.Source); err == nil || !strings.Contains(err.Error(), "no key yet") {
		t.Errorf("rotate without a key: %v", err)
	}
	s, err := nodekey.Init(cfg)
	if err != nil {
		t.Fatal(err)
	}
	first := s.Public()
	if _, err := nodekey.Init(cfg); !errors.Is(err, nodekey.ErrExists) {
		t.Errorf("a second init: %v", err)
	}
	seal(t, s, dir, state, 0)

	last := first
	steps := []string{"file", "credential:node.key", "tpm:" + tpm.Socket, "tpm:" + tpm.Socket, hsm.URI("one"), hsm.URI("two")}
	for i, step := range steps {
		to := source(t, step)
		before, after, err := nodekey.Rotate(cfg, to)
		if err != nil {
			t.Fatalf("to %s: %v", step, err)
		}
		if before.KeyID() != last.KeyID() {
			t.Fatalf("to %s: before it there was %s, not %s", step, before.KeyID(), last.KeyID())
		}
		cfg.Source, last = to, after
		if s, err = nodekey.Open(cfg); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		if s.KeyID() != after.KeyID() || len(s.Successions()) != i+1 {
			t.Fatalf("%s: it is %s with %d before it", step, s.KeyID(), len(s.Successions()))
		}
		seal(t, s, dir, state, i+1)
		shown, public, err := nodekey.Show(cfg)
		if err != nil || shown.KeyID != after.KeyID() || public.KeyID() != after.KeyID() || shown.Source != step || len(shown.Follows) != i+1 || time.Since(shown.Created) > time.Minute || shown.Problem != "" {
			t.Errorf("%s: %+v, %v", step, shown, err)
		}
	}
	// The old file is in the way of the way back.
	if _, _, err := nodekey.Rotate(cfg, source(t, "file")); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("over the old file: %v", err)
	}
	rep, err := verify.Path(t.Context(), []string{dir}, first, verify.Options{})
	if err != nil || !rep.Sound() || rep.Chunks != len(steps)+1 || len(rep.Followed) != len(steps) || len(rep.Logs) != 1 {
		t.Errorf("%d chunks, followed %d, %d logs, %v, %v", rep.Chunks, len(rep.Followed), len(rep.Logs), rep.Findings, err)
	}
	// A token that is not there is waited for, and any other key is not taken.
	cfg.Helper = "/nowhere"
	if s, err = nodekey.Open(cfg); err != nil {
		t.Fatal(err)
	}
	if err := s.Ready(); !errors.Is(err, sign.ErrAway) || s.KeyID() != last.KeyID() {
		t.Errorf("without its helper: %v", err)
	}
	s.Close()
	cfg.Helper, cfg.Source = helper, source(t, hsm.URI("one"))
	if _, err := nodekey.Open(cfg); !errors.Is(err, sign.ErrKeyLost) {
		t.Errorf("back to the key before: %v", err)
	}
}

// Beside an agent nothing is made and nothing is changed.
func TestRunningAgent(t *testing.T) {
	dir := t.TempDir()
	cfg := nodekey.Config{State: dir, Source: source(t, "file")}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	lock := func(how int) {
		t.Helper()
		if err := unix.Flock(int(d.Fd()), how); err != nil {
			t.Fatal(err)
		}
	}
	lock(unix.LOCK_EX)
	if _, err := nodekey.Init(cfg); !errors.Is(err, nodekey.ErrRunning) {
		t.Errorf("init: %v", err)
	}
	lock(unix.LOCK_UN)
	s, err := nodekey.Init(cfg)
	if err != nil {
		t.Fatal(err)
	}
	lock(unix.LOCK_EX)
	if _, _, err := nodekey.Rotate(cfg, cfg.Source); !errors.Is(err, nodekey.ErrRunning) || !strings.Contains(err.Error(), "systemctl stop") {
		t.Errorf("rotate: %v", err)
	}
	if shown, _, err := nodekey.Show(cfg); err != nil || shown.KeyID != s.KeyID() {
		t.Errorf("show: %+v, %v", shown, err)
	}
}

// Wherever a rotation is cut off, the next start has the old key or the new one, and
// a further rotation works.
func TestRotationIsCutOff(t *testing.T) {
	whole := t.TempDir()
	cfg := nodekey.Config{State: whole, Source: source(t, "file")}
	old, err := nodekey.Init(cfg)
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(whole, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	oldKey, oldPub := read(sign.KeyFile), read(sign.PublicFile)
	_, after, err := nodekey.Rotate(cfg, cfg.Source)
	if err != nil {
		t.Fatal(err)
	}
	newKey, chain := read(sign.KeyFile), read(sign.ChainFile)
	for _, c := range []struct {
		why   string
		files map[string][]byte
		want  string
	}{
		{"after the new key", map[string][]byte{sign.KeyFile: oldKey, sign.PublicFile: oldPub, "node.key.next": newKey}, old.KeyID()},
		{"after the succession", map[string][]byte{sign.KeyFile: oldKey, sign.PublicFile: oldPub, "node.key.next": newKey, sign.ChainFile: chain}, old.KeyID()},
		{"after the key's place", map[string][]byte{sign.KeyFile: newKey, sign.PublicFile: oldPub, sign.ChainFile: chain}, after.KeyID()},
		{"half of node.pub", map[string][]byte{sign.KeyFile: newKey, sign.PublicFile: oldPub, sign.ChainFile: chain, ".node.pub.new": []byte("-----")}, after.KeyID()},
	} {
		t.Run(c.why, func(t *testing.T) {
			dir := t.TempDir()
			for name, b := range c.files {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cfg := nodekey.Config{State: dir, Source: cfg.Source}
			s, err := nodekey.Open(cfg)
			if err != nil || s.KeyID() != c.want {
				t.Fatalf("%v, %v", s, err)
			}
			if _, again, err := nodekey.Rotate(cfg, cfg.Source); err != nil {
				t.Error(err)
			} else if s, err := nodekey.Open(cfg); err != nil || s.KeyID() != again.KeyID() || s.Key(c.want) == nil {
				t.Errorf("the next rotation: %v", err)
			}
		})
	}
}

func TestNoCredential(t *testing.T) {
	cfg := nodekey.Config{State: t.TempDir(), Source: source(t, "credential:node.key")}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := nodekey.Open(cfg); err == nil || !strings.Contains(err.Error(), "LoadCredentialEncrypted=") {
		t.Errorf("without any: %v", err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", t.TempDir())
	if _, err := nodekey.Open(cfg); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without this one: %v", err)
	}
}

// While the key cannot be reached evidence waits, and nothing of it is lost.
func TestEvidenceWaits(t *testing.T) {
	tpm := tokens.NewTPM(t)
	root := t.TempDir()
	state, dir := filepath.Join(root, "state"), filepath.Join(root, "spool")
	cfg := nodekey.Config{State: state, Source: source(t, "tpm:"+tpm.Socket)}
	made, err := nodekey.Init(cfg)
	if err != nil {
		t.Fatal(err)
	}
	seal(t, made, dir, state, 0)
	tpm.Stop()
	s, err := nodekey.Open(cfg)
	if err != nil {
		t.Fatalf("a start without the TPM: %v", err)
	}
	defer s.Close()
	sp, err := spool.Open(spool.Config{Dir: dir, State: state, Node: "node-a", BootID: "boot", Agent: "probity test", Signer: s, Clock: func() evidence.Clock {
		return evidence.Clock{BootNs: 1, Wall: evidence.TimeOf(time.Now())}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := sp.Append("", func(c evidence.Clock) []redact.Line {
		return noRules.Lines(&evidence.Gap{GapID: strings.Repeat("1", 32), Scope: evidence.ScopeNode, Reason: evidence.GapAgentDown, From: c.Wall, To: c.Wall, Count: evidence.Loss{N: 1}})
	}); err != nil {
		t.Fatal(err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sp.Flush(canceled); !errors.Is(err, sign.ErrAway) {
		t.Fatalf("without the TPM: %v", err)
	}
	if s.Failing() == nil {
		t.Error("nothing is said to fail")
	}
	tpm.Start()
	if err := errors.Join(sp.Flush(t.Context()), sp.Close()); err != nil {
		t.Fatal(err)
	}
	rep, err := verify.Path(t.Context(), []string{dir}, made.Public(), verify.Options{})
	if err != nil || !rep.Sound() || rep.Chunks != 2 {
		t.Errorf("%d chunks, %v, %v", rep.Chunks, rep.Findings, err)
	}
}

// A token that comes up after the first start with it is waited for, as its own key
// and not as the one before.
func TestTokenIsLateAfterRotation(t *testing.T) {
	hsm, helper := tokens.NewSoftHSM(t), tokens.Helper(t)
	root := t.TempDir()
	state, dir := filepath.Join(root, "state"), filepath.Join(root, "spool")
	late := filepath.Join(root, "late") // the helper, later
	cfg := nodekey.Config{State: state, Source: source(t, "file"), Helper: helper}
	first, err := nodekey.Init(cfg)
	if err != nil {
		t.Fatal(err)
	}
	seal(t, first, dir, state, 0)
	for i, object := range []string{"one", "two"} { // from a file, and from another token
		to := source(t, hsm.URI(object))
		_, after, err := nodekey.Rotate(cfg, to)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Source, cfg.Helper = to, late
		s, err := nodekey.Open(cfg)
		if err != nil {
			t.Fatalf("%s: a start without it: %v", object, err)
		}
		if err := s.Ready(); !errors.Is(err, sign.ErrAway) || s.KeyID() != after.KeyID() || len(s.Successions()) != i+1 {
			t.Errorf("%s: without it: %v; its key is %s, want %s", object, err, s.KeyID(), after.KeyID())
		}
		if err := os.Symlink(helper, late); err != nil {
			t.Fatal(err)
		}
		seal(t, s, dir, state, i+1)
		if err := os.Remove(late); err != nil {
			t.Fatal(err)
		}
		cfg.Helper = helper
		if left, _ := filepath.Glob(filepath.Join(state, "node.next")); len(left) != 0 {
			t.Errorf("%s: %v is left", object, left)
		}
	}
	rep, err := verify.Path(t.Context(), []string{dir}, first.Public(), verify.Options{})
	if err != nil || !rep.Sound() || rep.Chunks != 3 || len(rep.Followed) != 2 {
		t.Errorf("%d chunks, followed %d, %v, %v", rep.Chunks, len(rep.Followed), rep.Findings, err)
	}
}

// A start whose token cannot be reached asks for it once, and goes on: a hang, of half
// a minute each time, must not use up the time that a service has to start.
func TestStartAsksOnce(t *testing.T) {
	dir := t.TempDir()
	helper, started := filepath.Join(dir, "helper"), filepath.Join(dir, "started")
	if err := os.WriteFile(helper, fmt.Appendf(nil, "#!/bin/sh\necho >>%s\nexit 1\n", started), 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := nodekey.Config{State: filepath.Join(dir, "state"), Source: source(t, "file"), Helper: helper}
	was, err := nodekey.Init(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Source = source(t, "pkcs11:object=n?module-path="+helper)
	s, err := nodekey.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Ready(); !errors.Is(err, sign.ErrAway) || s.KeyID() != was.KeyID() {
		t.Errorf("%s: %v", s.KeyID(), err)
	}
	if b, err := os.ReadFile(started); err != nil || len(b) != 1 {
		t.Errorf("the helper was started %d times (%v)", len(b), err)
	}
}

// A PIN that the token refused is not tried again, because it locks itself: another is.
func TestWrongPIN(t *testing.T) {
	hsm, helper := tokens.NewSoftHSM(t), tokens.Helper(t)
	hsm.Between(t)
	dir := t.TempDir()
	logins := filepath.Join(dir, "logins")
	t.Setenv(tokens.LoginsVariable, logins)
	cfg := nodekey.Config{State: filepath.Join(dir, "state"), Source: source(t, hsm.URI("node")), Helper: helper}
	made, err := nodekey.Init(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(made.Close(), os.Remove(logins), os.WriteFile(hsm.PINFile, []byte("1111"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s, err := nodekey.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for said := ""; !strings.Contains(said, "not tried again"); { // which the second attempt says, after a second
		err := s.Ready()
		if !errors.Is(err, sign.ErrAway) || !strings.Contains(err.Error(), "refuses the PIN") || s.KeyID() != made.KeyID() {
			t.Fatalf("%s: %v", s.KeyID(), err)
		}
		said = err.Error()
	}
	if b, err := os.ReadFile(logins); err != nil || len(b) != 1 {
		t.Errorf("it was tried %d times (%v)", len(b), err)
	}
	if err := os.WriteFile(hsm.PINFile, []byte(hsm.PIN), 0o600); err != nil {
		t.Fatal(err)
	}
	seal(t, s, filepath.Join(dir, "spool"), cfg.State, 0)
}
