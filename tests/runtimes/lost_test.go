package runtimes

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"probity/evidence"
)

// A container of which no hook told when it started, and that is gone before the state
// directories show it, leaves a gap when it ends: nobody can say that it did not run.
func TestLostStart(t *testing.T) {
	d := podmanDriver{NewPodman(t)}
	a := StartAgent(t, d.agent(AgentOptions{Policies: []string{targetPolicy}}))
	d.attach(t, a)
	targetImage(t, d)
	run := func(name string) string {
		c := d.start(t, targetName, name, "hello")
		c.wait(t)
		c.remove(t)
		return c.id()
	}
	ofHook := func(e Evidence) []*evidence.Gap {
		return slices.DeleteFunc(e.GapsOf("", evidence.GapRuntimeDisconnected), func(g *evidence.Gap) bool { return g.Source != "hook" })
	}
	told := run("told")
	if err := os.Remove(filepath.Join(d.HooksDir, "probity-create.json")); err != nil {
		t.Fatal(err)
	}
	lost := run("lost")
	a.WaitLine(t, func(e Evidence) bool { return len(ofHook(e)) > 0 })
	e := settled(t, a)
	g := ofHook(e)
	if len(g) != 1 || !strings.Contains(g[0].Detail, lost) || g[0].To.IsZero() || !g[0].From.Std().Before(g[0].To.Std()) {
		t.Errorf("gaps of the hook: %+v\nwant one, of %s and not of %s", g, lost, told)
	}
	want(t, e, told, "fn", "hello", evidence.Hit, "", 1)
}
