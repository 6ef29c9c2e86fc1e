package agent

import (
	"context"
	"testing"

	"probity/bpf"
	"probity/evidence"
)

// A container that ran before it was armed has processes whose execve nobody
// saw. What they do is the container's all the same.
func TestProcessesThatWereThereBefore(t *testing.T) {
	n := newNodeWith(t, Config{BPF: bpf.Options{}}, `name: forks
probes:
  - id: forks
    type: rawTracepoint
    event: sched_process_fork
`)
	b := newBox(t, 1, "serve")
	b.run()
	b.exec("/bin/target", "hello")
	n.notify(context.Background(), b.notice("c1"), yes)
	for range 3 {
		b.exec("/bin/target", "hello")
	}
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.lines("c1")
	if o := obs["forks"]; o.State != evidence.Hit || *o.Count != 3 {
		t.Errorf("%+v", o)
	}
}
