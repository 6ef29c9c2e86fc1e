package agent

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"probity/bpf"
	"probity/evidence"
	"probity/runtime/oci"
	"probity/tests/need"
)

// saveState writes the state of a box as crun does, with a bundle beside it.
func saveState(t *testing.T, b *box, dir, id string, pid int, cgroup string) {
	t.Helper()
	start, err := oci.StartTicks(pid)
	must(t, err)
	bundle := b.dir + "/bundle-" + id
	must(t, os.MkdirAll(bundle, 0o755))
	must(t, os.WriteFile(bundle+"/config.json", []byte(`{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":["target"],"cwd":"/"}}`), 0o644))
	state, err := json.Marshal(map[string]any{"pid": pid, "process-start-time": start, "cgroup-path": cgroup, "bundle": bundle})
	must(t, err)
	must(t, os.MkdirAll(dir+"/"+id, 0o711))
	must(t, os.WriteFile(dir+"/"+id+"/status", state, 0o600))
}

// All states are read before one is believed: of those that claim one process or one
// cgroup, or one around another's, none is adopted, and it is signed. The others are.
func TestContestedStates(t *testing.T) {
	mount := need.Cgroup2(t)
	in := func(b *box) string { return strings.TrimPrefix(b.cgroup, mount) }
	dir, more := t.TempDir(), t.TempDir()
	wide, inner, twin, alone := newBox(t, 1), newBox(t, 2), newBox(t, 1), newBox(t, 1)
	pid := func(b *box) int { return b.cmd.Process.Pid }
	// The one that is told of first in either directory is no more believed.
	saveState(t, inner, dir, "b-inner", pid(inner), in(inner))
	saveState(t, inner, more, "a-wide", pid(inner), in(inner)[:strings.LastIndex(in(inner), "/")])
	saveState(t, wide, dir, "alone2", pid(wide), in(wide))
	saveState(t, twin, dir, "twin", pid(twin), in(twin))
	saveState(t, twin, more, "another-name", pid(twin), in(twin))
	saveState(t, alone, dir, "alone", pid(alone), in(alone))
	n := newNodeWith(t, Config{BPF: bpf.Options{}, RuntimeStates: []string{dir, more}}, wanted)
	must(t, n.waitAdopted())
	armed := map[string]bool{}
	for _, l := range n.runs() {
		armed[l.container] = true
	}
	if len(armed) != 2 || !armed["alone"] || !armed["alone2"] {
		t.Errorf("adopted: %v", armed)
	}
	missed := map[string]bool{}
	for _, g := range n.gapsOf(evidence.ScopeSource) {
		for _, id := range []string{"b-inner", "a-wide", "twin", "another-name"} {
			if g.Reason == evidence.GapRuntimeDisconnected && strings.Contains(g.Detail, "container "+id+" of ") && strings.Contains(g.Detail, "another container's saved state says so too") {
				missed[id] = true
			}
		}
	}
	if len(missed) != 4 {
		t.Errorf("signed: %v", missed)
	}
}

// A container whose first process has ended while others run on, and that nobody has
// armed, is signed once it is not just ending; one that is watched is not.
func TestOutlivedState(t *testing.T) {
	mount := need.Cgroup2(t)
	dir := t.TempDir()
	b := newBox(t, 1)
	saveState(t, b, dir, "outlived", b.cmd.Process.Pid, strings.TrimPrefix(b.cgroup, mount))
	path := dir + "/outlived/status"
	text, err := os.ReadFile(path)
	must(t, err)
	var m map[string]any
	must(t, json.Unmarshal(text, &m))
	m["process-start-time"] = 1
	text, err = json.Marshal(m)
	must(t, err)
	must(t, os.WriteFile(path, text, 0o600))
	for _, armed := range []bool{true, false} {
		n := newNodeWith(t, Config{}, wanted)
		if armed {
			n.notify(t.Context(), b.notice("outlived"), yes)
		}
		s := &scanner{a: n.Agent, dirs: []string{dir}, seen: map[string]*state{}, failed: map[string]bool{}}
		s.look(t.Context(), true)
		s.look(t.Context(), false)
		s.look(t.Context(), false)
		told := n.gapsOf(evidence.ScopeSource)
		if want := !armed; (len(told) == 1) != want || len(told) > 1 || want && !strings.Contains(told[0].Detail, "others run on in its cgroup") {
			t.Errorf("armed %v: %+v", armed, told)
		}
	}
}

// A bundle on a file system that never answers keeps nobody else from being adopted.
func TestBundleThatDoesNotAnswer(t *testing.T) {
	mount := need.Cgroup2(t)
	dir := t.TempDir()
	hung, other := newBox(t, 1), newBox(t, 1)
	for id, b := range map[string]*box{"a-hung": hung, "b-other": other} {
		saveState(t, b, dir, id, b.cmd.Process.Pid, strings.TrimPrefix(b.cgroup, mount))
	}
	need.DeadFUSE(t, hung.dir+"/bundle-a-hung")
	n := newNodeWith(t, Config{RuntimeStates: []string{dir}}, wanted)
	until(t, func() bool {
		l := n.runs()
		return len(l) == 1 && l[0].container == "b-other" && l[0].isArmed()
	})
	told := n.gapsOf(evidence.ScopeSource)
	if len(told) != 1 || !strings.Contains(told[0].Detail, "container a-hung of "+dir+": its bundle could not be read in time") {
		t.Errorf("%+v", told)
	}
}
