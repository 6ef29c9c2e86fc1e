package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/spool"
	"probity/evidence/witness"
)

// What counts is kept while there is no agent, where somebody holds it: links of files
// of layers, the maps, and what follows processes. The next agent goes on with it if it
// has the same programs: a run of the same policies whose counters went on has no gap. Of
// one of other policies the counters are read, and it is armed anew. Else all is let go of,
// and the gap is signed as where nothing was kept.

const (
	keptAbout    = "about"
	maxKeptAbout = 4096
	// keptFor is how long what was kept waits for a source to tell of its container.
	keptFor = 30 * time.Second
	// maxParked bounds the events of one container that wait for it.
	maxParked = 4096
)

// about says what the kept objects are, for who is to go on with them.
type about struct {
	Layout string `json:"layout"` // bpf.Layout
	BootID string `json:"bootId"`
	Agent  string `json:"agent"`
}

func (a *Agent) about() about {
	return about{bpf.Layout(), a.bootID, a.cfg.Version}
}

// takeKept returns what an earlier agent left to go on with; nil if that is nothing, or
// is let go of, and then the details of gaps say why.
func (a *Agent) takeKept() *bpf.Kept {
	files := a.cfg.Kept
	if len(files) == 0 {
		return nil
	}
	a.takeRecords(keptUnsigned, func(cgroup uint64, _ []*os.File) { a.doubtful[cgroup] = true })
	a.readBefore()
	err := a.same(files[keptAbout])
	var k *bpf.Kept
	if err == nil {
		k, err = bpf.TakeKept(files)
	}
	if err != nil {
		a.letGoOfKept(err)
		return nil
	}
	return k
}

// letGoOfKept has nothing of an earlier agent's go on.
func (a *Agent) letGoOfKept(why error) {
	a.problem("what an earlier agent left in the kernel is not gone on with: %v", why)
	a.notKept = "an agent before left its counters, and they were not gone on with: " + why.Error()
	for _, list := range a.cfg.Kept {
		for _, f := range list {
			f.Close()
		}
	}
	names := slices.Collect(maps.Keys(a.cfg.Kept))
	for cgroup := range a.before {
		names = append(names, recordOf(keptBefore, cgroup))
	}
	a.cfg.Keeper.Unkeep(names...)
	a.cfg.Kept = nil
	clear(a.before)
}

// keptUnsigned begins the names of marks: an agent made counters for a run that has the
// rest of the name for its cgroup, and had not signed yet since when they count.
const keptUnsigned = "unsigned-"

// keptHook is the name of the hook socket: who asks while there is no agent waits, and
// the next one answers.
const keptHook = "hook"

func (a *Agent) keepHook() error {
	fds, err := a.hooks.Descriptors()
	if err != nil {
		return err
	}
	a.cfg.Keeper.Keep(bpf.Descriptors{Name: keptHook, FDs: fds})
	var errs []error
	for _, fd := range fds {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

// marks is what the engine calls before it makes counters late: the run is marked so
// until signed is called.
func (a *Agent) marks(l *live, cgroup uint64) func() {
	if a.cfg.Keeper == nil {
		return nil
	}
	return func() {
		l.unsigned.Store(true)
		if err := a.keepRecord(recordOf(keptUnsigned, cgroup), nil); err != nil {
			a.problem("mark what is not signed yet: %v", err)
		}
		a.cfg.Keeper.Sync()
	}
}

// keepRecord has a text kept under a name.
func (a *Agent) keepRecord(name string, text []byte) error {
	fd, err := bpf.Record(text)
	if err != nil {
		return err
	}
	a.cfg.Keeper.Keep(bpf.Descriptors{Name: name, FDs: []int{fd}})
	return unix.Close(fd)
}

// signed takes the mark away: since when each counter counts is on the disk.
func (a *Agent) signed(l *live) {
	if !l.unsigned.Load() {
		return
	}
	if err := a.spool.Sync(); err != nil {
		a.log.Warn("since when counters count is not on the disk yet", "run", l.id, "err", err)
		return // it is marked
	}
	l.unsigned.Store(false)
	a.cfg.Keeper.Unkeep(recordOf(keptUnsigned, l.notice.Identity.CgroupID))
}

// recordOf is the name of a record about the run with this cgroup.
func recordOf(prefix string, cgroup uint64) string { return fmt.Sprint(prefix, cgroup) }

// takeRecords calls f with each record about a run that an earlier agent left under names
// that begin so. They are not what counts, and are closed then.
func (a *Agent) takeRecords(prefix string, f func(cgroup uint64, list []*os.File)) {
	for name, list := range a.cfg.Kept {
		text, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(text, 10, 64); err == nil {
			f(n, list)
		} else {
			a.cfg.Keeper.Unkeep(name)
		}
		for _, file := range list {
			file.Close()
		}
		delete(a.cfg.Kept, name)
	}
}

// readRecord reads the only one of a name, which is JSON.
func readRecord(list []*os.File, most int64, into any) error {
	if len(list) != 1 {
		return fmt.Errorf("%d records", len(list))
	}
	b, err := io.ReadAll(io.NewSectionReader(list[0], 0, most))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// unmark takes the marks of an earlier agent away, once the gaps of their runs are on
// the disk.
func (a *Agent) unmark() {
	if len(a.doubtful) == 0 || a.cfg.Keeper == nil {
		return
	}
	if err := a.spool.Sync(); err != nil {
		a.log.Warn("gaps are not on the disk yet", "err", err)
		return
	}
	var names []string
	for cgroup := range a.doubtful {
		names = append(names, recordOf(keptUnsigned, cgroup))
	}
	a.cfg.Keeper.Unkeep(names...)
}

// same reports why what was kept is not of the same programs.
func (a *Agent) same(files []*os.File) error {
	var was about
	if err := readRecord(files, maxKeptAbout, &was); err != nil {
		return fmt.Errorf("the record of what it is: %w", err)
	}
	files[0].Close()
	now := a.about()
	switch {
	case was.BootID != now.BootID:
		return errors.New("it is of another boot")
	case was.Layout != now.Layout:
		return fmt.Errorf("agent %s has other programs than %s", was.Agent, now.Agent)
	}
	return nil
}

// keepAll has what counts kept, where somebody does so.
func (a *Agent) keepAll() error {
	list := a.engine.Keep()
	if a.cfg.Keeper == nil || list == nil {
		return nil
	}
	text, err := json.Marshal(a.about())
	if err != nil {
		return err
	}
	for _, d := range list {
		a.cfg.Keeper.Keep(d)
	}
	return a.keepRecord(keptAbout, text)
}

// parked are events of a container that an earlier agent armed, and of which no source
// has told yet.
type parked struct {
	events []bpf.Event
	lost   int
}

// park keeps an event for later, and reports whether its container waits.
func (a *Agent) park(e bpf.Event) bool {
	if !a.parking.Load() {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.parked[e.Cgroup]
	switch {
	case p == nil:
		return false
	case len(p.events) < maxParked:
		p.events = append(p.events, e)
	default:
		p.lost++
	}
	return true
}

// unpark returns what waits of a container, and has nothing wait any more. With mu held.
func (a *Agent) unpark(cgroup uint64) *parked {
	p := a.parked[cgroup]
	delete(a.parked, cgroup)
	a.parking.Store(len(a.parked) > 0)
	return p
}

// replay takes the events that a run's kernel objects told of while there was no agent.
func (a *Agent) replay(l *live) {
	a.mu.Lock()
	p := a.unpark(l.notice.Identity.CgroupID)
	a.mu.Unlock()
	if p == nil {
		return
	}
	for _, e := range p.events {
		a.event(e)
	}
	if p.lost > 0 {
		a.witness.UnarmedMapping(l.id, "", l.earlier.Since, 0, fmt.Sprintf("%d events of the time without an agent found no room: what was executed is not known", p.lost))
	}
}

// isKept reports whether the counters of a run that an earlier agent left open go on.
func (a *Agent) isKept(cov *evidence.Coverage) bool {
	cgroup := uint64(cov.CgroupID)
	return a.engine != nil && cov.BootID == a.bootID && cgroup != 0 && !a.doubtful[cgroup] && a.engine.Kept(cgroup)
}

// endKept lets go of what was kept for a run that has ended, or is armed anew, and returns the lines of
// sites that its counters have more of than their last lines, and what of it is in no
// line. last are those.
func (a *Agent) endKept(x *left, last []evidence.SiteLine, why string) (more []moreHits, detail string) {
	cgroup := uint64(x.Coverage.CgroupID)
	counters, execs, err := a.engine.ForgetKept(cgroup)
	a.mu.Lock()
	p := a.unpark(cgroup)
	a.mu.Unlock()
	detail = why
	taken, before := map[int]bool{}, a.before[cgroup]
	a.unkeepBefore(x.OpenRun)
	for _, l := range last {
		c, i := execs, -1
		if l.Line.Event != policy.ProcessExec {
			if i = counterOf(counters, l.Line); i < 0 {
				continue
			}
			c = counters[i].Counter
			taken[i] = true
		}
		site := uint32(0)
		if i >= 0 {
			site = counters[i].Site
		}
		c = c.Plus(before[site])
		if l.Line.State != evidence.NotArmed && c.Count > hitsOf(l.Line) {
			more = append(more, moreHits{l, c})
		}
	}
	hits, sites := uint64(0), 0
	for i, c := range counters {
		if !taken[i] && c.Count > 0 {
			hits, sites = hits+c.Count, sites+1
		}
	}
	if sites > 0 {
		detail += fmt.Sprintf("; %d hits at %d sites are in no line, because no line of theirs was found", hits, sites)
	}
	if p != nil && len(p.events)+p.lost > 0 {
		detail += fmt.Sprintf("; %d events were not looked at", len(p.events)+p.lost)
	}
	if err != nil {
		detail += ": " + err.Error()
	}
	return more, detail
}

// moreHits is a site's last line, and its counter at the end.
type moreHits struct {
	last evidence.SiteLine
	now  bpf.Counter
}

func hitsOf(o *evidence.Observation) uint64 {
	if o.Count == nil {
		return 0
	}
	return uint64(*o.Count)
}

// counterOf finds a line's counter, or returns -1: by its probe, its place and the
// file's name. The file may have another name in the record of its links: then there must
// be one counter only that it can be.
func counterOf(counters []probe.KeptCounter, o *evidence.Observation) int {
	found := -1
	for i, c := range counters {
		if o.Offset == nil || c.Probe != o.ProbeID || c.Offset != uint64(*o.Offset) || c.Return != (o.ProbeType == evidence.Uretprobe) {
			continue
		}
		if c.Path == o.Path {
			return i
		}
		if found >= 0 {
			return -1
		}
		found = i
	}
	return found
}

// line is the site's line after that: what was executed, with the gap since nobody
// looked whether its file was as it had been armed.
func (m moreHits) line(c evidence.Clock, since, to evidence.Time, final bool) *evidence.Observation {
	o := *m.last.By(c)
	count := evidence.Uint64(m.now.Count)
	o.State, o.Count, o.Complete, o.Final, o.To = evidence.Hit, &count, false, final, to
	if o.FirstAt.IsZero() {
		o.FirstAt = c.Time(m.now.FirstNs)
	}
	o.LastAt = later(o.FirstAt, c.Time(m.now.LastNs))
	gap := evidence.SiteGap{Reason: evidence.GapAgentDown, From: since, To: to, Count: evidence.Loss{N: 1}}
	gap.DurationNs = evidence.Uint64(to.Std().Sub(since.Std()))
	o.Gaps = slices.Clone(o.Gaps)
	if i := slices.IndexFunc(o.Gaps, func(g evidence.SiteGap) bool { return g.Reason == gap.Reason }); i >= 0 {
		g := &o.Gaps[i]
		g.To, g.DurationNs, g.Count.N = to, g.DurationNs+gap.DurationNs, g.Count.N+1
	} else {
		o.Gaps = append(o.Gaps, gap)
	}
	return &o
}

// keptIsOver signs the gap of runs that were kept and that no source has told of.
func (a *Agent) keptIsOver(ctx context.Context) error {
	if a.engine == nil || !a.keeps {
		return nil
	}
	t := time.NewTimer(keptFor)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return nil
	}
	var errs []error
	var over []spool.OpenRun
	a.mu.Lock()
	for _, x := range a.left {
		if !x.kept {
			continue
		}
		x.kept, x.GapID = false, witness.NewGapID()
		over = append(over, x.OpenRun)
		a.unpark(uint64(x.Coverage.CgroupID))
		// With mu held: who takes it up closes this gap.
		errs = append(errs, a.appendLeft(x.OpenRun, nil, nil, "no source told of it in time: its counters were let go of"))
	}
	a.mu.Unlock()
	a.unkeepBefore(over...)
	if err := errors.Join(append(errs, a.engine.KeptIsOver())...); err != nil {
		a.problem("let go of what an earlier agent left: %v", err)
	}
	return nil
}

// keptFiles are those of the descriptors that are the engine's to take over.
func keptFiles(files map[string][]*os.File) map[string][]*os.File {
	out := map[string][]*os.File{}
	for name, list := range files {
		if strings.HasPrefix(name, probe.KeptFiles) {
			out[name] = list
		}
	}
	return out
}
