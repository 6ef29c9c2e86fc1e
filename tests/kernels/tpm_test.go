package kernels

import (
	"context"
	"io"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"probity/tests/kernels/guest"
	"probity/tests/need"
	"probity/tests/tokens"
)

// TestTPM keeps a key in a TPM behind a kernel's own driver and resource manager: the
// device that the agent opens on a real machine, and that no emulator's socket is.
func TestTPM(t *testing.T) {
	all, err := Machines()
	if err != nil {
		t.Fatal(err)
	}
	m := all[slices.IndexFunc(all, func(m Machine) bool { return m.Name == defaultMachine })]
	m.With = Bare
	cache := need.Kernel(t, m.QEMU(), m.Name)
	m.TPM = tokens.NewChip(t).Socket
	program := filepath.Join(t.TempDir(), "tpm")
	if err := goRun(m.Arch, "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./tests/kernels/tpm"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	signed := 0
	b, err := m.Run(ctx, cache, scratch, guest.Job{}, Load{"/init": program}, io.Discard, func(l guest.Line) {
		switch {
		case l.Kind == guest.Fail:
			t.Error(l.Text)
		case l.Kind == guest.Out && l.Step == guest.TPM:
			signed++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := guest.TPMKeys * guest.TPMSignatures; signed != want {
		t.Errorf("%d signatures of %d", signed, want)
	}
	t.Logf("Linux %s: %d signatures after %.1f s", b.Release, signed, b.Took.Seconds())
}
