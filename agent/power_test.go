package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
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
	t.Run("and then an agent", func(t *testing.T) { powerLoss(t, false) })
	// One that is stopped while it reads the spool takes nothing away from the next.
	t.Run("and then one that is not let start", func(t *testing.T) { powerLoss(t, true) })
}

func powerLoss(t *testing.T, stopped bool) {
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
	run := func(starting, ready func(stop func())) {
		t.Helper()
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		a, err := New(Config{
			Node: "test", State: after, Spool: after + "/spool", Policies: dir + "/policies.d", HookSocket: "none", AdminSocket: dir + "/admin.sock",
			NRISockets: []string{"none"}, ContainerdAddress: dir + "/no.sock", PodmanRoot: dir + "/no", Version: "test",
			Starting: func() { starting(stop) }, Ready: func() { ready(stop) },
		})
		must(t, err)
		must(t, a.Run(ctx))
	}
	if stopped {
		run(func(stop func()) { stop() }, func(stop func()) {
			stop()
			t.Error("it was ready")
		})
	}
	run(func(func()) {}, func(stop func()) { stop() })
	type span struct{ from, to int64 } // boot time: each chunk has a clock of its own
	closed := map[string]span{}
	rep, err := verify.Path(t.Context(), []string{filepath.Join(after, "spool")}, signer.Public(), verify.Options{Chunk: func(c *verify.Chunk) {
		for _, l := range c.Lines {
			if g, ok := l.(*evidence.Gap); ok && !g.To.IsZero() {
				closed[strings.Clone(g.GapID)] = span{c.Header.Clock.Boot(g.From), c.Header.Clock.Boot(g.To)}
			}
		}
	}})
	must(t, err)
	if !rep.Sound() {
		t.Fatal(rep.Findings)
	}
	schemas.Spool(t, filepath.Join(after, "spool"))
	found := map[string]bool{}
	var power, down []verify.GapRow
	for _, g := range rep.Gaps {
		found[g.GapID] = true
		if g.Reason == evidence.GapPowerLoss {
			power = append(power, g)
		}
		if g.Reason == evidence.GapAgentDown && g.Scope == evidence.ScopeNode && !g.To.IsZero() {
			down = append(down, g)
		}
	}
	if !found["published"] || !found["kept"] || found["lost"] {
		t.Errorf("gaps %v", found)
	}
	if len(power) != 1 || power[0].Scope != evidence.ScopeNode || !power[0].Count.Unknowable || power[0].From.Std().After(kept.Std()) || power[0].From.Std().Before(before.Std()) || !power[0].To.Std().After(kept.Std()) {
		t.Fatalf("powerLoss: %+v; kept until %v", power, kept)
	}
	if len(down) != 1 || closed[down[0].GapID].from > closed[power[0].GapID].to {
		t.Errorf("agentDown: %+v, which leaves a time out after %+v", down, power)
	}
}
