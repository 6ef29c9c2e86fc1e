package sign_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"probity/evidence/sign"
	"probity/tests/need"
)

const placeChild = "SIGN_TEST_PLACE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(placeChild); dir != "" {
		runtime.LockOSThread() // strace counts the calls of each thread by itself
		if err := sign.Place(dir, "secret", []byte("secret\n"), 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Wherever it is killed, a secret is there whole, under one name, or not at all.
func TestPlaceIsKilled(t *testing.T) {
	need.Command(t, "strace")
	killed, placed := 0, 0
	for _, call := range []string{"openat", "write", "fchmod", "fchmodat", "fsync", "close", "linkat", "unlinkat"} {
		for n, alive := 1, false; !alive; n++ {
			dir := t.TempDir()
			cmd := exec.Command("strace", "-f", "-o", os.DevNull, "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n), os.Args[0])
			cmd.Env = append(os.Environ(), placeChild+"="+dir)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			switch {
			case err == nil:
				alive = true // it makes fewer of these calls
			case !errors.As(err, &exit) || exit.ExitCode() == 3:
				t.Fatalf("%s %d: %v\n%s", call, n, err, out)
			default:
				killed++
			}
			names, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(names) > 1 || len(names) == 1 && names[0].Name() != "secret" {
				t.Errorf("killed at %s %d: it leaves %v", call, n, names)
			}
			again := sign.Place(dir, "secret", []byte("secret\n"), 0o600)
			if len(names) == 1 {
				placed++
				if !errors.Is(again, fs.ErrExist) {
					t.Errorf("killed at %s %d: it is there, and again: %v", call, n, again)
				}
			} else if again != nil {
				t.Errorf("killed at %s %d: it is not there, and again: %v", call, n, again)
			}
			name := filepath.Join(dir, "secret")
			b, err := os.ReadFile(name)
			if err != nil || string(b) != "secret\n" {
				t.Errorf("killed at %s %d: %q, %v", call, n, b, err)
			}
			var st unix.Stat_t
			if err := unix.Stat(name, &st); err != nil || st.Nlink != 1 || st.Mode&0o777 != 0o600 {
				t.Errorf("killed at %s %d: %d names, mode %o, %v", call, n, st.Nlink, st.Mode, err)
			}
		}
	}
	t.Logf("killed %d times, there after %d runs", killed, placed)
	if killed < 5 {
		t.Errorf("killed %d times only", killed)
	}
}
