package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"probity/evidence"
)

// rereading is a configuration that is read again as it was.
func rereading(dir string) func() (Config, error) {
	return func() (Config, error) {
		return Config{Node: "test", State: dir + "/state", Policies: dir + "/policies.d"}, nil
	}
}

// A container that runs keeps the policies that it was armed under, and one that starts
// after a reload has others. Starts and reloads at the same time each have one of them.
func TestReloadPolicies(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/policies.d", 0o755))
	file := dir + "/policies.d/test.yaml"
	write := func(text string) { must(t, os.WriteFile(file, []byte(text), 0o600)) }
	write(wanted)
	n := newNodeIn(t, dir, Config{Reread: rereading(dir)})
	before := n.Status().Policies
	first := newBox(t, 1)
	n.notify(context.Background(), first.notice("c1"), yes)

	refused := func(want string) {
		t.Helper()
		if _, err := Reload(t.Context(), n.cfg.AdminSocket); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
		if now := n.Status().Policies; now.Digest != before.Digest || now.Probes != 3 || now.Since != before.Since || !strings.Contains(now.Refused, want) {
			t.Errorf("%+v, before %+v", now, before)
		}
	}
	write(strings.Replace(wanted, "symbols: [never]", "symbol: [never]", 1))
	refused("test.yaml:10:5: probe: unknown key")
	write(wanted)
	must(t, os.WriteFile(dir+"/policies.d/other.yaml", []byte(wanted), 0o600))
	refused("is taken by")
	must(t, os.Remove(dir+"/policies.d/other.yaml"))
	got, err := Reload(t.Context(), n.cfg.AdminSocket)
	if err != nil || got.Policies.Before != got.Policies.After || n.Status().Policies.Refused != "" || n.Status().Policies.Since != before.Since {
		t.Fatalf("the same again: %+v, %v", got, err)
	}

	write(strings.ReplaceAll(wanted, "never", "goodbye"))
	got, err = Reload(t.Context(), n.cfg.AdminSocket)
	now := n.Status().Policies
	if err != nil || got.Policies.Before != before.Digest || got.Policies.After != now.Digest || now.Digest == before.Digest || now.Since == before.Since || got.Policies.Policies != 1 {
		t.Fatalf("%+v, %v, now %+v", got, err, now)
	}
	second := newBox(t, 1)
	n.notify(context.Background(), second.notice("c2"), yes)
	first.end()
	second.end()

	var all sync.WaitGroup
	all.Go(func() {
		for i := range 20 {
			write(strings.ReplaceAll(wanted, "never", []string{"never", "goodbye"}[i%2]))
			if _, err := Reload(t.Context(), n.cfg.AdminSocket); err != nil {
				t.Error(err)
			}
		}
	})
	for range 3 {
		all.Go(func() {
			for range 5 {
				b := newBox(t, 1)
				n.notify(context.Background(), b.notice(filepath.Base(b.dir)), yes)
				b.end()
			}
		})
	}
	all.Wait()
	must(t, n.waitIdle(context.Background()))
	of := map[string]string{}
	obs, _ := n.allLines("c1")
	check := func(id, probe, digest string) {
		t.Helper()
		c := n.coverage(id)
		if c == nil || c.Policies != digest || !c.Final || len(c.GapReasons) > 0 {
			t.Errorf("%s: %+v", id, c)
		}
		for _, p := range c.Probes {
			of[p.ProbeID] = id
		}
		if len(c.Probes) != 3 || of[probe] != id {
			t.Errorf("%s was armed with %+v", id, c.Probes)
		}
	}
	check("c1", "never", before.Digest)
	check("c2", "goodbye", now.Digest)
	for _, o := range obs {
		if o.ProbeID == "hello" && (o.State != evidence.ArmedNoHit || !o.Complete) {
			t.Errorf("%+v", o)
		}
	}
}
