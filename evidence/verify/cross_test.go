package verify_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Evidence is verified where the verifier is, which need not be a node. (Two systems: each
// compiles its own standard library.)
func TestBuildsElsewhere(t *testing.T) {
	for _, target := range []string{"darwin/arm64", "windows/amd64"} {
		t.Run(target, func(t *testing.T) {
			system, arch, _ := strings.Cut(target, "/")
			cmd := exec.Command("go", "build", "-o", os.DevNull, "probity/evidence/verify")
			cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH="+arch, "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
