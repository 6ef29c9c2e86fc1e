package runtimes

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A container's arguments and environment, labels and annotations are in nothing
// that the agent writes, whatever its policy asks for.
func TestSecretsAreNotRecorded(t *testing.T) {
	p := NewPodman(t)
	d := podmanDriver{p}
	a := StartAgent(t, d.agent(AgentOptions{Policies: []string{`
name: all
probes:
  - {id: exec, set: exec}
  - {id: libraries, set: libraries}
  - {id: files, set: files}
  - {id: network, set: network}
  - {id: syscalls, set: syscalls}
  - {id: events, type: tracepoint, event: sched:sched_process_exec}
  - {id: hello, type: uprobe, file: /bin/target, symbols: [hello], stack: true}
  - {id: start, type: uprobe, program: entrypoint, offsets: [entry]}
  - {id: none, type: uprobe, program: no-such-program, offsets: [entry]}
`}}))
	d.attach(t, a)
	targetImage(t, d)
	id, _ := p.Run(t, "--env", "PASSWORD_VARIABLE=confidential-value", "--label", "confidential-label=confidential-too", "--annotation", "confidential.example/a=confidential-three", targetName, "hello", "confidential-argument")
	e := settled(t, a)
	if hit := e.Latest(id, "hello", "hello"); hit == nil || *hit.Count == 0 {
		t.Errorf("hello: %+v", hit)
	}
	files, target := 0, 0
	for _, dir := range []string{a.State, a.Spool} {
		if err := filepath.WalkDir(dir, func(path string, f fs.DirEntry, err error) error {
			if err != nil || !f.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			files++
			target += bytes.Count(b, []byte("/bin/target"))
			for _, secret := range []string{"confidential", "PASSWORD_VARIABLE"} {
				if at := bytes.Index(b, []byte(secret)); at >= 0 {
					t.Errorf("%s has %q", path, b[max(0, at-40):min(len(b), at+60)])
				}
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if files < 5 || target == 0 {
		t.Errorf("%d files were looked at, %d times the program is named", files, target)
	}
}
