package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/evidence/verify"
	"probity/tests/need"
	"probity/tests/schemas"
)

// The machine stopped without warning while an agent ran: what it had kept is
// published, and from then on until the next agent there is a gap.
func TestPowerLoss(t *testing.T) {
	need.BPF(t)
	dir := t.TempDir()
	state, before, after := dir+"/before", evidence.TimeOf(time.Now()), dir+"/after"
	must(t, os.MkdirAll(state, 0o700))
	signer, err := sign.LoadOrCreate(state)
	must(t, err)
	s, err := spool.Open(spool.Config{
		Dir: state + "/spool", State: state, Node: "test", BootID: "another-boot", Signer: signer, Clock: now,
	})
	must(t, err)
	gap := func(id string) {
		t.Helper()
		must(t, s.Append("", func(c evidence.Clock) []redact.Line {
			return noRules.Lines(&evidence.Gap{GapID: id, Scope: evidence.ScopeSource, Reason: evidence.GapRuntimeDisconnected, From: before, To: before, Source: "x"})
		}))
	}
	gap("published")
	must(t, s.Flush(t.Context()))
	gap("kept")
	must(t, s.Sync())
	kept := evidence.TimeOf(time.Now())
	gap("lost")
	must(t, errors.Join(os.CopyFS(after, os.DirFS(state)), os.Chmod(after+"/node.key", 0o600)))
	must(t, s.Close())

	must(t, os.Mkdir(dir+"/policies.d", 0o755))
	ready := make(chan struct{})
	a, err := New(Config{
		Node: "test", State: after, Spool: after + "/spool", Policies: dir + "/policies.d", HookSocket: "none", AdminSocket: dir + "/admin.sock",
		NRISockets: []string{"none"}, ContainerdAddress: dir + "/no.sock", PodmanRoot: dir + "/no", Version: "test", Ready: func() { close(ready) },
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	<-ready
	cancel()
	must(t, <-done)
	rep, err := verify.Path(t.Context(), []string{filepath.Join(after, "spool")}, signer.Public(), verify.Options{})
	must(t, err)
	if !rep.Sound() {
		t.Fatal(rep.Findings)
	}
	schemas.Spool(t, filepath.Join(after, "spool"))
	found := map[string]bool{}
	var power []verify.GapRow
	for _, g := range rep.Gaps {
		found[g.GapID] = true
		if g.Reason == evidence.GapPowerLoss {
			power = append(power, g)
		}
	}
	if !found["published"] || !found["kept"] || found["lost"] {
		t.Errorf("gaps %v", found)
	}
	if len(power) != 1 || power[0].Scope != evidence.ScopeNode || !power[0].Count.Unknowable || power[0].From.Std().After(kept.Std()) || power[0].From.Std().Before(before.Std()) || !power[0].To.Std().After(kept.Std()) {
		t.Errorf("powerLoss: %+v; kept until %v", power, kept)
	}
}
