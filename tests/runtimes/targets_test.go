package runtimes

import (
	"path/filepath"
	"strings"
	"testing"

	"probity/evidence"
)

// A policy names its files by what they are: by soname, build-id, $PATH and the
// program that the container starts. Whatever the runtime mounts into it, the
// searches are complete.
func TestTargets(t *testing.T) {
	const policy = `
name: targets
select:
  images: ["localhost/probity-demo*"]
probes:
  - {id: soname, type: uprobe, library: "libgreet.so.*", symbols: [greet_hello, greet_goodbye]}
  - {id: absent, type: uprobe, library: "libnowhere.so.*", symbols: [greet_hello]}
  - {id: returns, type: uretprobe, library: libgreet.so.1, symbols: [greet_hello]}
  - {id: entrypoint, type: uprobe, program: entrypoint, symbols: [caller_work]}
  - {id: path, type: uprobe, program: caller, symbols: [caller_work, caller_never]}
  - {id: nowhere, type: uprobe, program: nowhere, symbols: [main]}
`
	underEach(t, AgentOptions{Policies: []string{policy}}, func(t *testing.T, d driver, a *Agent) {
		archive := d.scratch().Path("image.tar")
		DemoImage(t, d.scratch(), filepath.Join(repository(t), "tests/demo/image"), archive)
		d.load(t, archive)
		c := d.start(t, DemoImageName, "caller", "call")
		c.wait(t)
		e := settled(t, a)
		for _, probe := range []string{"soname", "returns"} {
			o := want(t, e, c.id(), probe, "greet_hello", evidence.Hit, "", 1)
			if o.Path != DemoLibrary+".0" || o.Copies != 1 || string(o.ProbeType) != map[string]string{"soname": "uprobe", "returns": "uretprobe"}[probe] {
				t.Errorf("%s: %+v", probe, o)
			}
		}
		want(t, e, c.id(), "soname", "greet_goodbye", evidence.ArmedNoHit, "", 0)
		want(t, e, c.id(), "absent", "", evidence.NotArmed, evidence.FileNotFound, 0)
		want(t, e, c.id(), "entrypoint", "caller_work", evidence.Hit, "", 1)
		want(t, e, c.id(), "path", "caller_work", evidence.Hit, "", 1)
		want(t, e, c.id(), "path", "caller_never", evidence.ArmedNoHit, "", 0)
		o := want(t, e, c.id(), "nowhere", "", evidence.NotArmed, evidence.FileNotFound, 0)
		if !strings.Contains(o.Detail, "no program nowhere") {
			t.Errorf("%+v", o)
		}
		for _, p := range e.Cover(c.id()).Probes {
			if !p.SearchComplete {
				t.Errorf("%+v", p)
			}
		}
	})
}
