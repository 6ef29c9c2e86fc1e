package main

import (
	"fmt"
	"path/filepath"

	"probity/tests/need"
	"probity/tests/runtimes"
)

// cast is what both runtimes' versions of the demo share.
type cast struct {
	stage    *stage
	scratch  *runtimes.Scratch
	source   string
	archive  string
	digest   string
	programs runtimes.Binaries
	spool    string
	agent    runtimes.AgentOptions
}

// The containers, by their names. The policy selects the first two by name; no
// policy selects the third.
var roles = [3]struct{ name, arg string }{{"caller", "call"}, {"idle", "idle"}, {"unselected", "call"}}

func (c cast) podman() (*runtimes.Agent, summary) {
	s := c.stage
	path, ok := need.Look("podman")
	if !ok {
		s.Fatalf("podman is not installed")
	}
	p := runtimes.OpenPodman(s, c.scratch, path)
	s.say("Load it into podman")
	p.Load(s, c.archive)
	c.same(p.Digest(s, runtimes.DemoImageName))

	s.say("Start the agent")
	c.agent.PodmanRoot = p.Root
	agent := runtimes.OpenAgent(s, c.scratch, c.programs, c.spool, c.agent)
	p.InstallHook(s, c.source, agent.Binaries.Hook, agent.HookSocket)

	var ids [3]string
	for i, r := range roles {
		s.say(fmt.Sprintf("podman run --name %s %s %s", r.name, runtimes.DemoImageName, r.arg))
		id, out := p.Run(s, "--name", r.name, runtimes.DemoImageName, r.arg)
		fmt.Fprint(s.out, out)
		ids[i] = id
	}
	return agent, summary{ids[0], ids[1], ids[2]}
}

func (c cast) containerd(tools need.ContainerdTools) (*runtimes.Agent, summary) {
	s := c.stage
	s.say("Start a containerd of our own and load it there")
	d := runtimes.OpenContainerd(s, c.scratch, tools, filepath.Join(c.source, "tests", "demo", "image", "pause.c"))
	d.Load(s, c.archive)
	c.same(d.Digest(s, runtimes.DemoImageName))

	s.say("Start the agent")
	agent := runtimes.OpenAgent(s, c.scratch, c.programs, c.spool, c.agent.For(d))
	agent.WaitSources(s)

	var ids [3]string
	for i, r := range roles {
		s.say(fmt.Sprintf("CRI: run a pod with container %s, %s %s", r.name, runtimes.DemoImageName, r.arg))
		x := d.Run(s, runtimes.Spec{Image: runtimes.DemoImageName, Name: r.name, Args: []string{r.arg}})
		if code := x.Wait(s); code != 0 {
			s.Fatalf("container %s: exit code %d\n%s", r.name, code, x.Output(s))
		}
		fmt.Fprint(s.out, x.Output(s))
		ids[i] = x.ID
	}
	return agent, summary{ids[0], ids[1], ids[2]}
}

// same checks that the runtime knows the image by the archive's own digest.
func (c cast) same(digest string) {
	if digest != c.digest {
		c.stage.Fatalf("the runtime says the manifest's digest is %s, the archive's is %s", digest, c.digest)
	}
}
