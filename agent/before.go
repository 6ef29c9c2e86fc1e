package agent

import (
	"encoding/json"
	"maps"
	"os"
	"slices"

	"probity/bpf"
	"probity/evidence"
	"probity/evidence/spool"
	"probity/evidence/witness"
)

// A counter that is kept counts since it was made. What the lines of its run had before
// that, from an agent whose counters were not kept, is kept beside it: the next agent's
// lines must not have less.

// keptBefore begins the names of such records; a cgroup's id follows.
const keptBefore = "before-"

// readBefore reads what an earlier agent left so. Where it cannot be read the counters
// are not gone on with.
func (a *Agent) readBefore() {
	a.takeRecords(keptBefore, func(cgroup uint64, list []*os.File) {
		var before map[uint32]bpf.Counter
		if err := readRecord(list, bpf.MaxRecord, &before); err != nil {
			a.problem("what was counted of cgroup %d is not gone on with: %v", cgroup, err)
			a.doubtful[cgroup] = true
			a.cfg.Keeper.Unkeep(recordOf(keptBefore, cgroup))
			return
		}
		a.before[cgroup] = before
	})
}

// carries reports whether something was counted of a run before.
func carries(e *witness.Earlier) bool {
	return e != nil && slices.ContainsFunc(e.Sites, func(s evidence.SiteLine) bool { return s.Line.State == evidence.Hit })
}

// keepBefore has what was counted of a run before its counters began kept beside them.
func (a *Agent) keepBefore(l *live) {
	if a.cfg.Keeper == nil || l.handle == nil || l.earlier == nil {
		return
	}
	cgroup := l.notice.Identity.CgroupID
	was, now := a.before[cgroup], a.witness.Before(l.id)
	l.before = len(now) > 0
	if maps.Equal(was, now) {
		return
	}
	name := recordOf(keptBefore, cgroup)
	if len(was) > 0 {
		a.cfg.Keeper.Unkeep(name)
	}
	text, err := json.Marshal(now)
	if err == nil && len(now) > 0 {
		err = a.keepRecord(name, text)
	}
	if err != nil {
		a.problem("keep what was counted before: %v", err)
	}
}

// unkeepBefore lets go of that of runs that are over, or not gone on with.
func (a *Agent) unkeepBefore(runs ...spool.OpenRun) {
	var names []string
	for _, r := range runs {
		if cgroup := uint64(r.Coverage.CgroupID); len(a.before[cgroup]) > 0 {
			names = append(names, recordOf(keptBefore, cgroup))
		}
	}
	if len(names) > 0 && a.cfg.Keeper != nil {
		a.cfg.Keeper.Unkeep(names...)
	}
}
