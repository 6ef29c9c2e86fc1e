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
	"strings"
	"sync"

	"probity/bpf"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/runtime/container"
)

// Sink takes lines. build is called at most once, with the clock of the chunk
// that the lines go into.
type Sink interface {
	Append(runID string, build func(evidence.Clock) []evidence.Line) error
	// Seal closes the open chunk now.
	Seal()
}

// Armament is one armed container as the probe engine presents it.
type Armament interface {
	Counter(probe.Site) (bpf.Counter, error)
	Run() (bpf.Run, error)
	Misses() evidence.Loss
}

// Config configures a Witness.
type Config struct {
	Sink     Sink
	BootTime func() int64 // CLOCK_BOOTTIME, nanoseconds
	Policies string       // digest of the policies in force
	Log      *slog.Logger
}

// Witness keeps the state of every live run. Safe for concurrent use.
type Witness struct {
	cfg Config

	mu       sync.Mutex
	runs     map[string]*run // by run id
	byCgroup map[uint64]*run
	sources  map[string]*gap // open runtimeDisconnected gaps
}

// New returns a witness of nothing.
func New(cfg Config) *Witness {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Witness{cfg: cfg, runs: map[string]*run{}, byCgroup: map[uint64]*run{}, sources: map[string]*gap{}}
}

// Start is what is known when a container has been armed, or could not be.
type Start struct {
	Identity container.Identity
	Source   string
	Sites    []probe.Site
	Searches []probe.Search
	Arm      Armament // nil if nothing could be armed
	Notified int64    // boot time at which the source announced the start
	ArmedAt  int64
}

// Armed begins a run: from now on its events are taken. It writes nothing and
// is quick, so that it can be called while the container is held; Publish
// follows when the container is on its way.
func (w *Witness) Armed(s Start) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := newRun(s)
	w.runs[r.runID] = r
	if s.Arm != nil { // else the cgroup may be another run's
		w.byCgroup[s.Identity.CgroupID] = r
	}
}

// Publish writes the run's first lines: one coverage line, one observation per
// site, and the lateAttach gap if the container may have been running from
// released on, before it was armed; 0 says that it was held.
func (w *Witness) Publish(runID string, released int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.runs[runID]
	if r == nil || r.public {
		return
	}
	r.public = true
	if released != 0 && released < r.armedAt {
		r.first = released
		r.addGap(&gap{reason: evidence.GapLateAttach, scope: evidence.ScopeRun, from: released, to: r.armedAt, count: 1, detail: "the container was let go before its sites were armed"})
	}
	r.refresh(w.cfg.Log)
	w.emit(r, w.cfg.BootTime(), everything)
}

// Event takes one decoded record of the ring buffer.
func (w *Witness) Event(e bpf.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.byCgroup[e.Cgroup]
	if r == nil {
		return // sealed in the meantime; its counters were read then
	}
	if r.take(e) {
		w.emit(r, max(e.Ns, w.cfg.BootTime()), changed)
	}
}

// Undecodable counts a record that could not be decoded: its container is not
// known, so the gap is the node's.
func (w *Witness) Undecodable(err error) {
	now := w.cfg.BootTime()
	g := &gap{id: NewGapID(), reason: evidence.GapDecodeError, scope: evidence.ScopeNode, from: now, to: now, count: 1, detail: clip(err.Error(), maxDetail)}
	w.sign(g)
}

// Sweep reads the counters of every live run and writes what changed. The
// agent calls it when the ring was full: the counters are the truth.
func (w *Witness) Sweep() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.runs {
		if r.refresh(w.cfg.Log) {
			w.emit(r, w.cfg.BootTime(), changed)
		}
	}
}

// Restate writes everything about these runs again, because lines of theirs were
// dropped. States are cumulative: only the moments of the changes are lost.
func (w *Witness) Restate(runIDs []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range runIDs {
		if r := w.runs[id]; r != nil {
			r.refresh(w.cfg.Log)
			w.emit(r, w.cfg.BootTime(), everything)
		}
	}
}

// Hourly writes one coverage line per live run, and the sites whose state or
// count changed since their last line.
func (w *Witness) Hourly() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.runs {
		r.refresh(w.cfg.Log)
		w.emit(r, w.cfg.BootTime(), coverage|changed)
	}
}

// Checked records the result of a health check that ended at the given boot
// time: a file in trouble has a gap from the last good check on, until it is
// found well again.
func (w *Witness) Checked(runID string, at int64, troubles []probe.Trouble) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.runs[runID]; r != nil && r.checked(at, troubles) {
		r.refresh(w.cfg.Log)
		w.emit(r, at, changed)
	}
}

// End seals a run: its counters are read one last time, and coverage and all
// sites are written. final is false if the container was still there.
func (w *Witness) End(runID string, at int64, final bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end(runID, at, final)
	w.cfg.Sink.Seal()
}

// Stop ends every run with final: false, because the agent stops.
func (w *Witness) Stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.cfg.BootTime()
	for id := range w.runs {
		w.end(id, now, false)
	}
	for _, g := range w.sources {
		g.to, g.detail = now, "until the agent stopped"
		w.sign(g)
	}
	clear(w.sources)
	w.cfg.Sink.Seal()
}

func (w *Witness) end(runID string, at int64, final bool) {
	r := w.runs[runID]
	if r == nil {
		return
	}
	r.public = true
	r.refresh(w.cfg.Log)
	if final {
		r.ended = at
	}
	for _, g := range r.gaps {
		if g.to == 0 {
			r.close(g, at)
		}
	}
	r.final = final
	w.emit(r, at, everything)
	delete(w.runs, runID)
	if w.byCgroup[r.id.CgroupID] == r {
		delete(w.byCgroup, r.id.CgroupID)
	}
}

// SourceLost opens a gap of the source: containers may start unseen from now on.
func (w *Witness) SourceLost(source string, from int64, detail string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sources[source] != nil {
		return
	}
	g := &gap{id: NewGapID(), reason: evidence.GapRuntimeDisconnected, scope: evidence.ScopeSource, source: source, from: from, count: 1, detail: clip(detail, maxDetail)}
	w.sources[source] = g
	w.sign(g)
}

// SourceMissed signs that a source told of a container that could not be taken.
func (w *Witness) SourceMissed(source string, from, to int64, detail string) {
	g := &gap{id: NewGapID(), reason: evidence.GapRuntimeDisconnected, scope: evidence.ScopeSource, source: source, from: from, to: to, count: 1, detail: clip(detail, maxDetail)}
	w.sign(g)
}

// SourceBack closes it.
func (w *Witness) SourceBack(source string, to int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.sources[source]
	if g == nil {
		return
	}
	delete(w.sources, source)
	g.to = to
	w.sign(g)
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
	w.mu.Lock()
	defer w.mu.Unlock()
	out := []Live{}
	for _, r := range w.runs {
		out = append(out, r.live())
	}
	return out
}

// sign hands a gap that is no run's to the sink. A sink that cannot take it
// counts it as dropped itself; here it is only told to a person.
func (w *Witness) sign(g *gap) {
	err := w.cfg.Sink.Append("", func(c evidence.Clock) []evidence.Line { return []evidence.Line{g.line(c)} })
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
