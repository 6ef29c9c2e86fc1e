package probe

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/symbol"
	"probity/evidence"
	"probity/runtime/image"
)

// armSets arms the sets that a container's probes want.
func (e *Engine) armSets(h *Handle) {
	want := map[bpf.Set]uint32{}
	var sites []*Site
	for i := range h.Sites {
		s := &h.Sites[i]
		if s.Set == "" || s.Reason != "" || s.Armed {
			continue
		}
		if err := errors.Join(e.lineage.ExecErr, e.lineage.ProcessErr); err != nil {
			s.Reason, s.Detail = evidence.KernelUnsupported, "which processes are the container's own cannot be seen: "+err.Error()
			continue
		}
		set, ok := bpf.ParseSet(s.Set)
		if !ok {
			s.Reason, s.Detail = evidence.AttachFailed, fmt.Sprintf("there is no set %q", s.Set)
			continue
		}
		way, err := e.obj.ArmSet(set)
		if err != nil {
			s.Reason, s.Detail = evidence.KernelUnsupported, strings.ReplaceAll(err.Error(), "\n", "; ")
			continue
		}
		s.Armed, s.Type, s.Detail = true, evidence.ProbeType(way.Type), way.Note
		want[set] = max(want[set], quotaOf(s, set)) // another policy may want the same set
		sites = append(sites, s)
	}
	if len(want) == 0 {
		return
	}
	if err := e.obj.PutSets(h.target.Cgroup, want); err != nil {
		for _, s := range sites {
			s.Armed, s.Reason, s.Detail = false, overBudget(err), err.Error()
		}
		return
	}
	h.sets.armed = true
}

// quotaOf is how many entries of the set a site's policy wants. It takes part in
// a maximum, so what is not given is the number that it stands for.
func quotaOf(s *Site, set bpf.Set) uint32 {
	if q := s.Probe.Quota; q != 0 {
		return uint32(min(q, policy.MaxQuota))
	}
	return set.DefaultQuota()
}

// Prepare loads what sees these sets, so that the first container that wants
// them need not wait for the kernel to verify it. What the kernel does not
// offer is told when it is armed.
func (e *Engine) Prepare(sets []string) {
	for _, name := range sets {
		set, ok := bpf.ParseSet(name)
		if !ok {
			continue
		}
		if _, err := e.obj.ArmSet(set); err != nil {
			e.cfg.Log.Warn("this kernel does not show a set", "set", name, "err", err)
		}
	}
}

// setState is what a handle has of sets.
type setState struct {
	armed bool

	mu    sync.Mutex
	known map[bpf.SetKey]Identified
}

// maxIdentified bounds the entries of one container whose file is remembered.
const maxIdentified = 1024

// HasSets reports whether any set of the container is armed.
func (h *Handle) HasSets() bool { return h.sets.armed }

// Entries hands each entry of the container's sets to yield, as the kernel has
// it now, until that returns false. The entry is only good during the call.
func (h *Handle) Entries(yield func(*bpf.SetEntry) bool) error {
	return h.engine.obj.SetEntries(h.target.Cgroup, yield)
}

// SetCounts reads what the kernel counts of the container's sets.
func (h *Handle) SetCounts() (map[bpf.Set]bpf.SetCounts, error) {
	return h.engine.obj.SetCounts(h.target.Cgroup)
}

// SystemCalls reads the container's set of system calls.
func (h *Handle) SystemCalls() ([]bpf.SystemCalls, error) {
	return h.engine.obj.SystemCalls(h.target.Cgroup)
}

// Identified is what is known of the file that an entry is about. All but Why
// is empty unless it is proven that the file of the image, or of the writable
// layer, is the one that the kernel saw.
type Identified struct {
	Digest, BuildID, Origin, LayerDiffID string
	Why                                  string // why it is not known
}

// Identify says which file an entry is about, and remembers it. It reads the
// whole file if nobody has done so yet.
func (h *Handle) Identify(e *bpf.SetEntry) Identified {
	id := h.identify(e)
	h.sets.mu.Lock()
	defer h.sets.mu.Unlock()
	if h.sets.known == nil {
		h.sets.known = map[bpf.SetKey]Identified{}
	}
	if len(h.sets.known) < maxIdentified {
		h.sets.known[e.SetKey] = id
	}
	return id
}

// Identified returns what Identify remembers.
func (h *Handle) Identified(k bpf.SetKey) Identified {
	h.sets.mu.Lock()
	defer h.sets.mu.Unlock()
	return h.sets.known[k]
}

// The kernel has seen the file's inode number, size and change time. A path
// leads to some file by now; it is the same one if all three are. Nobody can
// set a change time, and a file that is read while nobody can write it has the
// bytes that it had when the kernel saw it, if nobody could write it then (see
// steady): so it is with an execve, which fails while somebody can.
func (h *Handle) identify(e *bpf.SetEntry) Identified {
	if !e.PathKnown() {
		return Identified{Why: e.PathDoubt()}
	}
	find, ok := h.target.Files.(Finder)
	if !ok {
		return Identified{Why: "the container's files are not known"}
	}
	m, _, err := find.Lookup(e.Path())
	if err != nil {
		return Identified{Why: err.Error()}
	}
	facts, err := find.Inspect(m, symbol.Query{})
	if facts.Digest == nil {
		return Identified{Why: err.Error()}
	}
	at := facts.stamp
	if at.ino != e.Inode() || uint64(at.size) != e.Size || at.ctime.Nano() != e.CtimeNs {
		return Identified{Why: "the file at the path now is not proven to be the one that was used"}
	}
	id := Identified{Origin: m.Origin, LayerDiffID: m.Layer.DiffID}
	switch {
	case facts.unsteady != nil:
		id.Why = facts.unsteady.Error()
		return id
	case m.Origin != image.FromLayer && e.Set != bpf.SetExec:
		id.Why = "the container could write the file through a mapping while it was used, which leaves no trace: its bytes then are not proven"
		return id
	}
	if facts.ELF != nil {
		id.BuildID = facts.ELF.BuildID
	}
	if id.Digest, err = facts.Digest(); err != nil {
		id.Why = err.Error()
	}
	return id
}
