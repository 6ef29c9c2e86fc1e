package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"probity/tests/need"
	"probity/tests/tokens"
)

// An agent that a token refuses the PIN at its first start, or whose PIN is locked, says so
// by its exit status, by which the unit knows not to start it again: a token locks itself
// after a few, and only its security officer unlocks it.
func TestRefusedPIN(t *testing.T) {
	need.Root(t)
	hsm, helper := tokens.NewSoftHSM(t), tokens.Helper(t)
	hsm.Between(t)
	if err := os.WriteFile(hsm.PINFile, []byte("1111\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for how, want := range map[string]string{"": "refuses the PIN", tokens.Locked: "PIN is locked", tokens.Locks: "PIN is locked"} {
		t.Run(how, func(t *testing.T) {
			t.Setenv(tokens.BetweenVariable, how)
			dir := t.TempDir()
			config := filepath.Join(dir, "probity.yaml")
			text := "key: " + hsm.URI("node") + "\nkeyHelper: " + helper + "\nstate: " + dir + "/state\npolicies: " + t.TempDir() + "\n"
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, errs, code := command(t, "probity agent --config DIR/probity.yaml", dir)
			if code != exitPIN || !strings.Contains(errs, want) {
				t.Errorf("exit status %d\n%s", code, errs)
			}
		})
	}
	unit, err := os.ReadFile("../packaging/systemd/probity.service")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(unit), "\nRestartPreventExitStatus=4\n") {
		t.Error("the unit starts it again")
	}
}
