package agent

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"
	"strings"

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

// maxKeptBefore bounds one in bytes.
const maxKeptBefore = bpf.MaxRecord

// readBefore reads what an earlier agent left so. Where it cannot be read the counters
// are not gone on with.
func (a *Agent) readBefore() {
	for name, list := range a.cfg.Kept {
		text, ok := strings.CutPrefix(name, keptBefore)
		if !ok {
			continue
		}
		delete(a.cfg.Kept, name)
		cgroup, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			a.cfg.Keeper.Unkeep(name)
		} else if before, err := readCounters(list); err == nil {
			a.before[cgroup] = before
		} else {
			a.problem("what was counted of cgroup %d is not gone on with: %v", cgroup, err)
			a.doubtful[cgroup] = true
			a.cfg.Keeper.Unkeep(name)
		}
		for _, f := range list {
			f.Close()
		}
	}
}

func readCounters(list []*os.File) (before map[uint32]bpf.Counter, err error) {
	if len(list) != 1 {
		return nil, fmt.Errorf("%d records of what was before", len(list))
	}
	b, err := io.ReadAll(io.NewSectionReader(list[0], 0, maxKeptBefore))
	if err == nil {
		err = json.Unmarshal(b, &before)
	}
	return before, err
}

// carries reports whether something was counted of a run before.
func carries(e *witness.Earlier) bool {
	return e != nil && anyHit(e.Sites)
}

func anyHit(sites []evidence.SiteLine) bool {
	for _, s := range sites {
		if s.Line.State == evidence.Hit {
			return true
		}
	}
	return false
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
	name := fmt.Sprint(keptBefore, cgroup)
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
			names = append(names, fmt.Sprint(keptBefore, cgroup))
		}
	}
	if len(names) > 0 && a.cfg.Keeper != nil {
		a.cfg.Keeper.Unkeep(names...)
	}
}
