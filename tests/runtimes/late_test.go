package runtimes

import (
	"testing"
	"time"

	"probity/evidence"
)

const latePolicy = `
name: late
select:
  images: ["localhost/target*"]
probes:
  - id: late
    type: uprobe
    file: /{tool,fast/tool}
    symbols: [hello]
`

// wantLate runs a program that came into the container after its start until
// its evidence has a hit, and wants the gap before that to be signed.
func wantLate(t *testing.T, a *Agent, c ran, path, origin string) {
	t.Helper()
	find := func(e Evidence) (last *evidence.Observation) {
		for _, o := range e.Observations {
			if o.ContainerID == c.id() && o.Path == path {
				last = o
			}
		}
		return last
	}
	c.exec(t, "/bin/target", "copy")
	for end := time.Now().Add(Patience); ; {
		if o := find(a.Evidence(t)); o != nil && o.State == evidence.Hit {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s was not armed", path)
		}
		c.exec(t, path, "hello")
	}
	c.goOn(t)
	c.wait(t)
	o := find(settled(t, a))
	if o.State != evidence.Hit || o.Complete || !o.Final || o.Origin != origin || o.FileDigest == "" || *o.Count == 0 {
		t.Errorf("%+v", o)
	}
	if len(o.Gaps) != 1 || o.Gaps[0].Reason != evidence.GapUnarmedMapping || o.Gaps[0].DurationNs == 0 {
		t.Errorf("gaps %+v", o.Gaps)
	}
	if o.Process == nil || o.Process.Session != "exec" {
		t.Errorf("its process: %+v", o.Process)
	}
}

// A program that is made in a running container, and executed.
func TestWhatAppears(t *testing.T) {
	underEach(t, AgentOptions{Policies: []string{latePolicy}}, func(t *testing.T, d driver, a *Agent) {
		targetImage(t, d)
		wantLate(t, a, d.start(t, targetName, "late", "wait"), "/tool", "upper")
	})
}

// The same on a tmpfs, which no layer holds: its mount must not be pinned once
// the container has ended.
func TestWhatAppearsOnTmpfs(t *testing.T) {
	p := NewPodman(t)
	d := podmanDriver{p}
	a := StartAgent(t, d.agent(AgentOptions{Policies: []string{latePolicy}}))
	d.attach(t, a)
	targetImage(t, d)
	c := podmanRan{p, p.Detach(t, "--name", "late", "--tmpfs", "/fast:exec,rw", targetName, "wait")}
	wantLate(t, a, c, "/fast/tool", "tmpfs")
}
