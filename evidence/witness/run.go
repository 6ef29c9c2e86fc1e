package witness

import (
	"cmp"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"probity/bpf"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/redact"
	"probity/runtime/container"
)

// Bounds on the detail that is kept per run: a hostile container can cost its
// own detail, nothing else.
const (
	maxProcessBytes = 16 << 10 // of JSON, of an exec probe's distinct executables
	maxPids         = 1024     // whose executable is remembered
	maxUnread       = 32       // sites whose counter cannot be read, of each of which it is said
	maxSites        = 40_000   // with those that were armed after the start
	maxNameBytes    = 16 << 20 // of these sites' paths and symbols
)

// run is one live run.
type run struct {
	id       container.Identity
	runID    string
	source   string
	arm      Armament
	redact   *redact.Redactor
	policies string // digest of those that it is armed under
	notified int64
	armedAt  int64
	earlier  *Earlier // nil if it was armed before its first instruction, or was to be

	mu       sync.Mutex // guards what follows
	sites    []site
	names    int        // bytes of their names
	byID     []numbered // armed sites by number
	stale    []int32    // sites that the next lines look at
	calm     []int32    // and those that were looked at before: nothing about them is urgent
	sets     map[string]*set
	fresh    []*Entry // whose line is not written
	searches []probe.Search
	unhashed map[*probe.File]error // files without a digest, and why
	first    int64                 // earliest boot time of the container's first instruction
	ended    int64
	final    bool
	last     int64         // the latest hit
	said     int64         // up to when its lines reach
	grewAt   int64         // when lines last told of gaps whose count had only grown
	countAt  int64         // when they last told of sites of which that is so
	public   bool          // its first lines are written; nothing is before
	over     bool          // its last lines are written; nothing is after
	news     chan struct{} // closed when something waits for its first lines
	waits    bool          // news is closed

	gaps       []*gap // of more than one site
	unsaid     []*gap // opened or closed since their last line
	grown      []*gap // whose count is not what their last line says
	reasons    []evidence.GapReason
	files      map[fileGap]bool           // files with gaps of their own
	apart      map[evidence.GapReason]int // how many of a reason
	folded     uint64                     // gaps that had no line of their own, since it was last asked
	spared     *gap                       // says what is left out of its lines now; nil if nothing is
	enforced   *bool                      // whether its fail policy was; nil if it has none
	refused    string                     // why it was not to start
	unwritable uint64                     // lines that no chunk could take
	unreadable int                        // open gaps of what could not be read
	gone       []foldedSite               // sites that only earlier lines are about

	lastGood  int64               // the last health check at which a file was well
	kernel    bpf.Run             // as last read
	left      int64               // when a task was first seen to leave
	elsewhere uint64              // tasks that left by what others know
	misses    evidence.Loss       // of the engine when the run began
	missesOf  []evidence.TypeLoss // the same by type, where the engine knows
	lost      evidence.Losses     // of this run
	lostOf    []evidence.TypeLoss // by type, also where nothing was

	paths     map[int]string // executable by pid
	processes []evidence.Process
	procGone  []evidence.Redaction // of the processes
	procBytes int
	procKnown map[string]bool
	procFull  uint64
}

func newRun(s Start) *run {
	r := &run{
		id: s.Identity, runID: s.Identity.RunID(), source: s.Source, arm: s.Arm, redact: s.Redact, policies: s.Policies, searches: slices.Clone(s.Searches),
		news:     make(chan struct{}),
		notified: s.Notified, first: s.ArmedAt, armedAt: s.ArmedAt, lastGood: s.ArmedAt, earlier: s.Earlier,
		paths: map[int]string{}, procKnown: map[string]bool{}, files: map[fileGap]bool{}, apart: map[evidence.GapReason]int{},
	}
	if s.Earlier != nil {
		r.first = min(s.Earlier.From, s.ArmedAt)
		if s.Earlier.Kept { // when the agent before last looked, nobody knows
			r.lastGood = r.first
		}
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
	r.sites = make([]site, len(s.Sites))
	for i := range s.Sites {
		r.sites[i].Site, r.sites[i].seen = &s.Sites[i], &nothing
		r.names += s.Sites[i].NameBytes()
	}
	r.index()
	r.findSets(0)
	if s.Arm != nil {
		r.misses = r.sinceArmed(s.Arm.Misses(), true)
		r.learnTypes()
	}
	return r
}

// learnTypes remembers what the kernel had missed of each probe type when the
// run first had a site of it.
func (r *run) learnTypes() {
	m, ok := r.arm.(MissesByType)
	if !ok {
		return
	}
	for i := range r.sites {
		s := &r.sites[i]
		if s.Armed && !slices.ContainsFunc(r.missesOf, func(l evidence.TypeLoss) bool { return l.ProbeType == s.Type }) {
			r.missesOf = append(r.missesOf, evidence.TypeLoss{ProbeType: s.Type, KernelMissed: r.sinceArmed(m.MissesOf(s.Type), s.Kept)})
		}
	}
}

// sinceArmed is what had been missed when the run was armed. Where that was an earlier
// agent nobody knows it any more: all of it may have been since.
func (r *run) sinceArmed(now evidence.Loss, kept bool) evidence.Loss {
	if kept && r.earlier != nil && r.earlier.Kept {
		now.N = 0
	}
	return now
}

// take remembers an event and reports whether a site's state changed by it.
func (r *run) take(e bpf.Event) bool {
	switch e.Kind {
	case bpf.EventExec:
		if len(r.paths) >= maxPids {
			clear(r.paths)
		}
		r.paths[e.Pid] = e.Path
		r.addProcess(*r.process(e))
		if r.kernel.FirstExecNs == 0 {
			r.kernel.FirstExecNs = e.Ns
		}
		return r.seen(0, e)
	case bpf.EventHit:
		return r.seen(e.Site, e)
	case bpf.EventLost:
		if r.left == 0 || e.Ns < r.left {
			r.left = e.Ns
		}
		r.attributionLost(max(1, r.kernel.Left+r.kernel.Untracked), "a task left the container's cgroup subtree")
		return true
	}
	return false
}

// process is the process of an event.
func (r *run) process(e bpf.Event) *evidence.Process {
	p := &evidence.Process{Pid: e.Pid, Comm: e.Comm, Path: r.paths[e.Pid]}
	if e.Session == bpf.SessionExec {
		p.Session = evidence.SessionExec
	}
	return p
}

// attributionLost notes that so many tasks have left so far.
func (r *run) attributionLost(total uint64, detail string) {
	from := r.left
	if from == 0 {
		from = r.armedAt // when is not known
	}
	r.sum(evidence.GapAttributionLost, wholeRun, max(from, r.first), total+r.elsewhere, detail)
}

// addProcess keeps the distinct executables that the container ran.
func (r *run) addProcess(p evidence.Process) {
	gone := r.redact.Process(&p) // before they are counted: those that read alike are one
	key := p.Comm + "\x00" + p.Path + "\x00" + p.Session
	if r.procKnown[key] {
		return
	}
	b, err := json.Marshal(p)
	if err != nil || r.procBytes+len(b) > maxProcessBytes {
		r.procFull++
		r.sum(evidence.GapSetFull, wholeRun, r.armedAt, r.procFull, "distinct executables past the bound of the set")
		return
	}
	r.procKnown[key] = true
	r.procBytes += len(b)
	r.processes = append(r.processes, p)
	r.procGone = evidence.SortRedactions(evidence.KindObservation, append(r.procGone, gone...))
}

// refresh reads the counters. What has changed is then among what the next lines
// look at.
func (r *run) refresh(log *slog.Logger) {
	if r.arm == nil {
		return
	}
	// First this: what was dropped by then is in the counters that are read next.
	k, err := r.arm.Run()
	r.read(log, false)
	if err != nil {
		log.Error("read a container's counters", "run", r.runID, "err", err)
		r.unread(wholeRun, err)
		return
	}
	r.readAgain(wholeRun)
	r.whole(k)
}

// unread notes that what was counted could not be read: whether anything was
// executed is not known then.
func (r *run) unread(sel selector, err error) {
	if g := r.openGap(evidence.GapLinkLost, sel); g != nil {
		r.grow(g, g.count+1)
		return
	}
	r.addGap(&gap{selector: sel, reason: evidence.GapLinkLost, from: r.first, count: 1, detail: clip("what was counted could not be read: "+err.Error(), maxDetail), unread: true})
	r.unreadable++
}

// readAgain notes that it can be. What was signed is not taken back, but it is no
// more than a moment: counters only grow, so nothing is missing.
func (r *run) readAgain(sel selector) {
	if g := r.openGap(evidence.GapLinkLost, sel); g != nil && g.unread {
		r.unreadable--
		r.close(g, g.from)
	}
}

// sweep is refresh for those who only want first hits that nobody told of: of a
// run that dropped none since its counters were last read there are none.
func (r *run) sweep(log *slog.Logger) {
	if r.arm == nil {
		return
	}
	k, err := r.arm.Run()
	if err != nil {
		log.Error("read a container's counters", "run", r.runID, "err", err)
		r.unread(wholeRun, err)
		return
	}
	if k.RingFull > r.kernel.RingFull {
		r.read(log, true)
		r.whole(k)
	}
}

// read reads the sites' counters; unhit leaves out those with a hit.
func (r *run) read(log *slog.Logger, unhit bool) {
	for i := range r.sites {
		s := &r.sites[i]
		if !s.counted() || unhit && s.said.state == saidHit {
			continue
		}
		c, err := r.count(s)
		if err != nil {
			log.Error("read a counter", "run", r.runID, "probe", s.Probe.ID, "err", err)
			if r.unreadable < maxUnread {
				r.unread(s.selector(), err)
			} else {
				r.unread(wholeRun, err)
			}
			continue
		}
		if r.unreadable > 0 {
			r.readAgain(s.selector())
		}
		s.merge(c)
		r.last = max(r.last, s.counter.LastNs)
		if s.counter.Count > 0 && s.said.state != saidHit {
			r.touch(i)
		}
	}
}

// whole takes what the kernel counts of the run as a whole.
func (r *run) whole(k bpf.Run) {
	if r.kernel.FirstExecNs != 0 && (k.FirstExecNs == 0 || r.kernel.FirstExecNs < k.FirstExecNs) {
		k.FirstExecNs = r.kernel.FirstExecNs
	}
	if k.RingFull > r.kernel.RingFull {
		r.sum(evidence.GapRingFull, wholeRun, r.armedAt, k.RingFull, "first-hit or exec detail was dropped; counters are not affected")
	}
	if k.ExecsLost > r.kernel.ExecsLost {
		r.execsLost(k.ExecsLost - r.kernel.ExecsLost)
	}
	switch {
	case k.Untracked > r.kernel.Untracked: // of these it is not known
		r.attributionLost(k.Left+k.Untracked, "tasks left the container's cgroup subtree, or could not be followed")
	case k.Left > r.kernel.Left:
		r.attributionLost(k.Left+k.Untracked, "tasks left the container's cgroup subtree")
	}
	r.kernel = k
	r.lost.RingFull = evidence.Loss{N: k.RingFull}
	if m, ok := r.arm.(MissesByType); ok {
		r.missed(m)
		return
	}
	switch m := r.arm.Misses(); {
	case m.Unknowable:
		r.lost.KernelMissed, r.lost.Reason = m, whyUnknowable
	case m.N > r.misses.N:
		r.lost.KernelMissed = evidence.Loss{N: m.N - r.misses.N}
		r.sum(evidence.GapKernelMissed, wholeRun, r.armedAt, m.N-r.misses.N, whatMissed)
	}
}

const (
	whyUnknowable = "this kernel does not count every skipped program run"
	whatMissed    = "program runs that the kernel skipped, of all containers together"
)

// missed reads what the kernel missed of each probe type that the run uses: what
// it missed of one is no gap of another.
func (r *run) missed(m MissesByType) {
	r.lostOf, r.lost.ByType, r.lost.KernelMissed, r.lost.Reason = r.lostOf[:0], nil, evidence.Loss{}, ""
	for _, before := range r.missesOf {
		now := m.MissesOf(before.ProbeType)
		l := evidence.TypeLoss{ProbeType: before.ProbeType, KernelMissed: now}
		switch {
		case now.Unknowable:
			r.lost.Reason = whyUnknowable
		case now.N > before.KernelMissed.N:
			l.KernelMissed.N -= before.KernelMissed.N
			r.sum(evidence.GapKernelMissed, selector{scope: evidence.ScopeRun, probeType: l.ProbeType}, r.armedAt, l.KernelMissed.N, whatMissed)
		default:
			l.KernelMissed.N = 0
		}
		r.lostOf = append(r.lostOf, l)
		if l.KernelMissed != (evidence.Loss{}) {
			r.lost.ByType = append(r.lost.ByType, l)
		}
		sum := &r.lost.KernelMissed
		sum.Unknowable = sum.Unknowable || l.KernelMissed.Unknowable
		sum.N += l.KernelMissed.N
	}
	if r.lost.KernelMissed.Unknowable {
		r.lost.KernelMissed.N = 0
	}
}

// losses are those that the site's confidence is computed from.
func (r *run) losses(s *site) evidence.Losses {
	for _, l := range r.lostOf {
		if l.ProbeType == s.Type {
			return evidence.Losses{KernelMissed: l.KernelMissed}
		}
	}
	return r.lost
}

// fileGap is what a file has one gap line for.
type fileGap struct {
	reason evidence.GapReason
	path   string
}

// moreFiles begins what is said of the run instead of a file.
const moreFiles = "one of more files than are told apart: "

// toldApart reports whether gaps of this reason are told of the file apart from others;
// else they are the whole run's. A container has as many files as it likes, and chooses
// when they change.
func (r *run) toldApart(reason evidence.GapReason, path string) bool {
	f := fileGap{reason, path}
	if !r.files[f] && r.apart[reason] < maxGapFiles {
		r.files[f] = true
		r.apart[reason]++
	}
	return r.files[f]
}

// checked opens and closes gaps after a health check.
func (r *run) checked(at int64, troubles []probe.Trouble) {
	type place struct {
		reason evidence.GapReason
		selector
	}
	bad := map[place]bool{}
	for _, t := range troubles {
		sel := selector{scope: evidence.ScopeFile, path: t.Path}
		switch {
		case t.Probe != "": // of a place in the kernel
			sel = selector{scope: evidence.ScopeSite, probe: t.Probe}
		case t.Path == "":
			sel = wholeRun
		case !r.toldApart(t.Reason, t.Path):
			sel, t.Detail = wholeRun, moreFiles+t.Detail
		}
		bad[place{t.Reason, sel}] = true
		g, from := r.openGap(t.Reason, sel), max(cmp.Or(t.Since, r.lastGood), r.first)
		if g == nil && t.Until != 0 && t.Until <= from {
			continue // over before this run began
		}
		switch {
		case g == nil:
			g = r.addGap(&gap{selector: sel, reason: t.Reason, from: from, count: 1, detail: clip(t.Detail, maxDetail), health: true})
		case g.health && sel == wholeRun && from < g.from: // it stands for several
			g.from = from
			r.queue(g)
		}
		if g.health && t.Until != 0 && sel != wholeRun { // what stands for several ends with the last of them
			r.close(g, t.Until)
		}
	}
	for _, g := range slices.Clone(r.gaps) {
		if g.to == 0 && g.health && !bad[place{g.reason, g.selector}] {
			r.close(g, at)
		}
	}
	if len(troubles) == 0 {
		r.lastGood = at
	}
}

// appeared takes sites that were armed after the start.
func (r *run) appeared(sites []probe.Site, searches []probe.Search, from, now int64, reason evidence.GapReason) {
	for _, s := range searches {
		if i := slices.IndexFunc(r.searches, func(h probe.Search) bool { return h.ProbeID == s.ProbeID }); i >= 0 {
			r.searches[i] = s
		} else {
			r.searches = append(r.searches, s)
		}
	}
	if from == 0 {
		from = r.first
	}
	from = min(max(from, r.first), now)
	known := make(map[identity]int, len(r.sites)+len(sites))
	for i := range r.sites {
		known[r.identityOf(r.sites[i].Site)] = i
	}
	late := map[int]bool{} // sites that have the gap
	before := len(r.sites)
	for i := range sites {
		_, has := known[r.identityOf(&sites[i])]
		if !has && (len(r.sites) >= maxSites || r.names+sites[i].NameBytes() > maxNameBytes) {
			r.cutSearch(sites[i].Probe.ID)
			continue
		}
		at, fresh := r.add(&sites[i], known, from, now)
		if sites[i].Armed && (fresh || r.sites[at].Site == &sites[i]) {
			late[at] = true
		}
	}
	r.index()
	r.findSets(before)
	if r.arm != nil {
		r.learnTypes()
	}
	// One line for all sites of a probe in a file, if no other site is there.
	type place struct{ probe, path string }
	others := map[place]bool{}
	for i := range r.sites {
		if s := &r.sites[i]; !late[i] && s.Armed {
			others[place{s.Probe.ID, s.path()}] = true
		}
	}
	done := map[place]bool{}
	for i := range r.sites {
		if !late[i] {
			continue
		}
		s := &r.sites[i]
		p := place{s.Probe.ID, s.path()}
		g := &gap{reason: reason, from: from, to: now, count: 1, detail: "armed after the container's start"}
		switch {
		case others[p]:
			r.addSiteGap(i, g)
		case !done[p]:
			done[p] = true
			g.selector = selector{scope: evidence.ScopeSite, probe: p.probe, path: p.path}
			r.addGap(g)
		}
	}
}

// cutSearch notes that sites of a probe are not kept.
func (r *run) cutSearch(probeID string) {
	for i := range r.searches {
		if s := &r.searches[i]; s.ProbeID == probeID {
			s.Complete, s.Why = false, "more sites appeared than are kept of one run"
		}
	}
}

// unarmedMapping notes that the file was executed or mapped in a way that probes
// do not reach, from from to to (0: still is). A container that does so again and
// again has one gap per file of its sites, and past the bound one for all further
// files.
//
// The file may be one of which a probe has no site yet: then it is a gap of each
// probe that may be for it, and of the whole run if none is.
//
// Without a path it may be any file; named is what a process called it, if that is
// known.
func (r *run) unarmedMapping(path, named string, from, to int64, detail string) {
	const reason = evidence.GapUnarmedMapping
	open := func(sel selector, named, detail string) (g *gap, fresh bool) {
		if g = r.openGap(reason, sel); g != nil {
			r.grow(g, g.count+1)
			return g, false
		}
		return r.addGap(&gap{selector: sel, reason: reason, from: max(from, r.first), count: 1, named: clip(named, maxDetail/2), detail: clip(detail, maxDetail)}), true
	}
	if path == "" {
		open(wholeRun, named, detail)
		return
	}
	has, probes := r.mayBe(path)
	for _, id := range probes {
		open(selector{scope: evidence.ScopeSite, probe: id}, path, detail)
	}
	sel := selector{scope: evidence.ScopeFile, path: path}
	switch {
	case has && r.toldApart(reason, path):
		if g, fresh := open(sel, "", detail); fresh && to != 0 {
			r.close(g, to)
		}
	case has:
		open(wholeRun, path, moreFiles+detail)
	case len(probes) == 0:
		open(wholeRun, path, detail)
	}
}

// execsLost notes that so many more files were executed of which nobody knows
// what they are: the news was dropped. Whoever looks for new files has not looked
// at these.
func (r *run) execsLost(more uint64) {
	done := map[string]bool{}
	for i := range r.sites {
		p := r.sites[i].Probe
		if done[p.ID] || !p.OfFiles() {
			continue
		}
		done[p.ID] = true
		sel := selector{scope: evidence.ScopeSite, probe: p.ID}
		if g := r.openGap(evidence.GapUnarmedMapping, sel); g != nil {
			r.grow(g, g.count+more)
			continue
		}
		r.addGap(&gap{selector: sel, reason: evidence.GapUnarmedMapping, from: max(r.armedAt, r.first), count: more, detail: "the news of an execve was dropped: it is not known what was executed"})
	}
}

// mayBe reports whether something is armed in the file of that path, and lists
// the probes that have nothing armed there and may be for it.
func (r *run) mayBe(path string) (has bool, probes []string) {
	armed := map[string]bool{} // by probe
	for i := range r.sites {
		s := &r.sites[i]
		here := s.Armed && s.File != nil && s.path() == path
		has = has || here
		armed[s.Probe.ID] = armed[s.Probe.ID] || here
	}
	for i := range r.sites {
		p := r.sites[i].Probe
		if there, ok := armed[p.ID]; ok && !there && p.MayBe(path) {
			probes = append(probes, p.ID)
		}
		delete(armed, p.ID)
	}
	return has, probes
}

// stood opens a gap of the sites with these numbers, whose counters stand still
// from now on.
func (r *run) stood(reason evidence.GapReason, from int64, detail string, ids []uint32) {
	of := map[string][]int{} // sites that now stand, by probe
	taken := map[int32]bool{}
	armed := map[string]int{}
	for i := range r.sites {
		if r.sites[i].Armed {
			armed[r.sites[i].Probe.ID]++
		}
	}
	for _, id := range ids {
		for _, n := range r.with(id) {
			s := &r.sites[n.at]
			if !taken[n.at] && r.standing(s, reason) == nil {
				taken[n.at] = true
				of[s.Probe.ID] = append(of[s.Probe.ID], int(n.at))
				if c, err := r.count(s); err == nil {
					s.merge(c)
				}
			}
		}
	}
	from, detail = max(from, r.first), clip(detail, maxDetail)
	for probeID, sites := range of {
		if len(sites) > 1 && len(sites) == armed[probeID] { // one line instead of thousands
			r.addGap(&gap{selector: selector{scope: evidence.ScopeSite, probe: probeID}, reason: reason, from: from, count: 1, detail: detail})
			continue
		}
		for _, i := range sites {
			r.addSiteGap(i, &gap{reason: reason, from: from, count: 1, detail: detail})
		}
	}
}

// standing returns the open gap of one of the reasons for which a site stands
// still, if it does.
func (r *run) standing(s *site, reason evidence.GapReason) *gap {
	for _, g := range s.gaps {
		if g.to == 0 && g.reason == reason {
			return g
		}
	}
	for _, g := range r.gaps {
		if g.to == 0 && g.reason == reason && g.scope == evidence.ScopeSite && g.covers(s) {
			return g
		}
	}
	return nil
}

// standStill are the reasons for which sites stand still and may be armed again.
var standStill = []evidence.GapReason{evidence.GapStoodDown, evidence.GapBudgetDisarm}

// rearmed closes these gaps of the sites with these numbers.
func (r *run) rearmed(at int64, ids []uint32) {
	again := map[int]bool{}
	for _, id := range ids {
		for _, n := range r.with(id) {
			again[int(n.at)] = true
		}
	}
	for i := range again {
		for _, g := range r.sites[i].gaps {
			if g.to == 0 && slices.Contains(standStill, g.reason) {
				r.closeSite(i, g, at)
			}
		}
	}
	for _, g := range slices.Clone(r.gaps) {
		if g.to != 0 || g.scope != evidence.ScopeSite || !slices.Contains(standStill, g.reason) {
			continue
		}
		var rest []int // those that stand on
		some := false
		for i := range r.sites {
			if s := &r.sites[i]; s.Armed && g.covers(s) {
				if again[i] {
					some = true
				} else {
					rest = append(rest, i)
				}
			}
		}
		if !some {
			continue
		}
		r.close(g, at)
		for _, i := range rest {
			r.addSiteGap(i, &gap{reason: g.reason, from: at, count: 1, detail: g.detail})
		}
	}
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
		for _, g := range s.gaps {
			if what := string(g.reason) + " " + s.name(); len(l.Gaps) < maxLiveGaps && !slices.Contains(l.Gaps, what) {
				l.Gaps = append(l.Gaps, what)
			}
		}
	}
	for _, g := range r.gaps {
		l.Gaps = append(l.Gaps, strings.Join(strings.Fields(string(g.reason)+" "+string(g.probeType)+" "+g.probe+" "+g.path), " "))
	}
	return l
}

// maxLiveGaps bounds how many gaps of single sites are listed for a person.
const maxLiveGaps = 16
