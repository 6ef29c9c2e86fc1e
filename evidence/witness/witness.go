// Package witness turns what the kernel counted into what the evidence says.
//
// In: armed containers (identity, sites, counters), events of the ring buffer,
// troubles and gaps. Out: lines, handed to a [Sink] in the order in which they
// became true. It is the only package that knows both who a container is and
// how evidence is written. On return from a method its lines are with the
// sink; whether they are on disk is the sink's business.
//
// It trusts the kernel's counters above everything else: an event carries
// detail (which process), never a count. Strings in events were chosen by the
// container and are only ever quoted. It is not a control: it cannot tell
// whether a site was worth probing, only what was seen there.
package witness

import (
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"probity/bpf"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/redact"
	"probity/runtime/container"
)

// Sink takes lines. build is given the clock of the chunk that the lines go
// into; it may be called again with another one, and then its last lines count.
// The lines are good until Append returns.
// A sink that takes lines of several runs at once must not mix up the order of
// those of one.
type Sink interface {
	Append(runID string, build func(evidence.Clock) []redact.Line) error
	// Seal closes the open chunk now.
	Seal()
}

// Thrift is a Sink that wants fewer lines of a container while it has little room:
// those that a later one replaces are then left out, which is signed.
type Thrift interface {
	Thrifty(containerID string) bool
}

// Armament is one armed container as the probe engine presents it.
type Armament interface {
	Counter(probe.Site) (bpf.Counter, error)
	Run() (bpf.Run, error)
	Misses() evidence.Loss
}

// MissesByType is an Armament that tells probe types apart: what the kernel
// missed of one is then no gap of another.
type MissesByType interface {
	MissesOf(evidence.ProbeType) evidence.Loss
}

// Timer is an Armament that pairs entries with returns. Duration is asked for
// sites whose probe wants it; nil says that nothing was counted.
type Timer interface {
	Duration(probe.Site) (*evidence.Duration, error)
}

// Config configures a Witness.
type Config struct {
	Sink     Sink
	BootTime func() int64 // CLOCK_BOOTTIME, nanoseconds
	// MaxEntryBytes bounds the memory of all entries of sets of all runs
	// (DefaultMaxEntryBytes). Past it, sets are full.
	MaxEntryBytes int64
	// Redact returns what is for lines that are of no run; a run has its own (Start).
	// nil: nothing is kept out of those.
	Redact func() *redact.Redactor
	Log    *slog.Logger
}

// Witness keeps the state of every live run. Safe for concurrent use: each run
// has its own lock, so that what one container does waits for no other's lines.
type Witness struct {
	cfg     Config
	entries atomic.Int64  // bytes of entries of all runs
	leftOut atomic.Uint64 // lines, of all runs

	mu       sync.RWMutex    // no run's lock is taken while it is held; not held over the sink
	runs     map[string]*run // by run id
	byCgroup map[uint64]*run
	sources  map[string]*gap              // open runtimeDisconnected gaps
	node     map[evidence.GapReason]int64 // until when the latest gap of the node lasted (Node)
}

// New returns a witness of nothing.
func New(cfg Config) *Witness {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxEntryBytes == 0 {
		cfg.MaxEntryBytes = DefaultMaxEntryBytes
	}
	if cfg.Redact == nil {
		cfg.Redact = func() *redact.Redactor { return nil }
	}
	return &Witness{cfg: cfg, runs: map[string]*run{}, byCgroup: map[uint64]*run{}, sources: map[string]*gap{}, node: map[evidence.GapReason]int64{}}
}

// run returns a live run, with its lock held, or nil.
func (w *Witness) run(runID string) *run {
	w.mu.RLock()
	r := w.runs[runID]
	w.mu.RUnlock()
	return r.locked()
}

// ofCgroup returns the run whose events the cgroup's are, with its lock held, or
// nil.
func (w *Witness) ofCgroup(cgroup uint64) *run {
	w.mu.RLock()
	r := w.byCgroup[cgroup]
	w.mu.RUnlock()
	return r.locked()
}

// locked returns the run with its lock held, or nil if its last lines are
// written: who found it before that comes too late.
func (r *run) locked() *run {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	if r.over {
		r.mu.Unlock()
		return nil
	}
	return r
}

// all returns the live runs, in no order.
func (w *Witness) all() []*run {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return slices.Collect(maps.Values(w.runs))
}

// Start is what is known when a container has been armed, or could not be. The
// sites must not be changed afterwards: there may be many, and they are kept.
type Start struct {
	Identity container.Identity
	Source   string
	Sites    []probe.Site
	Searches []probe.Search
	Arm      Armament         // nil if nothing could be armed
	Redact   *redact.Redactor // what its policies keep out of evidence
	Policies string           // digest of the policies that it is armed under
	Notified int64            // boot time at which the source announced the start, or of the start itself
	Earlier  *Earlier         // of a run that ran already; nil of one that starts
	ArmedAt  int64
}

// Armed begins a run: from now on its events are taken. It writes nothing and
// is quick, so that it can be called while the container is held; Publish
// follows when the container is on its way.
func (w *Witness) Armed(s Start) {
	r := newRun(s)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.runs[r.runID] = r
	if s.Arm != nil { // else the cgroup may be another run's
		w.byCgroup[s.Identity.CgroupID] = r
	}
}

// NotHashed says of files that there was no time to hash them for this run: their
// lines say so instead of a digest. That holds for all of them, also if somebody
// hashes the file later: with and without one they would be of two sites. Files of
// sites that are not named must have been hashed, or lines wait for that.
func (w *Witness) NotHashed(runID string, files map[*probe.File]error) {
	if len(files) == 0 {
		return
	}
	if r := w.run(runID); r != nil {
		defer r.mu.Unlock()
		if r.unhashed == nil {
			r.unhashed = map[*probe.File]error{}
		}
		maps.Copy(r.unhashed, files)
	}
}

// News returns a channel that is closed when something happened in the run which
// waits for its first lines, such as a hit. It is nil if there is no such run.
func (w *Witness) News(runID string) <-chan struct{} {
	r := w.run(runID)
	if r == nil {
		return nil
	}
	defer r.mu.Unlock()
	return r.news
}

// Publish writes the run's first lines: one coverage line, one observation per
// site, and the lateAttach gap if the container may have been running from
// released on, before it was armed; 0 says that it was held. Of a run that ran
// already it writes the gap until it was armed instead (Start.Earlier).
func (w *Witness) Publish(runID string, released int64) {
	r := w.run(runID)
	if r == nil {
		return
	}
	defer r.mu.Unlock()
	if r.public {
		return
	}
	r.public = true
	if released != 0 && released < r.armedAt {
		r.first = released
		g := r.addGap(&gap{selector: wholeRun, reason: evidence.GapLateAttach, from: released, count: 1, detail: "the container was let go before its sites were armed"})
		r.close(g, r.armedAt)
	}
	r.takeUp(w.cfg.Log)
	w.knowNode(r)
	r.refresh(w.cfg.Log)
	w.emit(r, w.cfg.BootTime(), everything)
}

// FailPolicy says whether the container of a run of which policies require probes
// could start only with them, and why it was refused, or "". What was said not to be
// enforced stays so, and why it was refused stays said.
func (w *Witness) FailPolicy(runID string, enforced bool, refused string) {
	r := w.run(runID)
	if r == nil {
		return
	}
	defer r.mu.Unlock()
	enforced = enforced && (r.enforced == nil || *r.enforced)
	r.enforced = &enforced
	if r.refused == "" {
		r.refused = plain(refused, maxDetail)
	}
	if r.public {
		w.emit(r, w.cfg.BootTime(), changed|coverage)
	}
}

// Add takes sites that were armed, or could not be, after the run's start: of a
// file that appeared, or that the container changed. Their window is the run's,
// with a gap of the given reason up to now, from from, which is when the file's
// code may first have run there (0: the run's start). A site that a reader cannot
// tell from one that the run has already, because only the inode is another, goes
// on where that left off. searches replace those of the same probes. The sites
// must not be changed afterwards.
func (w *Witness) Add(runID string, sites []probe.Site, searches []probe.Search, from int64, reason evidence.GapReason) {
	r := w.run(runID)
	if r == nil {
		return
	}
	defer r.mu.Unlock()
	r.refresh(w.cfg.Log)
	now := w.cfg.BootTime()
	r.appeared(sites, searches, from, now, reason)
	of := changed
	if now-r.grewAt >= growEvery {
		of, r.grewAt = changed|coverage, now
	}
	w.emit(r, now, of)
}

// Stood says that the counters of these sites stand still from a boot time on,
// for [evidence.GapStoodDown] or [evidence.GapBudgetDisarm]: what they have
// counted is read once more.
func (w *Witness) Stood(runID string, reason evidence.GapReason, from int64, detail string, siteIDs ...uint32) {
	if r := w.run(runID); r != nil {
		defer r.mu.Unlock()
		r.stood(reason, from, detail, siteIDs)
		w.emit(r, max(from, w.cfg.BootTime()), changed)
	}
}

// Rearmed says that sites that stood still count again from a boot time on.
func (w *Witness) Rearmed(runID string, at int64, siteIDs ...uint32) {
	if r := w.run(runID); r != nil {
		defer r.mu.Unlock()
		r.rearmed(at, siteIDs)
		w.emit(r, max(at, w.cfg.BootTime()), changed)
	}
}

// AttributionLost says that so many further tasks of a container are no more
// attributed to it, from a boot time on. What bpf.Run counts is read by the
// witness itself: this is for what only somebody else knows.
func (w *Witness) AttributionLost(runID string, count uint64, at int64, detail string) {
	if r := w.run(runID); r != nil {
		defer r.mu.Unlock()
		sel := wholeRun
		if g := r.openGap(evidence.GapAttributionLost, sel); g != nil {
			r.elsewhere += count
			r.grow(g, g.count+count)
		} else {
			r.elsewhere += count
			r.addGap(&gap{selector: sel, reason: evidence.GapAttributionLost, from: max(at, r.first), count: count, detail: clip(detail, maxDetail)})
		}
		w.emit(r, max(at, w.cfg.BootTime()), changed)
	}
}

// UnarmedMapping says that a file was mapped executable in a way that probes do
// not reach, from one boot time to another (0: it still is). Without a path any
// file may have been.
func (w *Witness) UnarmedMapping(runID, path string, from, to int64, detail string) {
	if r := w.run(runID); r != nil {
		defer r.mu.Unlock()
		r.unarmedMapping(path, "", from, to, detail)
		w.emit(r, max(from, w.cfg.BootTime()), changed)
	}
}

// UnarmedFile is UnarmedMapping of a file that may be any, and still is mapped; named
// is what a process called it.
func (w *Witness) UnarmedFile(runID, named string, from int64, detail string) {
	if r := w.run(runID); r != nil {
		defer r.mu.Unlock()
		r.unarmedMapping("", named, from, 0, detail)
		w.emit(r, max(from, w.cfg.BootTime()), changed)
	}
}

// Event takes one decoded record of the ring buffer.
func (w *Witness) Event(e bpf.Event) {
	r := w.ofCgroup(e.Cgroup)
	if r == nil {
		return // sealed in the meantime; its counters were read then
	}
	defer r.mu.Unlock()
	if r.take(e) {
		w.emit(r, max(e.Ns, w.cfg.BootTime()), changed)
	}
}

// Stack takes the user stack of a site's first hit. The first one counts.
func (w *Witness) Stack(cgroup uint64, site uint32, s *evidence.Stack) {
	r := w.ofCgroup(cgroup)
	if r == nil {
		return
	}
	defer r.mu.Unlock()
	for _, n := range r.with(site) {
		if at := &r.sites[n.at]; at.Probe.Stack && at.stack == nil {
			at.own().stack = s
			r.touch(int(n.at))
		}
	}
	w.emit(r, w.cfg.BootTime(), changed)
}

// Entries takes entries of a container's sets; all that are new are one append to
// the sink. They are the witness's then. Of one that was told before it only takes the count, which the next
// hourly lines tell.
func (w *Witness) Entries(cgroup uint64, entries ...*Entry) {
	r := w.ofCgroup(cgroup)
	if r == nil {
		return
	}
	defer r.mu.Unlock()
	news, to := false, int64(0)
	for _, e := range entries {
		if r.enter(e, w.room) {
			news = true
		}
		to = max(to, e.At, e.Last)
	}
	if news {
		w.emit(r, to, changed)
	}
}

// Again takes a further reading of an entry that was told, and reports whether it
// was: who reads all entries of a container to find what is new need not make the
// others out.
func (w *Witness) Again(cgroup uint64, set string, k Key, count uint64, at, last int64) bool {
	r := w.ofCgroup(cgroup)
	if r == nil {
		return false
	}
	defer r.mu.Unlock()
	s := r.sets[set]
	if s == nil {
		return false
	}
	before, known := s.told[k]
	if known {
		r.again(s, k, before, count, at, last)
	}
	return known
}

// room takes so many bytes for entries, if there are any left.
func (w *Witness) room(n int64) bool {
	if w.entries.Add(n) > w.cfg.MaxEntryBytes {
		w.entries.Add(-n)
		return false
	}
	return true
}

// SetCounts takes what the kernel counts of a container's set besides its entries,
// since the run's start: things that would have been new entries past its bound
// (full), those of which it could not read what they were (lost), and those that
// were done in a way that the set's hooks do not see (around).
func (w *Witness) SetCounts(cgroup uint64, set string, full, lost, around uint64) {
	r := w.ofCgroup(cgroup)
	if r == nil {
		return
	}
	defer r.mu.Unlock()
	now := w.cfg.BootTime()
	if r.setCounts(set, full, lost, around, now); len(r.stale)+len(r.unsaid) > 0 {
		w.emit(r, now, changed)
	}
}

// Unread says that what the kernel has of a container's sets could not be read, or
// not all of it.
func (w *Witness) Unread(cgroup uint64, err error) {
	r := w.ofCgroup(cgroup)
	if r == nil {
		return
	}
	defer r.mu.Unlock()
	for _, set := range r.sets {
		for _, i := range set.sites {
			r.unread(r.sites[i].selector(), err)
		}
	}
	w.emit(r, w.cfg.BootTime(), changed)
}

// SystemCalls takes the system calls that a container has used so far.
func (w *Witness) SystemCalls(cgroup uint64, s SystemCalls) {
	r := w.ofCgroup(cgroup)
	if r == nil {
		return
	}
	defer r.mu.Unlock()
	if r.calls(s) {
		w.emit(r, max(s.Last, w.cfg.BootTime()), changed)
	}
}

// Undecodable counts a record that could not be decoded: its container is not
// known, so the gap is the node's.
func (w *Witness) Undecodable(err error) {
	now := w.cfg.BootTime()
	g := &gap{id: NewGapID(), reason: evidence.GapDecodeError, selector: selector{scope: evidence.ScopeNode}, from: now, to: now, count: 1, detail: clip(err.Error(), maxDetail)}
	w.sign(g)
}

// Node signs a gap of the node's clocks, [evidence.GapSuspended] or
// [evidence.GapClockStep], in boot time. Neither takes anything from a site's window:
// no code ran, and boot times are what they were. So it has one line, and not one for
// each site of each run; the coverage lines of the runs in whose windows it lies name
// its reason from now on.
func (w *Witness) Node(reason evidence.GapReason, from, to int64, count uint64, detail string) {
	w.mu.Lock()
	w.node[reason] = max(w.node[reason], to)
	w.mu.Unlock()
	for _, r := range w.all() {
		r.mu.Lock()
		w.knowNode(r)
		r.mu.Unlock()
	}
	w.sign(&gap{id: NewGapID(), selector: selector{scope: evidence.ScopeNode}, reason: reason, from: from, to: to, count: count, detail: clip(detail, maxDetail)})
}

// knowNode notes the node's gaps that ended after the run's window began.
func (w *Witness) knowNode(r *run) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	for _, reason := range evidence.GapReasons { // in one order
		if to, ok := w.node[reason]; ok && r.first < to {
			r.knowReason(reason)
		}
	}
}

// Sweep writes first hits and gaps that nobody told of. The agent calls it when the
// ring was full: the counters are the truth. It reads those of the runs whose own
// events were dropped since their counters were last read, and of these the sites
// without a hit, so that a container that fills the ring all the time costs the
// node little more than its own sites. What has only grown since is told at most
// every growEvery.
func (w *Witness) Sweep() {
	for _, r := range w.all() {
		r.mu.Lock()
		if r.public && !r.over {
			r.sweep(w.cfg.Log)
			now := w.cfg.BootTime()
			if r.due(now) || len(r.grown) > 0 && now-r.grewAt >= growEvery {
				w.emit(r, now, changed)
			}
		}
		r.mu.Unlock()
	}
}

// Restate writes everything about these runs again, because lines of theirs were
// dropped. States are cumulative: only the moments of the changes are lost.
func (w *Witness) Restate(runIDs []string) {
	for _, id := range runIDs {
		if r := w.run(id); r != nil {
			r.refresh(w.cfg.Log)
			w.emit(r, w.cfg.BootTime(), everything|allEntries)
			r.mu.Unlock()
		}
	}
}

// Hourly writes one coverage line per live run, and the sites and entries whose
// state or count changed since their last line.
func (w *Witness) Hourly() {
	for _, r := range w.all() {
		r.mu.Lock()
		r.refresh(w.cfg.Log)
		w.emit(r, w.cfg.BootTime(), coverage|counts)
		r.mu.Unlock()
	}
}

// Checked records the result of a health check that ended at the given boot
// time: a file in trouble has a gap from the last good check on, until it is
// found well again, be it in this check.
func (w *Witness) Checked(runID string, at int64, troubles []probe.Trouble) {
	r := w.run(runID)
	if r == nil {
		return
	}
	defer r.mu.Unlock()
	r.checked(at, troubles)
	for _, t := range troubles {
		at = max(at, t.Until) // the lines tell of that
	}
	if len(r.unsaid) > 0 {
		r.refresh(w.cfg.Log)
		w.emit(r, at, changed)
	} else if r.due(at) {
		w.emit(r, at, changed)
	}
}

// End seals a run: its counters are read one last time, and coverage and all
// sites are written. final is false if the container was still there.
func (w *Witness) End(runID string, at int64, final bool) {
	w.end(runID, at, final)
	w.cfg.Sink.Seal()
}

// Stop ends every run with final: false, because the agent stops. It calls progress after
// each.
func (w *Witness) Stop(progress func()) {
	now := w.cfg.BootTime()
	for _, r := range w.all() {
		w.end(r.runID, now, false)
		progress()
	}
	w.mu.Lock()
	lost := slices.Collect(maps.Values(w.sources))
	clear(w.sources)
	w.mu.Unlock()
	for _, g := range lost {
		g.to, g.detail = now, "until the agent stopped"
		w.sign(g)
	}
	w.cfg.Sink.Seal()
}

func (w *Witness) end(runID string, at int64, final bool) {
	r := w.run(runID)
	if r == nil {
		return
	}
	defer r.mu.Unlock()
	if r.over {
		return
	}
	r.public = true
	w.knowNode(r)
	r.refresh(w.cfg.Log)
	if final {
		r.ended = at
	}
	for _, g := range r.gaps {
		if g.to == 0 {
			r.close(g, at)
		}
	}
	for i := range r.sites {
		for _, g := range r.sites[i].gaps {
			if g.to == 0 {
				r.closeSite(i, g, at)
			}
		}
	}
	r.final = final
	w.emit(r, at, everything)
	r.over = true
	for _, set := range r.sets {
		w.entries.Add(-set.bytes)
	}
	w.mu.Lock()
	delete(w.runs, runID)
	if w.byCgroup[r.id.CgroupID] == r {
		delete(w.byCgroup, r.id.CgroupID)
	}
	w.mu.Unlock()
}

// SourceLost opens a gap of the source: containers may start unseen from now on.
func (w *Witness) SourceLost(source string, from int64, detail string) {
	g := sourceGap(source, from, 0, detail)
	w.mu.Lock()
	again := w.sources[source] != nil
	if !again {
		w.sources[source] = g
	}
	w.mu.Unlock()
	if !again {
		w.sign(g)
	}
}

// SourceMissed signs that a source told of a container that could not be taken.
func (w *Witness) SourceMissed(source string, from, to int64, detail string) {
	w.sign(sourceGap(source, from, to, detail))
}

func sourceGap(source string, from, to int64, detail string) *gap {
	return &gap{
		id: NewGapID(), selector: selector{scope: evidence.ScopeSource}, reason: evidence.GapRuntimeDisconnected, source: source,
		from: from, to: to, count: 1, detail: clip(detail, maxDetail),
	}
}

// SourceBack closes it.
func (w *Witness) SourceBack(source string, to int64) {
	w.mu.Lock()
	g := w.sources[source]
	delete(w.sources, source)
	w.mu.Unlock()
	if g != nil {
		closed := *g // its opening line may be on its way
		closed.to = to
		w.sign(&closed)
	}
}

// Live is a run as `probity containers` shows it.
type Live struct {
	RunID    string             `json:"runId"`
	Identity container.Identity `json:"identity"`
	ArmedAt  int64              `json:"armedAtNs,string"`
	Sites    int                `json:"sites"`
	Armed    int                `json:"armed"`
	Hit      int                `json:"hit"`
	Gaps     []string           `json:"gaps"`
}

// Live lists the live runs, in no order.
func (w *Witness) Live() []Live {
	out := []Live{}
	for _, r := range w.all() {
		r.mu.Lock()
		out = append(out, r.live())
		r.mu.Unlock()
	}
	return out
}

// Coalesced is how many lines were left out because a later one says the same, at
// least, of all runs so far.
func (w *Witness) Coalesced() uint64 { return w.leftOut.Load() }

// sign hands a gap that is no run's to the sink. A sink that cannot take it
// counts it as dropped itself; here it is only told to a person.
func (w *Witness) sign(g *gap) {
	err := w.cfg.Sink.Append("", func(c evidence.Clock) []redact.Line {
		return w.cfg.Redact().Lines(g.line(c))
	})
	if err != nil {
		w.cfg.Log.Error("evidence was not taken", "gap", g.reason, "err", err)
	}
}

// NewGapID returns a fresh id for a gap.
func NewGapID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand since Go 1.24)
	return hex.EncodeToString(b[:])
}

// Bounds on text in lines, in bytes.
const (
	maxDetail        = 512
	maxSearchReasons = 4 << 10 // of one coverage line together
)

// plain is clip without what takes up to six times its place in JSON.
func plain(s string, most int) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == '"' || r == '\\' || r == '\u2028' || r == '\u2029' {
			return '?'
		}
		return r
	}, clip(s, most))
}

// clip bounds text that somebody else chose the length of, and makes it UTF-8.
func clip(s string, most int) string {
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
