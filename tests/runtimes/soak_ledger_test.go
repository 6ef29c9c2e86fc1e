package runtimes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/evidence/verify"
)

// ledger is what containers did beside what the evidence says of them. Times are boot
// times in nanoseconds.
type ledger struct {
	stints  map[string][]*stint // by container
	refused int                 // starts that failed
	runs    map[string]*soakRun
	windows map[string]window // in which nobody could tell, by gap
	chunks  map[string]bool
	lines   int
	extra   map[string]bool // runs with a policy that was reloaded
}

// stint is one start of a container and what came of it.
type stint struct {
	runtime, name, id string
	before, after     int64 // around the call that started it
	end               int64 // when it was known to have ended
	calls             map[string]uint64
	killed            int64 // how often containerd had been killed when it started
	sure              bool  // nothing failed, so that is what it did
}

type soakRun struct {
	container string
	from      int64
	finals    int
	reasons   map[evidence.GapReason]bool
	fn        map[string]soakSite // by symbol
	fell      []string            // what a later line had less of
}

type soakSite struct {
	state    evidence.State
	count    uint64
	complete bool
	final    bool
}

type window struct {
	reason   evidence.GapReason
	source   string
	from, to int64 // to: 0 while open
}

func newLedger() ledger {
	return ledger{stints: map[string][]*stint{}, runs: map[string]*soakRun{}, windows: map[string]window{}, chunks: map[string]bool{}, extra: map[string]bool{}}
}

func (l *ledger) put(s *stint) { l.stints[s.id] = append(l.stints[s.id], s) }

func (l *ledger) run(id, container string) *soakRun {
	id = strings.Clone(id) // not the chunk's text
	r := l.runs[id]
	if r == nil {
		r = &soakRun{container: strings.Clone(container), reasons: map[evidence.GapReason]bool{}, fn: map[string]soakSite{}}
		l.runs[id] = r
	}
	return r
}

// take reads a sound chunk.
func (l *ledger) take(c *verify.Chunk) {
	l.lines += len(c.Lines)
	clock := c.Header.Clock
	for _, line := range c.Lines {
		switch x := line.(type) {
		case *evidence.Coverage:
			r := l.run(x.RunID, x.ContainerID)
			r.from = clock.Boot(x.From)
			if x.Final {
				r.finals++
			}
			for _, reason := range x.GapReasons {
				r.reasons[evidence.GapReason(strings.Clone(string(reason)))] = true
			}
		case *evidence.Observation:
			if x.ProbeID == "extra" {
				l.extra[strings.Clone(x.RunID)] = true
			}
			if !strings.HasSuffix(x.ProbeID, "fn") || x.Symbol == "" {
				continue
			}
			s := soakSite{state: evidence.State(strings.Clone(string(x.State))), complete: x.Complete, final: x.Final}
			if x.Count != nil {
				s.count = uint64(*x.Count)
			}
			r := l.run(x.RunID, x.ContainerID)
			if was := r.fn[x.Symbol]; was.count > s.count {
				r.fell = append(r.fell, fmt.Sprintf("%s from %d to %d", x.Symbol, was.count, s.count))
			}
			r.fn[strings.Clone(x.Symbol)] = s
		case *evidence.Gap:
			if x.Scope != evidence.ScopeNode && x.Scope != evidence.ScopeSource {
				continue
			}
			w := window{reason: evidence.GapReason(strings.Clone(string(x.Reason))), source: strings.Clone(x.Source), from: clock.Boot(x.From)}
			if !x.To.IsZero() {
				w.to = clock.Boot(x.To)
			}
			l.windows[strings.Clone(x.GapID)] = w
		}
	}
}

// balance is how the containers of a soak are accounted for.
type balance struct {
	Containers int            `json:"containers"`
	Starts     int            `json:"starts"`
	ByRuntime  map[string]int `json:"byRuntime"` // starts
	Refused    int            `json:"refused"`   // starts that failed because the runtime was killed
	Runs       int            `json:"runs"`      // in the evidence
	Exact      int            `json:"exact"`     // armed before the first instruction, and each call counted
	Late       int            `json:"late"`      // found running, with the gap; of these were counted CountedLate of CalledLate calls
	Unsure     int            `json:"unsure"`    // what they did is not known: the runtime was killed in the middle
	Unseen     int            `json:"unseen"`    // started in a signed window without an agent or a runtime, and over soon after

	Called      uint64         `json:"called"` // of exact ones
	CalledLate  uint64         `json:"calledLate"`
	CountedLate uint64         `json:"countedLate"`
	Windows     map[string]int `json:"windows"`  // by reason
	Gaps        map[string]int `json:"gaps"`     // runs, by reason
	Reloaded    int            `json:"reloaded"` // runs armed under the policy that reloads put in and take out
	Chunks      int            `json:"chunks"`
	Lines       int            `json:"lines"`
	Wrong       []string       `json:"wrong"`
}

// seen is how long a container may live on after a window without being looked at: the
// states of runtimes are looked at every 5 s.
const seen = 12 * time.Second

// account compares what happened with what is signed.
func (l *ledger) account() balance {
	b := balance{Containers: len(l.stints), ByRuntime: map[string]int{}, Refused: l.refused, Runs: len(l.runs), Chunks: len(l.chunks), Lines: l.lines, Reloaded: len(l.extra), Windows: map[string]int{}, Gaps: map[string]int{}}
	wrong := func(format string, args ...any) { b.Wrong = append(b.Wrong, fmt.Sprintf(format, args...)) }
	byContainer := map[string][]*soakRun{}
	for id, r := range l.runs {
		if l.stints[r.container] == nil {
			wrong("run %s is of a container %s that nobody started", id, r.container)
		}
		if r.finals != 1 {
			wrong("run %s of %s was sealed %d times", id, r.container, r.finals)
		}
		for reason := range r.reasons {
			b.Gaps[string(reason)]++
		}
		byContainer[r.container] = append(byContainer[r.container], r)
	}
	for _, w := range l.windows {
		b.Windows[string(w.reason)]++
	}
	for id, stints := range l.stints {
		slices.SortFunc(stints, func(x, y *stint) int { return cmp.Compare(x.before, y.before) })
		of := make([][]*soakRun, len(stints))
		for _, r := range byContainer[id] {
			i := len(stints) - 1
			for i > 0 && r.from < stints[i].before {
				i--
			}
			of[i] = append(of[i], r)
		}
		for i, s := range stints {
			b.Starts++
			b.ByRuntime[s.runtime]++
			l.judge(&b, s, of[i], wrong)
		}
	}
	slices.Sort(b.Wrong)
	return b
}

func (l *ledger) judge(b *balance, s *stint, runs []*soakRun, wrong func(string, ...any)) {
	say := func(format string, args ...any) {
		wrong("%s %s (%.12s), started %d to %d, ended %d, calls %v, sure %t: %s", s.runtime, s.name, s.id, s.before, s.after, s.end, s.calls, s.sure, fmt.Sprintf(format, args...))
	}
	switch {
	case len(runs) > 1:
		say("has %d runs", len(runs))
		return
	case len(runs) == 0 && !s.sure:
		b.Unsure++
		return
	case len(runs) == 0:
		if !l.excused(s) {
			say("is not in the evidence, and no window says why")
		}
		b.Unseen++
		return
	}
	r := runs[0]
	late := r.reasons[evidence.GapAdopted] || r.reasons[evidence.GapLateAttach]
	switch {
	case !s.sure:
		b.Unsure++
	case late:
		b.Late++
	default:
		b.Exact++
	}
	if len(r.fell) > 0 {
		say("counts went back: %v", r.fell)
	}
	for name, called := range s.calls {
		if _, ok := r.fn[name]; !ok && called > 0 && s.sure && !late {
			say("was armed in time, and %s has no line", name)
		}
	}
	for name, site := range r.fn {
		called := s.calls[name]
		switch {
		case !site.final && !r.reasons[evidence.GapAgentDown]: // else it ended without an agent
			say("the last line about %s is not final", name)
		case site.count > called && (s.sure || name == "never"):
			say("%s was counted %d times", name, site.count)
		case site.complete && site.count != called && s.sure:
			say("%s: %d, and that is said to be all", name, site.count)
		case !late && s.sure && site.count != called:
			say("%s: %+v, gaps %v", name, site, slices.Sorted(maps.Keys(r.reasons)))
		}
		if s.sure && late {
			b.CalledLate += called
			b.CountedLate += site.count
		} else if s.sure {
			b.Called += called
		}
	}
	if s.sure && len(r.fn) == 0 && !late {
		say("was armed in time, and no site has a line: gaps %v", slices.Sorted(maps.Keys(r.reasons)))
	}
}

// excused says whether a signed window has the start of a container that nobody saw,
// and it did not live on after that.
func (l *ledger) excused(s *stint) bool {
	for _, w := range l.windows {
		if w.from <= s.after && (w.to == 0 || w.to >= s.before && s.end-w.to < int64(seen)) {
			return true
		}
	}
	return false
}

// carry is the shipper: it verifies each chunk, keeps it elsewhere and acknowledges it.
func (s *soak) carry(t *testing.T, stop chan struct{}) {
	pem, err := os.ReadFile(s.agent.Key())
	if err != nil {
		t.Error(err)
		return
	}
	key, err := sign.LoadPublic(pem)
	if err != nil {
		t.Error(err)
		return
	}
	reader, err := spool.NewReader(s.agent.Spool, "soak")
	if err != nil {
		t.Error(err)
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for last := false; !last; {
		select {
		case <-tick.C:
		case <-stop:
			last = true
		}
		if !s.stalled.Load() || last {
			s.carryAll(t, reader, key)
		}
	}
}

func (s *soak) carryAll(t *testing.T, reader *spool.Reader, key *sign.PublicKey) {
	items, err := reader.Pending(context.Background())
	if err != nil {
		t.Errorf("carry: %v", err)
		return
	}
	for _, it := range items {
		data, err := reader.Read(it)
		if errors.Is(err, fs.ErrNotExist) {
			t.Errorf("carry: %s was removed before it was carried away", it.Chunk)
			continue
		}
		if err != nil {
			t.Errorf("carry: %v", err)
			return
		}
		s.mu.Lock()
		had := s.ledger.chunks[it.Chunk]
		s.mu.Unlock()
		if had {
			continue
		}
		c, findings := verify.Bytes(it.Path, data, key)
		if c == nil {
			t.Errorf("carry: %v", findings)
			return
		}
		file := filepath.Join(s.archive, spool.ReadyDir, filepath.Base(filepath.Dir(it.Path)), filepath.Base(it.Path))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, data, 0o644)); err != nil {
			t.Errorf("carry: %v", err)
			return
		}
		s.write(func(l *ledger) { l.chunks[it.Chunk] = true; l.take(c) })
	}
	if len(items) == 0 {
		return
	}
	// Where the disk is full it is said the next time.
	if _, err := reader.Ack(context.Background(), items[len(items)-1]); err != nil {
		t.Logf("carry: %v", err)
	}
}
