package runtimes

import (
	"os"
	"os/exec"
	"runtime"
	"testing"

	"probity/evidence"
	"probity/tests/need"
	"probity/tests/ociarchive"
)

// A program for another machine runs under qemu-user: this kernel never
// executes its instructions, and nothing is claimed of them. The emulator's own
// are this machine's.
func TestForeignArchitecture(t *testing.T) {
	emulator, arch := "qemu-aarch64-static", "arm64"
	if runtime.GOARCH == "arm64" {
		emulator, arch = "qemu-x86_64-static", "amd64"
	}
	qemu := need.QEMU(t, emulator)
	policy := `
name: foreign
select:
  images: ["localhost/foreign*"]
probes:
  - id: foreign
    type: uprobe
    file: /app
    symbols: [main.work]
  - id: emulator
    type: uprobe
    file: /qemu
    offsets: [entry]
`
	underEach(t, AgentOptions{Policies: []string{policy}}, func(t *testing.T, d driver, a *Agent) {
		app := d.scratch().Path("app")
		build := exec.Command("go", "build", "-o", app, "./testdata/fips")
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		archive, _ := WriteImage(t, d.scratch(), "foreign.tar", ociarchive.Image{
			Name: "localhost/foreign:latest", Layers: [][]ociarchive.File{{HostFile(t, app, "/app"), HostFile(t, qemu, "/qemu")}},
			Entrypoint: []string{"/qemu", "/app"}, Env: []string{"GODEBUG=fips140=on"},
		})
		d.load(t, archive)
		c := d.start(t, "localhost/foreign:latest", "foreign")
		if code := c.wait(t); code != 0 {
			t.Errorf("the program did not run: exit code %d", code)
		}
		e := settled(t, a)
		o := e.Latest(c.id(), "foreign", "")
		if o == nil {
			o = e.Latest(c.id(), "foreign", "main.work")
		}
		if o == nil || o.State != evidence.NotArmed || o.Reason != evidence.ForeignArchitecture {
			t.Errorf("the foreign program: %+v", o)
		}
		want(t, e, c.id(), "emulator", "", evidence.Hit, "", 1)
	})
}
