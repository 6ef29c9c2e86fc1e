package tokens

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// What a module made by Between does besides, by the value of BetweenVariable.
const (
	BetweenVariable = "PROBITY_TEST_MODULE"
	Prints          = "prints"    // a line on its standard output, as it is loaded
	Asks            = "asks"      // reads its standard input then, and wants its end
	FinalTry        = "final try" // the token says that one more wrong PIN locks it
	Locked          = "locked"    // the token says that it is locked
	Locks           = "locks"     // it says so when one logs in
)

// LoginsVariable names a file that gets a byte for each login through such a module.
const LoginsVariable = "PROBITY_TEST_LOGINS"

//go:embed testdata/module.c
var between []byte

// Between puts a module between the token and those who use it, from here on.
func (h *SoftHSM) Between(t testing.TB) {
	t.Helper()
	gcc := need.Command(t, "gcc")[0]
	headers, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "module.so")
	cmd := exec.Command(gcc, "-shared", "-fPIC", "-Wall", "-Werror", "-I"+strings.TrimSpace(string(headers)), fmt.Sprintf("-DSOFTHSM=%q", h.Module), "-o", path, "-x", "c", "-", "-ldl")
	cmd.Stdin = bytes.NewReader(between)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the module: %v\n%s", err, out)
	}
	h.Module = path
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
