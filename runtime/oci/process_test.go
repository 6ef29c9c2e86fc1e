package oci

import (
	"testing"

	"probity/runtime/container"
)

func TestRuntimeAt(t *testing.T) {
	for _, c := range []struct {
		exe, comm string
		want      container.Runtime
	}{
		{"/usr/bin/runc", "runc", container.Runc},
		{"/usr/bin/runc (deleted)", "runc", container.Runc},
		{"/usr/bin/crun", "crun", container.Crun},
		{"/usr/bin/crun (deleted)", "3", container.Crun},
		{"/", "crun", container.Crun}, // seen of crun 1.8.1
		{"/", "runc", ""},
		{"/memfd:crun_cloned:/proc/self/exe (deleted)", "3", container.Crun},
		{"/memfd:exe (deleted)", "crun", ""},
		{"/usr/bin/bash", "crun", ""},
		{"", "", ""},
	} {
		if got := runtimeAt(c.exe, c.comm); got != c.want {
			t.Errorf("%q called %q: %q, want %q", c.exe, c.comm, got, c.want)
		}
	}
}
