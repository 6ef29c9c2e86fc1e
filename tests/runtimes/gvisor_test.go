package runtimes

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"probity/evidence"
	"probity/tests/gvisor"
	"probity/tests/need"
)

// gVisor runs the packaged hook when its sandbox has entered a root of its own.
// Then the agent cannot prove that the pid is the container's, and does not take
// the runtime's word: no container is claimed, and a gap of the hook names it.
func TestGVisorByHook(t *testing.T) {
	runsc := need.Runsc(t)
	a := StartAgent(t, AgentOptions{Policies: []string{"name: x\nprobes:\n  - {id: exec, set: exec}\n"}})
	hooks := map[string][]any{}
	for file, stage := range map[string]string{"probity-create.json": "createRuntime", "probity-poststop.json": "poststop"} {
		text, err := hookFile(filepath.Join(repository(t), "packaging", "hooks", file), a.Binaries.Hook, a.HookSocket)
		if err != nil {
			t.Fatal(err)
		}
		var h struct{ Hook any }
		if err := json.Unmarshal([]byte(text), &h); err != nil {
			t.Fatal(err)
		}
		hooks[stage] = []any{h.Hook}
	}
	c := gvisor.Create(t, runsc, hooks)
	c.Delete()
	e := settled(t, a)
	if len(e.Observations) > 0 {
		t.Errorf("%+v", e.Observations[0])
	}
	for _, g := range e.GapsOf("", evidence.GapRuntimeDisconnected) {
		if g.Source == "hook" && strings.Contains(g.Detail, c.ID) {
			return
		}
	}
	t.Errorf("no gap names the container: %+v", e.Gaps)
}
