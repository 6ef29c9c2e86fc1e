package sandbox

import (
	"os"
	"strings"
	"testing"

	"probity/tests/gvisor"
	"probity/tests/need"
)

// A container of gVisor itself, created and not started, as it waits at the
// barrier. The file is also given the shape of a released one, which Bazel
// links without its modules, under a name that says nothing.
func TestRunsc(t *testing.T) {
	runsc := need.Runsc(t)
	t.Run("module", func(t *testing.T) {
		f, v := judge(t, gvisor.Create(t, runsc, nil).Pid)
		if v.Kind != GVisor || v.UnlessNative || f.Program.Module != gvisorModule || !strings.Contains(v.Why, "gvisor.dev/gvisor/runsc") {
			t.Errorf("%+v: %+v", f, v)
		}
	})
	t.Run("no modules", func(t *testing.T) {
		b, err := os.ReadFile(runsc)
		if err != nil {
			t.Fatal(err)
		}
		f, v := judge(t, gvisor.Create(t, file(t, "app", bazel(t, b)), nil).Pid)
		if v.Kind != GVisor || f.Program.Module != "" || !f.Program.Sentry {
			t.Errorf("%+v: %+v", f, v)
		}
	})
}
