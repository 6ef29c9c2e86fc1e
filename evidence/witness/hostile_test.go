package witness

import (
	"fmt"
	"strings"
	"testing"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/redact"
	"probity/runtime/image"
)

// strict takes all lines or none, as the spool does.
type strict struct {
	sink
	refused int
}

func (s *strict) Append(_ string, build func(evidence.Clock) []redact.Line) error {
	lines := build(clock)
	for _, line := range lines {
		l := line.Evidence()
		_, err := evidence.Encode(l)
		if err == nil {
			err = evidence.Validate(l)
		}
		if err != nil {
			s.refused++
			return err
		}
	}
	for _, l := range lines {
		s.lines = append(s.lines, kept(l.Evidence()))
	}
	return nil
}

func newStrictStage(t *testing.T, sites ...probe.Site) (*stage, *strict) {
	st := newStage(t, sites...)
	out := &strict{sink: sink{t: t}}
	st.Witness.cfg.Sink = out
	return st, out
}

// The container is found empty, then a health check that began later finds
// what the runtime took away. The gap must not end before it begins: the spool
// would refuse the run's last lines, all of them.
func TestTroubleAfterTheEnd(t *testing.T) {
	st, out := newStrictStage(t, armed(1, "hello"))
	st.Publish(st.id, 0)
	st.Checked(st.id, 8000, nil)
	st.Checked(st.id, 8500, []probe.Trouble{{Path: libPath, Reason: evidence.GapFileChanged, Detail: "gone"}})
	out.lines = nil
	st.End(st.id, 7000, true)
	obs := take[*evidence.Observation](&out.sink)
	if len(obs) != 1 || !obs[0].Final || obs[0].State != evidence.Partial || out.refused != 0 {
		t.Fatalf("%d refused, %+v", out.refused, obs)
	}
}

// A marker's name is whatever the image says. One that fits into no line costs
// its own site's line, and that is signed. What a file or a function is called
// costs no line.
func TestUnwritableLine(t *testing.T) {
	long := armed(2, "long")
	long.Marker = "provider:" + strings.Repeat("m", 300)
	loud := armed(3, "loud")
	loud.File = &probe.File{Match: image.Match{Path: "/" + strings.Repeat("\x01", 4000), Origin: "upper"}, Digest: loud.File.Digest}
	loud.Symbol = strings.Repeat("\x02", 4000)
	st, out := newStrictStage(t, armed(1, "hello"), long, loud)
	st.Publish(st.id, 0)
	st.hit(1, 1, 6000)
	st.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 1, Ns: 6000, Pid: 7, Comm: "app"})
	out.lines = nil
	st.End(st.id, 9000, true)
	obs := take[*evidence.Observation](&out.sink)
	if len(obs) != 2 || obs[0].Symbol != "hello" || obs[0].State != evidence.Hit || !obs[0].Final || !strings.HasPrefix(obs[1].Symbol, "\x02\x02") {
		t.Fatalf("%d observations: %+v", len(obs), obs)
	}
	cov := take[*evidence.Coverage](&out.sink)
	if len(cov) != 1 || !cov[0].Final || len(cov[0].Probes) != 3 {
		t.Fatalf("coverage %+v", cov)
	}
	gaps := take[*evidence.Gap](&out.sink)
	if len(gaps) == 0 || gaps[len(gaps)-1].Reason != evidence.GapSpoolDropped || gaps[len(gaps)-1].Count.N == 0 || gaps[len(gaps)-1].Detail == "" {
		t.Fatalf("gaps %+v", gaps)
	}
}

// As many probes as one container may have, with the longest ids and a reason
// each, and an identity without an image.
func TestLargestCoverage(t *testing.T) {
	var probes []policy.Probe
	for i := range 5 * probe.MaxProbes {
		probes = append(probes, policy.Probe{ID: fmt.Sprintf("%0*d", 1+i%128, i), Type: "uprobe"})
	}
	for _, why := range []string{strings.Repeat("\x01", 4000), strings.Repeat("\"", 4000), strings.Repeat("\xff", 4000)} {
		plan := probe.Refuse(probes, evidence.FileUnreadable, why)
		st, out := newStrictStage(t, plan.Sites...)
		r := st.runs[st.id]
		r.searches = plan.Searches
		r.id.CgroupPath, r.id.Image.Name, r.id.Name = "/"+strings.Repeat("c", 2000), strings.Repeat("i", 1000), strings.Repeat("n", 1000)
		r.id.Image.DigestReason = strings.Repeat("r", 512)
		st.Publish(st.id, 0)
		cov := take[*evidence.Coverage](&out.sink)
		if out.refused != 0 || len(cov) != 1 || len(cov[0].Probes) != len(plan.Searches) || len(plan.Searches) < 50 {
			t.Fatalf("refused %d times; %d coverage lines, %d probes", out.refused, len(cov), len(plan.Searches))
		}
		if got := take[*evidence.Observation](&out.sink); len(got) != len(probes) {
			t.Fatalf("%d lines for %d probes", len(got), len(probes))
		}
	}
}

// Nobody said anything about the image: the line says that.
func TestNoImage(t *testing.T) {
	st, out := newStrictStage(t)
	id := st.runs[st.id].id
	id.ID, id.CgroupID = strings.Repeat("c1", 32), 43
	id.Image.DigestReason = ""
	st.Armed(Start{Identity: id, Source: "hook", ArmedAt: armedAt})
	st.Publish(id.RunID(), 0)
	if cov := take[*evidence.Coverage](&out.sink); len(cov) != 1 || cov[0].ImageDigestReason == "" || out.refused != 0 {
		t.Fatalf("%+v", cov)
	}
}

// A run that could not be armed must not take the events of the one that was.
func TestOneCgroupTwice(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.Publish(st.id, 0)
	other := st.runs[st.id].id
	other.ID = strings.Repeat("c1", 32)
	st.Armed(Start{Identity: other, Source: "hook", ArmedAt: armedAt})
	st.out.lines = nil
	st.hit(1, 1, 6000)
	st.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 1, Ns: 6000, Pid: 7, Comm: "app"})
	if got := take[*evidence.Observation](st.out); len(got) != 1 || got[0].State != evidence.Hit {
		t.Fatalf("%+v", got)
	}
}

// Thousands of sites, each hit for the first time: one line each.
func TestManyFirstHits(t *testing.T) {
	const n = 5000
	var sites []probe.Site
	for i := range n {
		s := armed(uint32(i+1), "f")
		s.Probe.ID = "p"
		sites = append(sites, s)
	}
	st := newStage(t, sites...)
	st.runs[st.id].searches = []probe.Search{{ProbeID: "p", Complete: true}}
	st.Publish(st.id, 0)
	st.out.lines = nil
	for i := range uint32(n) {
		st.hit(i+1, 1, 6000)
		st.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: i + 1, Ns: 6000, Pid: 7, Comm: "app"})
	}
	if got := take[*evidence.Observation](st.out); len(got) != n {
		t.Fatalf("%d lines for %d first hits", len(got), n)
	}
}
