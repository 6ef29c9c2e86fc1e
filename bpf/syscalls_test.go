package bpf

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// The tables have what x/sys has; its numbers are in them as constants.
func TestSyscallNumbers(t *testing.T) {
	if n, ok := SyscallNumber("execve"); !ok || n != unix.SYS_EXECVE {
		t.Errorf("execve is %d, %v", n, ok)
	}
	if _, ok := SyscallNumber("no_such_call"); ok {
		t.Error("a call that does not exist has a number")
	}
	dir, err := exec.Command(need.Command(t, "go")[0], "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	must(t, err)
	for _, arch := range []string{"amd64", "arm64"} {
		theirs, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "unix", "zsysnum_linux_"+arch+".go"))
		must(t, err)
		ours, err := os.ReadFile("syscalls_" + arch + ".go")
		must(t, err)
		for _, m := range regexp.MustCompile(`(?m)^\tSYS_(\w+)`).FindAllStringSubmatch(string(theirs), -1) {
			if line := `"` + strings.ToLower(m[1]) + `":`; !strings.Contains(string(ours), line) {
				t.Errorf("%s: %s is not in the table: make it again, one line `\"name\": unix.SYS_NAME,` for each of x/sys's constants", arch, line)
			}
		}
	}
}
