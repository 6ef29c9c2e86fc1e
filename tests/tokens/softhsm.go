package tokens

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"probity/tests/need"
)

// SoftHSM is a PKCS#11 token in software.
type SoftHSM struct {
	Module  string // path of its module
	Label   string // the token's
	PIN     string
	PINFile string // with the PIN in it, 0600
	conf    string
}

// NewSoftHSM needs SoftHSM, and makes one token with nothing in it. What this
// process starts finds it, by $SOFTHSM2_CONF.
func NewSoftHSM(t testing.TB) *SoftHSM {
	t.Helper()
	util := need.Command(t, "softhsm2-util")[0]
	var module string
	for _, p := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/*/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so"} {
		if found, _ := filepath.Glob(p); len(found) > 0 {
			module = found[0]
			break
		}
	}
	if module == "" {
		need.File(t, "SoftHSM's module", fmt.Errorf("libsofthsm2.so: %w", fs.ErrNotExist))
	}
	dir := t.TempDir()
	h := &SoftHSM{Module: module, Label: "probity test", PIN: "246810", PINFile: filepath.Join(dir, "pin"), conf: filepath.Join(dir, "softhsm2.conf")}
	if err := errors.Join(
		os.Mkdir(filepath.Join(dir, "tokens"), 0o700),
		os.WriteFile(h.conf, fmt.Appendf(nil, "directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\n", dir), 0o600),
		os.WriteFile(h.PINFile, []byte(h.PIN+"\n"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", h.conf)
	h.Token(t, util, h.Label)
	return h
}

// Token makes a further one.
func (h *SoftHSM) Token(t testing.TB, util, label string) {
	t.Helper()
	if out, err := exec.Command(util, "--init-token", "--free", "--label", label, "--so-pin", "13579", "--pin", h.PIN).CombinedOutput(); err != nil {
		t.Fatalf("make a token: %v\n%s", err, out)
	}
}

// URI names a key on it.
func (h *SoftHSM) URI(object string) string {
	return fmt.Sprintf("pkcs11:token=probity%%20test;object=%s?module-path=%s&pin-source=%s", object, h.Module, h.PINFile)
}

// Helper builds probity-pkcs11 into a directory of the test's, and returns its path.
func Helper(t testing.TB) string {
	t.Helper()
	need.Command(t, "gcc") // cgo
	path := filepath.Join(t.TempDir(), "probity-pkcs11")
	cmd := exec.Command("go", "build", "-o", path, "probity/token")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the helper: %v\n%s", err, out)
	}
	return path
}
