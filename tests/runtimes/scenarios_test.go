package runtimes

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"probity/evidence"
)

// scenario is something that happens to containers, the same under every runtime. The
// phases of all scenarios are gone through together: first all begin, then for all of
// them it happens, and so on. The agent is killed, if it is to be, when all have begun:
// what happens then does without it.
type scenario struct {
	name    string
	text    string         // what happens and what is wanted, for the page
	begin   func(s *scene) // nil is nothing
	happens func(s *scene)
	after   func(s *scene) // nil is nothing
	check   func(s *scene)
	alone   bool // what happens is the runtime's or the agent's, and so everybody's
}

// Names of scenarios that a runtime may not be able to.
const (
	runtimeRestart = "restart of runtime"
	agentRestart   = "restart of agent"
	sameID         = "restart with the same id"
	crashLoop      = "crash loop"
	failClosed     = "fail-closed"
	oom            = "OOM"
)

// scene is one scenario under one runtime.
type scene struct {
	*testing.T
	r    *rehearsal
	c    life   // its container
	more []life // others
	gone []life // what was removed as soon as it had ended
	e    Evidence
}

// rehearsal is all scenarios that are gone through together.
type rehearsal struct {
	d      suite
	a      *Agent
	killed bool   // the agent is killed when all have begun
	name   string // no other one's

	mu   sync.Mutex
	n    int
	live []life // what waits
}

// next returns a name that no container has.
func (r *rehearsal) next(policy string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
	return fmt.Sprintf("%s-%s-%d", policy, r.name, r.n)
}

func (r *rehearsal) waits(c life) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = append(r.live, c)
}

// start starts a container that is watched.
func (s *scene) start(orders ...string) life { s.Helper(); return s.startAs(manner{}, orders...) }

func (s *scene) startAs(m manner, orders ...string) life {
	s.Helper()
	c, err := s.r.d.try(s.T, s.r.next("open"), m, orders...)
	if err != nil {
		s.Fatal(err)
	}
	if slices.Contains(orders, "wait") {
		s.r.waits(c)
	}
	return c
}

// exits waits for a container's end.
func (s *scene) exits(c life, code int) {
	s.Helper()
	if got := c.wait(s.T); got != code {
		s.Errorf("exit code %d, want %d", got, code)
	}
}

// remove removes a container that has ended.
func (s *scene) remove(c life) {
	s.Helper()
	c.remove(s.T)
	s.gone = append(s.gone, c)
}

// hits wants a container's last run to have called a function so often.
func (s *scene) hits(c life, symbol string, n uint64) *evidence.Observation {
	s.Helper()
	o := want(s.T, s.e, c.id(), "fn", symbol, evidence.Hit, "", n)
	s.whole(o)
	return o
}

// whole wants nothing to be missing but what could not be looked at any more: by no agent,
// or because the container's files were gone when the agent came to look.
func (s *scene) whole(o *evidence.Observation) {
	s.Helper()
	gone := slices.ContainsFunc(s.gone, func(c life) bool { return c.id() == o.ContainerID })
	for _, g := range o.Gaps {
		if !(s.r.killed && g.Reason == evidence.GapAgentDown) && !(gone && g.Reason == evidence.GapFileChanged) {
			s.Errorf("%s: gap %+v", o.Symbol, g)
		}
	}
	// A site of which there is no more to say after the run's end has no last line.
	ended := s.r.killed && s.e.Cover(o.ContainerID).Final && len(runGaps(s.e.GapsOf(o.ContainerID, evidence.GapAgentDown))) > 0
	if !o.Final && !ended || !o.Complete && len(o.Gaps) == 0 {
		b, _ := evidence.Encode(o)
		s.Errorf("%s", b)
	}
}

// unhit wants a function to be known not to have been called.
func (s *scene) unhit(c life, symbol string) {
	s.Helper()
	if o := s.e.Latest(c.id(), "fn", symbol); o != nil && o.State == evidence.Partial {
		s.whole(o)
		return
	}
	s.whole(want(s.T, s.e, c.id(), "fn", symbol, evidence.ArmedNoHit, "", 0))
}

// runs returns how often a function was called in each run of a container.
func (s *scene) runs(id, symbol string) (counts []uint64) {
	var runs []string
	for _, o := range s.e.Observations {
		if o.ContainerID != id || o.ProbeID != "fn" || o.Symbol != symbol {
			continue
		}
		if i := slices.Index(runs, o.RunID); i >= 0 {
			counts[i] = uint64(*o.Count)
			continue
		}
		runs, counts = append(runs, o.RunID), append(counts, uint64(*o.Count))
	}
	return counts
}

// scenarioPolicies are for containers by the first word of their names.
var scenarioPolicies = []string{`
name: open
select: {containers: ["open-*"]}
probes:
  - {id: fn, type: uprobe, file: /bin/target, symbols: [hello, goodbye, never]}
  - {id: entry, type: uprobe, file: /bin/target, offsets: [entry]}
  - {id: exec, type: tracepoint, event: "sched:sched_process_exec"}
`, `
name: closed
failPolicy: closed
select: {containers: ["closed-*"]}
probes:
  - {id: required, type: uprobe, file: /bin/target, symbols: [hello]}
`, `
name: lacking
failPolicy: closed
select: {containers: ["lacking-*"]}
probes:
  - {id: lacking, type: uprobe, file: /bin/target, symbols: [hello, absent]}
`}

// killedBySignal is the exit code of what a SIGKILL ended.
const killedBySignal = 128 + int(syscall.SIGKILL)

// scenarios are the rows of docs/runtimes.md.
var scenarios = []scenario{{
	name:  "start",
	text:  "a container starts, calls one function three times, another one once, and a third never: the counts are exact, and the one that was not called is known not to have been",
	begin: func(s *scene) { s.c = s.start("hello", "hello", "wait", "hello", "goodbye") },
	happens: func(s *scene) {
		s.c.goOn(s.T)
		s.exits(s.c, 0)
	},
	check: func(s *scene) {
		if o := s.hits(s.c, "hello", 3); o.Path != "/bin/target" || o.FileDigest == "" || o.ProbeType != evidence.Uprobe {
			s.Errorf("%+v", o)
		}
		s.hits(s.c, "goodbye", 1)
		s.unhit(s.c, "never")
		if cover := s.e.Cover(s.c.id()); !cover.Final || cover.Ended.IsZero() || cover.CgroupID == 0 || !strings.HasPrefix(cover.ContainerName, "open-") {
			s.Errorf("coverage %+v", cover)
		}
	},
}, {
	name:  "first instruction",
	text:  "the program's entry point is probed: its first instruction is a hit, and the coverage begins before the first execve",
	begin: func(s *scene) { s.c = s.start("hello", "wait") },
	happens: func(s *scene) {
		s.c.goOn(s.T) // a session, which begins there too
		s.exits(s.c, 0)
	},
	check: func(s *scene) {
		s.whole(want(s.T, s.e, s.c.id(), "entry", "", evidence.Hit, "", 2))
		cover := s.e.Cover(s.c.id())
		if s.r.killed && cover.FirstExec.IsZero() { // it may have had no line when the agent was killed
			return
		}
		if cover.FirstExec.IsZero() || cover.From.Std().After(cover.FirstExec.Std()) {
			s.Errorf("from %v, the first execve at %v", cover.From, cover.FirstExec)
		}
	},
}, {
	name: "exec session",
	text: "sessions call the function before and after: they count as the container's, and the evidence says that it was a session",
	begin: func(s *scene) {
		s.c = s.start("wait")
		s.c.exec(s.T, "/bin/target", "hello")
	},
	happens: func(s *scene) {
		s.c.exec(s.T, "/bin/target", "hello")
		s.c.goOn(s.T, "hello")
		s.exits(s.c, 0)
	},
	check: func(s *scene) {
		o := s.hits(s.c, "hello", 3)
		if s.r.killed && o.Process == nil { // whose hit it was may have had no line when the agent was killed
			return
		}
		if o.Process == nil || o.Process.Session != evidence.SessionExec {
			s.Errorf("process %+v", o.Process)
		}
	},
}, {
	name:  "exit code",
	text:  "the program ends with a code of its own, which the runtime reports: the run is sealed",
	begin: func(s *scene) { s.c = s.start("hello", "wait", "hello", "exit", "7") },
	happens: func(s *scene) {
		s.c.goOn(s.T)
		s.exits(s.c, 7)
	},
	check: func(s *scene) { s.hits(s.c, "hello", 2) },
}, {
	name:  "stop",
	text:  "the runtime stops the container while its program waits: what it had done is counted, and the run is sealed",
	begin: func(s *scene) { s.c = s.start("hello", "wait") },
	happens: func(s *scene) {
		s.c.stop(s.T)
		s.exits(s.c, killedBySignal)
	},
	check: func(s *scene) {
		s.hits(s.c, "hello", 1)
		s.unhit(s.c, "never")
	},
}, {
	name:  "kill",
	text:  "somebody else than the runtime sends SIGKILL to the container's first process: as with stop",
	begin: func(s *scene) { s.c = s.start("hello", "wait") },
	happens: func(s *scene) {
		if err := syscall.Kill(s.c.pid(s.T), syscall.SIGKILL); err != nil {
			s.Fatal(err)
		}
		s.exits(s.c, killedBySignal)
	},
	check: func(s *scene) {
		s.hits(s.c, "hello", 1)
		s.unhit(s.c, "never")
	},
}, {
	name:  oom,
	text:  "the program takes more memory than its limit of 48 MiB, and the kernel kills it: as with stop",
	begin: func(s *scene) { s.c = s.startAs(manner{memory: 48 << 20}, "hello", "wait", "hello", "eat") },
	happens: func(s *scene) {
		before := oomKills(s.T)
		s.c.goOn(s.T)
		s.exits(s.c, killedBySignal)
		if oomKills(s.T) == before {
			s.Error("the kernel has killed nobody for want of memory")
		}
	},
	check: func(s *scene) { s.hits(s.c, "hello", 2) },
}, {
	name:  "short-lived",
	text:  "four containers in a row whose program calls the function and ends at once, each removed at once: each has its hit and is sealed. Where the files were gone before the agent had its last look at them, that is a gap",
	begin: func(s *scene) { s.more = s.short(2) },
	happens: func(s *scene) {
		more := s.short(2)
		if !s.r.killed { // else nobody knows of them, and that is signed: see the node's gap
			s.more = append(s.more, more...)
		}
	},
	check: func(s *scene) {
		for _, c := range s.more {
			s.hits(c, "hello", 1)
		}
	},
}, {
	name:  crashLoop,
	text:  "the program calls the function and crashes (SIGSEGV), and is restarted as the runtime does it, twice: each run has its hit and is sealed once",
	begin: func(s *scene) { s.c = s.start("hello", "wait", "crash") },
	happens: func(s *scene) {
		s.c.goOn(s.T)
		last := s.c
		for range 2 {
			s.exits(last, crashed)
			next := last.again(s.T)
			if next.id() != last.id() { // else it finds that it may go on
				next.goOn(s.T)
				s.more = append(s.more, next)
			}
			last = next
		}
		s.exits(last, crashed)
	},
	check: func(s *scene) {
		counts := s.runs(s.c.id(), "hello")
		for _, c := range s.more {
			counts = append(counts, s.runs(c.id(), "hello")...)
		}
		// Without an agent nobody knows of the later ones.
		if len(counts) == 0 || counts[0] != 1 || !s.r.killed && !slices.Equal(counts, []uint64{1, 1, 1}) {
			s.Errorf("hits in each run: %v", counts)
		}
	},
}, {
	name:  sameID,
	text:  "a container is stopped, started again with its id, stopped and removed with its storage, beside others of the same image: that is two runs, and nothing keeps its mounts",
	begin: func(s *scene) { s.c = s.start("hello", "wait") },
	happens: func(s *scene) {
		s.c.stop(s.T)
		s.c.again(s.T)
	},
	after: func(s *scene) {
		s.c.stop(s.T)
		s.remove(s.c)
	},
	check: func(s *scene) {
		if counts := s.runs(s.c.id(), "hello"); len(counts) == 0 || counts[0] != 1 || !s.r.killed && !slices.Equal(counts, []uint64{1, 1}) {
			s.Errorf("hits in each run: %v", counts)
		}
	},
}, {
	name: "image shared by two containers",
	text: "of two containers of one image one calls a function that the other does not: each has its own counts, also after the first one has ended and is removed",
	begin: func(s *scene) {
		s.c = s.start("hello", "wait", "hello")
		s.more = []life{s.start("wait", "goodbye")}
	},
	happens: func(s *scene) {
		s.c.goOn(s.T)
		s.exits(s.c, 0)
		s.remove(s.c)
		s.more[0].goOn(s.T, "goodbye")
		s.exits(s.more[0], 0)
	},
	check: func(s *scene) {
		s.hits(s.c, "hello", 2)
		s.unhit(s.c, "goodbye")
		s.unhit(s.more[0], "hello")
		s.hits(s.more[0], "goodbye", 2)
	},
}, {
	name:  "shared pid namespace",
	text:  "the container has no pid namespace of its own: its child calls the function three times, and outlives the first process. All hits are the run's",
	begin: func(s *scene) { s.c = s.startAs(manner{sharePID: true}, "hello", "wait", "child") },
	happens: func(s *scene) {
		s.c.goOn(s.T)
		s.exits(s.c, 0)
	},
	check: func(s *scene) { s.hits(s.c, "hello", 4) },
}, {
	name:  failClosed,
	text:  "under a closed policy a container that lacks what a probe requires is refused, with the reason in the evidence; one that has it starts",
	begin: beginClosed,
	happens: func(s *scene) {
		s.c.goOn(s.T)
		s.exits(s.c, 0)
	},
	check: func(s *scene) {
		s.whole(want(s.T, s.e, s.c.id(), "required", "hello", evidence.Hit, "", 2))
		if cover := s.e.Cover(s.c.id()); cover.FailPolicyEnforced == nil || !*cover.FailPolicyEnforced || cover.Refused != "" {
			s.Errorf("coverage %+v", cover)
		}
		if !slices.ContainsFunc(s.e.Coverage, func(c *evidence.Coverage) bool {
			return strings.HasPrefix(c.ContainerName, "lacking-"+s.r.name) && c.Final && strings.HasSuffix(c.Refused, string(evidence.SymbolNotFound))
		}) {
			s.Error("the evidence has nobody refused")
		}
	},
}, {
	name:  runtimeRestart,
	text:  "the runtime's daemon is ended and started again: a container that lives on stays armed, a new one is armed, and the time without the daemon is a signed gap",
	alone: true,
	begin: func(s *scene) { s.c = s.start("hello", "wait", "hello") },
	happens: func(s *scene) {
		before := len(disconnections(s.r.a.Evidence(s.T)))
		s.r.d.restart(s.T, func() {
			if !s.r.killed { // else it may be taken for connected still
				s.r.a.WaitLine(s.T, func(e Evidence) bool { return len(disconnections(e)) > before })
			}
		})
		if !s.r.killed {
			s.r.a.WaitSources(s.T)
		}
	},
	after: func(s *scene) {
		s.more = []life{s.start("hello")}
		s.exits(s.more[0], 0)
		s.c.goOn(s.T)
		s.exits(s.c, 0)
	},
	check: func(s *scene) {
		s.hits(s.c, "hello", 2)
		s.hits(s.more[0], "hello", 1)
		open := map[string]bool{}
		for _, g := range disconnections(s.e) {
			open[g.GapID] = g.To.IsZero()
			if g.Scope != evidence.ScopeSource || !strings.HasPrefix(g.Source, "nri:") {
				s.Errorf("gap %+v", g)
			}
		}
		for id, is := range open {
			if is {
				s.Errorf("gap %s is open", id)
			}
		}
	},
}, {
	name:  agentRestart,
	text:  "a container calls the function before the agent ends, while there is none, and when there is one again: all calls are counted, without a gap. What holds the probes meanwhile is a descriptor store as systemd's",
	alone: true,
	begin: func(s *scene) { s.c = s.start("hello", "hello", "wait", "hello") },
	happens: func(s *scene) {
		if !s.r.killed {
			s.r.a.Stop(s.T)
		}
		if names := strings.Join(s.r.a.store.names(), " "); !strings.Contains(names, "map-slots") || !strings.Contains(names, "file-") {
			s.Errorf("held: %s", names)
		}
		s.c.exec(s.T, "/bin/target", "hello", "hello")
		if !s.r.killed {
			s.r.back(s.T)
		}
	},
	after: func(s *scene) {
		// Ended before the agent has taken it up, nobody could look at its files.
		s.r.a.WaitLine(s.T, func(e Evidence) bool {
			o := e.Latest(s.c.id(), "fn", "hello")
			return o != nil && o.Count != nil && *o.Count == 4
		})
		s.c.exec(s.T, "/bin/target", "hello")
		s.c.goOn(s.T)
		s.exits(s.c, 0)
	},
	check: func(s *scene) {
		if o := s.hits(s.c, "hello", 6); !o.Complete || len(o.Gaps) > 0 {
			s.Errorf("%+v", o)
		}
		if o := want(s.T, s.e, s.c.id(), "fn", "never", evidence.ArmedNoHit, "", 0); !o.Complete {
			s.Errorf("%+v", o)
		}
		for _, g := range runGaps(s.e.GapsOf(s.c.id(), evidence.GapAgentDown)) {
			s.Errorf("gap %+v", g)
		}
	},
}}

const crashed = 128 + int(syscall.SIGSEGV)

// short has containers live for a moment, one after the other.
func (s *scene) short(n int) (all []life) {
	s.Helper()
	for range n {
		c := s.start("hello")
		s.exits(c, 0)
		s.remove(c)
		all = append(all, c)
	}
	return all
}

// beginClosed starts a container under a policy that is met, and one that is not.
func beginClosed(s *scene) {
	if _, err := s.r.d.try(s.T, s.r.next("lacking"), manner{}, "hello"); err == nil {
		s.Error("a container that lacks what is required has started")
	}
	for range 5 { // a busy machine may be late by itself
		c, err := s.r.d.try(s.T, s.r.next("closed"), manner{}, "hello", "wait", "hello")
		if err == nil {
			s.c = c
			s.r.waits(c)
			return
		}
		if !strings.Contains(err.Error(), "not armed in time") {
			s.Fatal(err)
		}
	}
	s.Fatal("it was refused each time")
}

// disconnections are the gaps of the runtime's NRI socket.
func disconnections(e Evidence) []*evidence.Gap {
	return slices.DeleteFunc(e.GapsOf("", evidence.GapRuntimeDisconnected), func(g *evidence.Gap) bool { return !strings.HasPrefix(g.Source, "nri:") })
}

// oomKills counts whom the kernel has killed for want of memory since it booted.
func oomKills(t *testing.T) (n uint64) {
	t.Helper()
	b, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), "\noom_kill ")
	if _, err := fmt.Sscan(after, &n); err != nil {
		t.Fatalf("oom_kill in /proc/vmstat: %v", err)
	}
	return n
}
