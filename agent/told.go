package agent

import (
	"fmt"
	"sync"

	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/oci"
)

// maxTold is how many containers are remembered before all are forgotten.
const maxTold = 1 << 15

// toldOf remembers of which containers hooks told, whether a policy wants them or not, so
// that the end of one of which nobody told shows that its start was lost.
type toldOf struct {
	mu    sync.Mutex
	since int64            // of what was made before, nothing is known
	at    map[string]int64 // when it was last told of, in boot time
}

func (t *toldOf) hear(id string, at int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.at) >= maxTold {
		clear(t.at)
		t.since = cgroup.BootTime() // what was forgotten is not called lost
	}
	t.at[id] = max(t.at[id], at)
}

// missed reports whether nobody told of the life that began with a bundle made then.
func (t *toldOf) missed(id string, made int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return made > t.since && t.at[id] < made
}

// hookHeard is told of a hook's container, also if what its state says was not believed
// and there is no notice.
func (a *Agent) hookHeard(n container.Notice, state []byte, at int64) {
	id := n.Identity.ID
	if id == "" {
		st, err := oci.ParseState(state)
		if err != nil {
			return
		}
		id = st.ID
	}
	a.told.hear(id, at)
}

// hookEnded signs that a container has ended of whose start no hook told: it may have
// run from when its bundle was made, and nothing was armed.
func (a *Agent) hookEnded(n container.Notice) {
	if n.Made == 0 || !a.told.missed(n.Identity.ID, n.Made) {
		return
	}
	a.told.hear(n.Identity.ID, n.At) // once
	a.problem("container %s has ended, and no hook told of its start: is the createRuntime hook installed beside the poststop hook?", n.Identity.ID)
	a.witness.SourceMissed(oci.Source, n.Made, n.At, fmt.Sprintf("container %s has ended, and no hook told of its start", n.Identity.ID))
}
