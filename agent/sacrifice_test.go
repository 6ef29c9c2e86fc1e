package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/evidence/verify"
	"probity/evidence/witness"
	"probity/runtime/container"
	"probity/runtime/image"
)

// counted is an armed container of which a test says what the kernel counts.
type counted struct{ counter bpf.Counter }

func (c *counted) Counter(probe.Site) (bpf.Counter, error) { return c.counter, nil }
func (c *counted) Run() (bpf.Run, error)                   { return bpf.Run{}, nil }
func (c *counted) Misses() evidence.Loss                   { return evidence.Loss{} }

// small is a witness over a small spool with a consumer, and containers that make
// entries without end.
type small struct {
	*witness.Witness
	t      *testing.T
	spool  *spool.Spool
	dir    string
	signer *sign.Signer
	boot   int64
	kernel map[uint64]*counted // by cgroup
	runs   map[uint64]string
	made   map[uint64]int // entries
}

func newSmall(t *testing.T, quota, share int64) *small {
	t.Helper()
	dir := t.TempDir()
	signer, err := sign.LoadOrCreate(dir)
	must(t, err)
	s := &small{t: t, dir: filepath.Join(dir, "spool"), signer: signer, boot: 1e12, kernel: map[uint64]*counted{}, runs: map[uint64]string{}, made: map[uint64]int{}}
	s.spool, err = spool.Open(spool.Config{
		Dir: s.dir, State: filepath.Join(dir, "state"), Node: "node-a", BootID: "b", Signer: signer, Quota: quota, ContainerQuota: share,
		Dropped: func(runs []string) { s.Restate(runs) },
		Clock: func() evidence.Clock {
			return evidence.Clock{BootNs: evidence.Uint64(s.boot), Wall: evidence.TimeOf(time.Unix(1_700_000_000, s.boot))}
		},
	})
	must(t, err)
	t.Cleanup(func() { s.spool.Close() })
	s.Witness = witness.New(witness.Config{Sink: s.spool, BootTime: func() int64 { return s.boot }})
	return s
}

// start arms a container with one site, which is hit, and a set.
func (s *small) start(cgroup uint64) {
	id := container.Identity{
		Runtime: container.Podman, ID: fmt.Sprintf("%064x", cgroup), BootID: "b", CgroupID: cgroup, CgroupPath: "/x",
		Image: container.Image{Digest: "sha256:" + strings.Repeat("1a", 32)},
	}
	file := &probe.File{Match: image.Match{Path: "/bin/app", Origin: "imageLayer"}, Digest: func() (string, error) { return "sha256:" + strings.Repeat("ab", 32), nil }}
	site := probe.Site{Type: evidence.Uprobe, Armed: true, ID: uint32(cgroup), Planned: &probe.Planned{
		Probe: &policy.Probe{ID: "f", Type: "uprobe"}, Requested: evidence.Uprobe, Symbol: "f", Kind: "func", Inline: "none", Offset: 64, HasOffset: true, File: file,
	}}
	set := probe.Site{Type: evidence.RawTracepoint, Armed: true, Planned: &probe.Planned{Probe: &policy.Probe{ID: "files", Set: evidence.SetFiles}, Set: evidence.SetFiles, Requested: evidence.UnknownProbe}}
	s.kernel[cgroup], s.runs[cgroup] = &counted{bpf.Counter{Count: 1, FirstNs: s.boot, LastNs: s.boot}}, id.RunID()
	s.Armed(witness.Start{
		Identity: id, Source: "hook", Sites: []probe.Site{site, set}, Searches: []probe.Search{{ProbeID: "f", Complete: true}, {ProbeID: "files", Complete: true}},
		Arm: s.kernel[cgroup], Notified: s.boot, ArmedAt: s.boot,
	})
	s.boot += 1e6
	s.Publish(id.RunID(), 0)
}

// work has a container open so many files more, and all of them once more.
func (s *small) work(cgroup uint64, files int) {
	k := &s.kernel[cgroup].counter
	k.Count, k.LastNs = k.Count+10, s.boot
	var es []*witness.Entry
	s.made[cgroup] += files
	for i := range s.made[cgroup] {
		e := &witness.Entry{Set: evidence.SetFiles, At: 1e12 + 1e6, Last: s.boot, Count: uint64(s.made[cgroup]/files - i/files), Path: fmt.Sprintf("/tmp/%d", i), Entry: evidence.Entry{Access: "read"}}
		copy(e.Key[:], e.Path)
		es = append(es, e)
	}
	s.Entries(cgroup, es...)
}

func (s *small) flush() { must(s.t, s.spool.Flush(s.t.Context())) }

// tombs is how many chunks went for a reason.
func (s *small) tombs() (acknowledged, lost int) {
	s.t.Helper()
	rep, err := verify.Path(s.t.Context(), []string{s.dir}, s.signer.Public(), verify.Options{})
	if err != nil || !rep.Sound() {
		s.t.Fatal(rep.Findings, err)
	}
	for _, g := range rep.Gaps {
		if g.Reason == evidence.GapSpoolDropped && g.Scope == evidence.ScopeNode {
			lost++
		}
	}
	if rep.Logs[0].Removed > 0 && lost == 0 {
		acknowledged = rep.Logs[0].Removed
	}
	return acknowledged, lost
}

// What is given up, in this order, while all make a little more than there is room for:
// lines that later ones replace; what every consumer has; what somebody has not. A
// container that makes as much as it likes is refused entries past its share, and the
// others are not. Each is signed, and in the end every container's site and set say
// what the kernel counted.
func TestOrderOfSacrifice(t *testing.T) {
	const containers, quota, share = 8, 600_000, 120_000
	s := newSmall(t, quota, share)
	consumer, err := spool.NewReader(s.dir, "one")
	must(t, err)
	for c := uint64(1); c <= containers; c++ {
		s.start(c)
		s.work(c, 5)
	}
	var order []string
	note := func(what string, is bool) {
		if is && !slices.Contains(order, what) {
			order = append(order, what)
		}
	}
	for round := range 60 {
		s.boot += 3600e9
		for c := uint64(1); c <= containers; c++ {
			s.work(c, 5)
		}
		s.Hourly()
		s.flush()
		if round < 3 {
			pending, err := consumer.Pending(t.Context())
			must(t, err)
			_, err = consumer.Ack(t.Context(), pending[len(pending)-1])
			must(t, err)
		}
		u := s.spool.Usage()
		if u.Bytes > quota*3/2 { // what is written at once may go past it
			t.Fatalf("%+v", u)
		}
		note("coalesced", s.Coalesced() > 0)
		acknowledged, lost := s.tombs()
		note("acknowledged", acknowledged > 0)
		note("not acknowledged", lost > 0)
		note("refused", u.Dropped[spool.DroppedContainerQuota] > 0)
		if lost > 0 {
			t.Logf("after %d rounds", round)
			break
		}
	}
	s.start(99) // one that does not know when it has enough
	s.work(99, 400)
	note("refused", s.spool.Usage().Dropped[spool.DroppedContainerQuota] > 0)
	t.Logf("in this order: %v; %d lines left out, %+v", order, s.Coalesced(), s.spool.Usage())
	if !slices.Equal(order, []string{"coalesced", "acknowledged", "not acknowledged", "refused"}) {
		t.Errorf("given up in this order: %v", order)
	}
	for _, run := range s.runs {
		s.boot += 1e6
		s.End(run, s.boot, true)
	}
	s.flush()
	must(t, errors.Join(s.spool.Close()))
	rep, err := verify.Path(t.Context(), []string{s.dir}, s.signer.Public(), verify.Options{})
	if err != nil || !rep.Sound() {
		t.Fatal(rep.Findings, err)
	}
	for c := range s.runs {
		found := 0
		for _, r := range rep.Rows {
			switch {
			case r.RunID != s.runs[c] || r.Entry != nil:
				continue
			case r.ProbeID == "f" && (*r.Count != evidence.Uint64(s.kernel[c].counter.Count) || !r.Complete), r.ProbeID == "files" && (r.Entries != evidence.Uint64(s.made[c]) || r.Complete == (c == 99)):
				t.Errorf("container %d: %+v", c, r)
			}
			if r.State != evidence.Hit || !r.Final {
				t.Errorf("container %d: %+v", c, r)
			}
			found++
		}
		if found != 2 {
			t.Errorf("container %d: %d rows", c, found)
		}
	}
	var left int
	for _, g := range rep.Gaps {
		if g.Reason == evidence.GapCoalesced {
			left++
			if g.To.IsZero() {
				t.Errorf("still open: %+v", g)
			}
		}
	}
	if left == 0 {
		t.Error("no coalesced gap is left to be read")
	}
}
