package witness

import (
	"cmp"
	"encoding/json"
	"log/slog"
	"strings"

	"probity/bpf"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/runtime/container"
)

// Bounds on the detail that is kept per run: a hostile container can cost its
// own detail, nothing else.
const (
	maxProcessBytes = 16 << 10 // of JSON, of an exec probe's distinct executables
	maxPids         = 1024     // whose executable is remembered
)

// run is one live run. Guarded by Witness.mu.
type run struct {
	id       container.Identity
	runID    string
	source   string
	arm      Armament
	sites    []site
	searches []probe.Search
	notified int64
	first    int64 // earliest boot time of the container's first instruction
	armedAt  int64
	ended    int64
	final    bool
	said     int64 // up to when its lines reach
	public   bool  // its first lines are written; nothing is before

	gaps       []*gap
	gapChanges int    // gaps opened and closed so far
	unwritable uint64 // lines that no chunk could take

	lastGood int64           // the last health check at which a file was well
	kernel   bpf.Run         // as last read
	misses   evidence.Loss   // of the engine when the run began
	lost     evidence.Losses // of this run

	paths     map[int]string // executable by pid
	processes []evidence.Process
	procBytes int
	procKnown map[string]bool
	procFull  uint64
}

// site is one site and what was last said of it.
type site struct {
	probe.Site
	counter bpf.Counter
	process *evidence.Process // of the first hit

	said     said
	gapsSeen int // run.gapChanges then
}

// said is what the last line about a site said; a change makes a new line.
type said struct {
	state evidence.State
	count uint64
	gaps  int
}

func newRun(s Start) *run {
	r := &run{
		id: s.Identity, runID: s.Identity.RunID(), source: s.Source, arm: s.Arm, searches: s.Searches,
		notified: s.Notified, first: s.ArmedAt, armedAt: s.ArmedAt, lastGood: s.ArmedAt,
		paths: map[int]string{}, procKnown: map[string]bool{},
	}
	// The one or the other, in every line.
	switch img := &r.id.Image; {
	case img.Digest != "":
		img.DigestReason = ""
	case img.DigestReason == "":
		img.DigestReason = "it was not looked for"
	default:
		img.DigestReason = clip(img.DigestReason, maxDetail)
	}
	for _, p := range s.Sites {
		r.sites = append(r.sites, site{Site: p})
	}
	if s.Arm != nil {
		r.misses = s.Arm.Misses()
	}
	return r
}

// take remembers an event and reports whether a site's state changed by it.
func (r *run) take(e bpf.Event) bool {
	switch e.Kind {
	case bpf.EventExec:
		if len(r.paths) >= maxPids {
			clear(r.paths)
		}
		r.paths[e.Pid] = e.Path
		r.addProcess(evidence.Process{Pid: e.Pid, Comm: e.Comm, Path: e.Path})
		if r.kernel.FirstExecNs == 0 {
			r.kernel.FirstExecNs = e.Ns
		}
		return r.seen(0, e)
	case bpf.EventHit:
		return r.seen(e.Site, e)
	}
	return false
}

// seen notes the first hit of a site.
func (r *run) seen(id uint32, e bpf.Event) bool {
	changed := false
	for i := range r.sites {
		s := &r.sites[i]
		if !s.Armed || s.ID != id {
			continue
		}
		if s.process == nil {
			s.process = &evidence.Process{Pid: e.Pid, Comm: e.Comm, Path: r.paths[e.Pid]}
		}
		if s.counter.FirstNs == 0 || e.Ns < s.counter.FirstNs {
			s.counter.FirstNs = e.Ns
		}
		s.counter.LastNs = max(s.counter.LastNs, e.Ns)
		if c, err := r.arm.Counter(s.Site); err == nil {
			s.merge(c)
		}
		s.counter.Count = max(s.counter.Count, 1)
		changed = changed || s.said.state != evidence.Hit
	}
	return changed
}

// merge takes a counter as read. First is the earlier of both: two processors
// may both have seen the first hit.
func (s *site) merge(c bpf.Counter) {
	if c.Count > 0 && c.FirstNs == 0 { // read between two stores of another processor
		c.FirstNs = c.LastNs
	}
	first := s.counter.FirstNs
	s.counter = c
	if first != 0 && (c.FirstNs == 0 || first < c.FirstNs) {
		s.counter.FirstNs = first
	}
}

// addProcess keeps the distinct executables that the container ran.
func (r *run) addProcess(p evidence.Process) {
	key := p.Comm + "\x00" + p.Path
	if r.procKnown[key] {
		return
	}
	b, err := json.Marshal(p)
	if err != nil || r.procBytes+len(b) > maxProcessBytes {
		r.procFull++
		r.sum(evidence.GapSetFull, evidence.ScopeRun, r.procFull, "distinct executables past the bound of the set")
		return
	}
	r.procKnown[key] = true
	r.procBytes += len(b)
	r.processes = append(r.processes, p)
}

// refresh reads the counters. It reports whether something changed that makes
// a line.
func (r *run) refresh(log *slog.Logger) bool {
	if r.arm == nil {
		return false
	}
	dirty := false
	for i := range r.sites {
		s := &r.sites[i]
		if !s.Armed {
			continue
		}
		c, err := r.arm.Counter(s.Site)
		if err != nil {
			log.Error("read a counter", "run", r.runID, "probe", s.Probe.ID, "err", err)
			continue
		}
		if c.Count >= s.counter.Count {
			s.merge(c)
		}
		dirty = dirty || s.counter.Count > 0 && s.said.state != evidence.Hit
	}
	k, err := r.arm.Run()
	if err != nil {
		log.Error("read a container's counters", "run", r.runID, "err", err)
		return dirty
	}
	if r.kernel.FirstExecNs != 0 && (k.FirstExecNs == 0 || r.kernel.FirstExecNs < k.FirstExecNs) {
		k.FirstExecNs = r.kernel.FirstExecNs
	}
	if k.RingFull > r.kernel.RingFull {
		r.sum(evidence.GapRingFull, evidence.ScopeRun, k.RingFull, "first-hit or exec detail was dropped; counters are not affected")
		dirty = true
	}
	r.kernel = k
	r.lost.RingFull = evidence.Loss{N: k.RingFull}
	switch m := r.arm.Misses(); {
	case m.Unknowable:
		r.lost.KernelMissed = m
		r.lost.Reason = "this kernel does not count every skipped program run"
	case m.N > r.misses.N:
		r.lost.KernelMissed = evidence.Loss{N: m.N - r.misses.N}
		r.sum(evidence.GapKernelMissed, evidence.ScopeRun, m.N-r.misses.N, "program runs that the kernel skipped, of all containers together")
		dirty = true
	}
	return dirty
}

// checked opens and closes gaps after a health check.
func (r *run) checked(at int64, troubles []probe.Trouble) bool {
	dirty := false
	bad := map[string]bool{}
	for _, t := range troubles {
		bad[t.Path+"\x00"+string(t.Reason)] = true
		if r.openGap(t.Reason, t.Path) == nil {
			r.addGap(&gap{reason: t.Reason, scope: evidence.ScopeFile, path: t.Path, from: cmp.Or(t.Since, r.lastGood), count: 1, detail: clip(t.Detail, maxDetail)})
			dirty = true
		}
	}
	for _, g := range r.gaps {
		if g.scope == evidence.ScopeFile && g.to == 0 && !bad[g.path+"\x00"+string(g.reason)] {
			r.close(g, at)
			dirty = true
		}
	}
	if len(troubles) == 0 {
		r.lastGood = at
	}
	return dirty
}

func (r *run) live() Live {
	l := Live{RunID: r.runID, Identity: r.id, ArmedAt: r.armedAt, Sites: len(r.sites), Gaps: []string{}}
	for i := range r.sites {
		s := &r.sites[i]
		if s.Armed {
			l.Armed++
		}
		if s.counter.Count > 0 {
			l.Hit++
		}
	}
	for _, g := range r.gaps {
		l.Gaps = append(l.Gaps, strings.TrimSpace(string(g.reason)+" "+g.path))
	}
	return l
}
