package witness

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/bpf/symbol"
	"probity/evidence"
	"probity/runtime/image"
)

// typed is a kernel that counts misses by type and durations.
type typed struct {
	*fakeKernel
	missed    map[evidence.ProbeType]evidence.Loss
	durations map[uint32]*evidence.Duration
}

func (k *typed) MissesOf(t evidence.ProbeType) evidence.Loss       { return k.missed[t] }
func (k *typed) Duration(s probe.Site) (*evidence.Duration, error) { return k.durations[s.ID], nil }

func newTyped(t *testing.T, sites ...probe.Site) (*stage, *typed) {
	st := newStage(t)
	k := &typed{st.kern, map[evidence.ProbeType]evidence.Loss{}, map[uint32]*evidence.Duration{}}
	id := st.runs[st.id].id
	var searches []probe.Search
	for _, s := range sites {
		searches = append(searches, probe.Search{ProbeID: s.Probe.ID, Complete: true})
	}
	st.Armed(Start{Identity: id, Source: "hook", Sites: sites, Searches: searches, Arm: k, Notified: armedAt - 100, ArmedAt: armedAt})
	return st, k
}

func kernelSite(id uint32, function string, requested, used evidence.ProbeType) probe.Site {
	return probe.Site{Type: used, Armed: true, ID: id, Detail: "fentry: no trampolines", Planned: &probe.Planned{
		Probe: &policy.Probe{ID: "k-" + function, Type: string(requested)}, Requested: requested, Function: function, Wanted: "openat",
	}}
}

// A kernel function is in no file, and what the kernel really used is in the
// line; its confidence is below that of a uprobe beside it.
func TestKernelFunction(t *testing.T) {
	st, _ := newTyped(t, armed(1, "hello"), kernelSite(2, "__x64_sys_openat", evidence.Fentry, evidence.Kprobe))
	st.Publish(st.id, 0)
	st.hit(1, 1, 6000)
	st.hit(2, 3, 6000)
	st.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 2, Ns: 6000, Pid: 7, Comm: "app", Session: bpf.SessionExec})
	var k, u *evidence.Observation
	st.out.lines = nil
	st.End(st.id, 9000, true)
	for _, o := range take[*evidence.Observation](st.out) {
		if o.Function != "" {
			k = o
		} else {
			u = o
		}
	}
	if k.ProbeType != evidence.Kprobe || k.RequestedProbeType != evidence.Fentry || k.Path != "" || k.Offset != nil || *k.Count != 3 || k.Wanted != "openat" || k.Detail == "" {
		t.Errorf("%+v", k)
	}
	if k.Confidence.Value >= u.Confidence.Value || k.Confidence.Inputs.Symbol != "function" {
		t.Errorf("confidence %v, beside a uprobe's %v", k.Confidence, u.Confidence)
	}
	if k.Process == nil || k.Process.Session != evidence.SessionExec {
		t.Errorf("process %+v", k.Process)
	}
}

// What decides whether a site gets a new line is what that line would say.
func TestSaying(t *testing.T) {
	reasons := append(slices.Clone(evidence.GapReasons), evidence.GapRingFull)
	for hit := range 2 {
		for i, a := range reasons {
			for _, b := range reasons[i:] {
				st := newStage(t, armed(1, "hello"))
				r := st.runs[st.id]
				r.addGap(&gap{selector: wholeRun, reason: a, from: armedAt, to: armedAt + 1, count: 1})
				r.addSiteGap(0, &gap{reason: b, from: 9500, count: 1}) // later than the lines reach
				r.sites[0].own().counter = bpf.Counter{Count: uint64(hit), FirstNs: 6000, LastNs: 6000}
				o := r.observe(clock, &r.sites[0], 9000, st.cfg.Log)
				if got, want := r.saying(&r.sites[0]), (said{uint64(*o.Count), saidOf(o.State), uint8(len(o.Gaps)), o.Stack != nil}); got != want {
					t.Fatalf("%s, %s: %+v, the line says %+v", a, b, got, want)
				}
			}
		}
	}
}

// What the kernel missed of one probe type is no gap of another.
func TestMissesByType(t *testing.T) {
	st, k := newTyped(t, armed(1, "hello"), kernelSite(2, "do_exit", evidence.Kprobe, evidence.Kprobe))
	k.missed[evidence.Uprobe] = evidence.Loss{}
	st.Publish(st.id, 0)
	k.missed[evidence.Kprobe] = evidence.Loss{N: 4}
	obs, cov := st.final(t, 9000)
	if obs["hello"].State != evidence.ArmedNoHit || obs["hello"].Confidence.Inputs.Losses != "none" {
		t.Errorf("the uprobe: %+v", obs["hello"])
	}
	if o := obs[""]; o.State != evidence.Partial || o.Confidence.Inputs.Losses != "some" {
		t.Errorf("the kprobe: %+v", o)
	}
	if cov.Losses.KernelMissed.N != 4 || len(cov.Losses.ByType) != 1 || cov.Losses.ByType[0].ProbeType != evidence.Kprobe {
		t.Errorf("losses %+v", cov.Losses)
	}
	if g := take[*evidence.Gap](st.out); len(g) != 1 || g[0].ProbeType != evidence.Kprobe || g[0].Scope != evidence.ScopeRun {
		t.Errorf("gaps %+v", g)
	}
}

func TestMissesUnknowableOfOneType(t *testing.T) {
	st, k := newTyped(t, armed(1, "hello"), kernelSite(2, "do_exit", evidence.Kprobe, evidence.Kprobe))
	k.missed[evidence.Uprobe] = evidence.Loss{Unknowable: true}
	st.Publish(st.id, 0)
	obs, cov := st.final(t, 9000)
	if obs["hello"].Confidence.Inputs.Losses != "unknowable" || obs[""].Confidence.Inputs.Losses != "none" {
		t.Errorf("%v, %v", obs["hello"].Confidence, obs[""].Confidence)
	}
	if !cov.Losses.KernelMissed.Unknowable || cov.Losses.Reason == "" || len(cov.Losses.ByType) != 1 {
		t.Errorf("%+v", cov.Losses)
	}
}

func TestDurationAndStack(t *testing.T) {
	s := armed(1, "hello")
	s.Probe.Duration, s.Probe.Stack = true, true
	st, k := newTyped(t, s)
	st.Publish(st.id, 0)
	st.out.lines = nil
	k.durations[1] = evidence.NewDuration([]uint64{0, 0, 3}, 16, 1)
	st.hit(1, 4, 6000)
	st.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 1, Ns: 6000, Pid: 7, Comm: "app"})
	off := evidence.Uint64(64)
	var frames []evidence.Frame
	for range 100 {
		frames = append(frames, evidence.Frame{BuildID: "ab", Offset: &off, Symbol: strings.Repeat("\x01", 300)})
	}
	st.Stack(42, 1, &evidence.Stack{Frames: frames})
	st.Stack(42, 1, &evidence.Stack{Frames: frames[:1]}) // of a later hit: not the first's
	got := take[*evidence.Observation](st.out)
	if len(got) != 2 || got[0].Stack != nil || got[1].Stack == nil || got[0].Duration == nil || got[0].Duration.Count != 3 {
		t.Fatalf("%d lines: %+v", len(got), got)
	}
	stack := got[1].Stack
	if n := uint64(len(stack.Frames)) + uint64(stack.More); n != 100 || len(stack.Frames) == 0 || stack.Reason == "" {
		t.Errorf("%d frames listed, %d more: %s", len(stack.Frames), stack.More, stack.Reason)
	}
	obs, _ := st.final(t, 9000)
	if obs["hello"].Stack == nil || obs["hello"].Duration.Unmatched != 1 {
		t.Errorf("final: %+v", obs["hello"])
	}
}

func late(id uint32, symbol, path string) probe.Site {
	s := armed(id, symbol)
	s.File = &probe.File{Match: image.Match{Path: path, Origin: "upper"}, Digest: s.File.Digest}
	return s
}

// Sites that are armed after the start are partial at best, from the run's start
// or from when their file was first seen, and their hits are hits.
func TestLateSites(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.Publish(st.id, 0)
	st.now = 7000
	st.out.lines = nil
	a, b := late(2, "a", "/opt/dropped"), late(3, "b", "/opt/dropped")
	a.Probe.ID, b.Probe.ID = "p-late", "p-late"
	st.Add(st.id, []probe.Site{a, b}, []probe.Search{{ProbeID: "p-late", Complete: true}}, 6000, evidence.GapLateAttach)
	gaps := take[*evidence.Gap](st.out)
	if len(gaps) != 1 || gaps[0].ProbeID != "p-late" || gaps[0].Path != "/opt/dropped" || gaps[0].From != clock.Time(6000) || gaps[0].To != clock.Time(7000) || gaps[0].Scope != evidence.ScopeSite {
		t.Fatalf("%+v", gaps)
	}
	if got := take[*evidence.Observation](st.out); len(got) != 2 || got[0].State != evidence.Partial || got[0].From != clock.Time(armedAt) {
		t.Fatalf("%+v", got)
	}
	st.hit(3, 1, 7500)
	st.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 3, Ns: 7500, Pid: 7, Comm: "app"})
	if got := take[*evidence.Observation](st.out); len(got) != 1 || got[0].Symbol != "b" || got[0].State != evidence.Hit || got[0].Complete {
		t.Fatalf("%+v", got)
	}
	obs, cov := st.final(t, 9000)
	if obs["a"].State != evidence.Partial || obs["b"].State != evidence.Hit || obs["hello"].State != evidence.ArmedNoHit {
		t.Errorf("%s %s %s", obs["a"].State, obs["b"].State, obs["hello"].State)
	}
	if len(cov.Probes) != 2 || cov.Probes[1].State != evidence.Hit || cov.Probes[1].Sites != 2 {
		t.Errorf("%+v", cov.Probes)
	}
}

// A file that was only touched is another inode with the same bytes: for a reader
// it is the same site, whose hits add up. A hit is not lost by it.
func TestArmedAgain(t *testing.T) {
	st := newStage(t, armed(1, "hello"), armed(9, "other"))
	st.Publish(st.id, 0)
	st.hit(1, 5, 6000)
	st.now = 6000
	for id := uint32(2); id < 40; id++ { // again and again, past what is kept
		st.now += 10
		st.Checked(st.id, st.now, []probe.Trouble{{Path: libPath, Reason: evidence.GapFileChanged, Detail: "copied up"}})
		again := armed(id+100, "hello")
		again.Offset = armed(1, "hello").Offset
		st.Add(st.id, []probe.Site{again}, nil, st.now-5, evidence.GapFileChanged)
		st.hit(id+100, 1, st.now+1)
		st.Checked(st.id, st.now+2, nil)
	}
	obs, cov := st.final(t, 9000)
	if len(obs) != 2 || *obs["hello"].Count != 5+38 || obs["hello"].FirstAt != clock.Time(6000) || obs["hello"].Complete {
		t.Errorf("%d lines, %+v", len(obs), obs["hello"])
	}
	if len(cov.Probes) != 2 || cov.Probes[0].Sites != 1 {
		t.Errorf("%+v", cov.Probes)
	}
	if obs["other"].State != evidence.Partial { // of the same file
		t.Errorf("%+v", obs["other"])
	}
}

// A file of the image that was copied up is another site: what was counted before
// was of the image, and that stays so.
func TestCopiedUpIsAnotherSite(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.Publish(st.id, 0)
	st.hit(1, 5, 6000)
	copied := armed(2, "hello")
	copied.Offset = armed(1, "hello").Offset
	copied.File = &probe.File{Match: image.Match{Path: libPath, Origin: image.FromUpper}, Digest: copied.File.Digest}
	st.now = 7000
	st.Add(st.id, []probe.Site{copied}, nil, 6500, evidence.GapFileChanged)
	st.hit(2, 2, 7500)
	st.out.lines = nil
	st.End(st.id, 9000, true)
	got := map[string]uint64{}
	for _, o := range take[*evidence.Observation](st.out) {
		got[o.Origin] += uint64(*o.Count)
	}
	if len(got) != 2 || got[image.FromLayer] != 5 || got[image.FromUpper] != 2 {
		t.Errorf("counted by origin: %v", got)
	}
}

// What was timed under earlier numbers of a site is of the site as well.
func TestDurationsOfAllNumbers(t *testing.T) {
	site := func(id uint32) probe.Site {
		s := armed(id, "hello")
		s.Offset, s.Probe = 0x1001, &policy.Probe{ID: "p", Type: "uprobe", Duration: true}
		return s
	}
	st, k := newTyped(t, site(1))
	st.Publish(st.id, 0)
	st.now = 7000
	st.Add(st.id, []probe.Site{site(2), site(3)}, nil, 6500, evidence.GapFileChanged)
	for id, buckets := range map[uint32][]uint64{1: {0, 0, 3}, 2: {1}} { // the third has none
		k.durations[id] = evidence.NewDuration(buckets, uint64(10*id), 1)
		st.hit(id, 4, 8000)
	}
	obs, _ := st.final(t, 9000)
	want := evidence.NewDuration([]uint64{1, 0, 3}, 30, 2)
	if got := obs["hello"].Duration; !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// A mapping of a file that nobody named may be of any.
func TestUnarmedMappingOfAnyFile(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.Publish(st.id, 0)
	st.out.lines = nil
	st.UnarmedMapping(st.id, "", 6000, 0, "more files than are looked at")
	if g := take[*evidence.Gap](st.out); len(g) != 1 || g[0].Scope != evidence.ScopeRun || g[0].Reason != evidence.GapUnarmedMapping {
		t.Fatalf("%+v", g)
	}
	if obs, _ := st.final(t, 9000); obs["hello"].State != evidence.Partial {
		t.Errorf("%+v", obs["hello"])
	}
}

// Where the compiler put the function's code is listed, as far as it fits.
func TestInlinedAt(t *testing.T) {
	s := armed(1, "hello")
	s.Inline = "inlinedAt"
	for i := range uint64(100) {
		s.InlinedAt = append(s.InlinedAt, symbol.Instance{Function: fmt.Sprint("caller", i), Offset: i})
	}
	in := armed(2, "copy")
	in.Kind, in.Inline, in.InlinedIn = "inlined", "inlinedAt", "caller0" // at no place that is told
	st := newStage(t, s, in)
	st.Publish(st.id, 0)
	got := take[*evidence.Observation](st.out)
	if len(got) != 2 || len(got[0].InlinedAt) != evidence.MaxInstances || got[0].InlinedAtMore != 36 || got[0].InlinedAt[7].In != "caller7" {
		t.Errorf("%+v", got[0])
	}
	if got[1].InlinedIn != "caller0" || got[1].Inline != "unknown" || got[1].Confidence.Inputs.Symbol != "inlined" || got[1].Confidence.Value >= got[0].Confidence.Value {
		t.Errorf("%+v", got[1])
	}
}

// Other bytes under the same path are another site; the gap before it was armed is
// not one of the first.
func TestOtherBytes(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.Publish(st.id, 0)
	st.out.lines = nil
	st.now = 7000
	other := armed(2, "hello")
	other.File = &probe.File{Match: other.File.Match, Digest: func() (string, error) { return "sha256:" + strings.Repeat("cd", 32), nil }}
	st.Add(st.id, []probe.Site{other}, nil, 6000, evidence.GapFileChanged)
	if g := take[*evidence.Gap](st.out); len(g) != 1 || g[0].Offset == nil || uint64(*g[0].Offset) != other.Offset || g[0].Symbol != "hello" {
		t.Fatalf("%+v", g)
	}
	st.out.lines = nil
	st.End(st.id, 9000, true)
	for _, o := range take[*evidence.Observation](st.out) {
		if want := map[bool]evidence.State{true: evidence.Partial, false: evidence.ArmedNoHit}[uint64(*o.Offset) == other.Offset]; o.State != want {
			t.Errorf("%+v", o)
		}
	}
}

// A site that was never armed may be found armed later: these are two lines, and
// the first remains true of the start.
func TestLateFoundFile(t *testing.T) {
	gone := probe.Site{Reason: evidence.FileNotFound, Planned: &probe.Planned{Probe: &policy.Probe{ID: "p", Type: "uprobe", File: "/opt/*"}, Requested: evidence.Uprobe}}
	st := newStage(t, gone)
	st.Publish(st.id, 0)
	s := late(2, "f", "/opt/x")
	s.Probe.ID = "p"
	st.Add(st.id, []probe.Site{s, gone}, []probe.Search{{ProbeID: "p", Complete: true}}, 0, evidence.GapLateAttach)
	st.hit(2, 1, 6000)
	obs, cov := st.final(t, 9000)
	if len(obs) != 2 || obs["f"].State != evidence.Hit || obs[""].State != evidence.NotArmed || cov.Probes[0].State != evidence.Hit {
		t.Errorf("%+v, %+v", obs, cov.Probes)
	}
}

// One of two sites of a probe stands down, then both do, then one counts again.
func TestStood(t *testing.T) {
	a, b := armed(1, "a"), armed(2, "b")
	a.Probe.ID, b.Probe.ID = "p", "p"
	st := newStage(t, a, b, armed(3, "other"))
	st.Publish(st.id, 0)
	st.out.lines = nil
	st.hit(1, 7, 6000)
	st.now = 6100
	st.Stood(st.id, evidence.GapStoodDown, 6050, "stopAfter: 7", 1)
	gaps := take[*evidence.Gap](st.out)
	if len(gaps) != 1 || gaps[0].Symbol != "a" || gaps[0].Offset == nil || gaps[0].Scope != evidence.ScopeSite || !gaps[0].To.IsZero() {
		t.Fatalf("%+v", gaps)
	}
	if got := take[*evidence.Observation](st.out); len(got) != 1 || got[0].State != evidence.Hit || *got[0].Count != 7 || got[0].Complete {
		t.Fatalf("%+v", got)
	}
	st.Rearmed(st.id, 6500, 1)
	if g := take[*evidence.Gap](st.out); len(g) != 1 || g[0].GapID != gaps[0].GapID || g[0].To != clock.Time(6500) {
		t.Fatalf("%+v", g)
	}
	st.Stood(st.id, evidence.GapBudgetDisarm, 7000, "more than 1000 hits a second", 1, 2)
	st.Stood(st.id, evidence.GapBudgetDisarm, 7010, "again", 1, 2) // known
	whole := take[*evidence.Gap](st.out)
	if len(whole) != 1 || whole[0].ProbeID != "p" || whole[0].Symbol != "" {
		t.Fatalf("%+v", whole)
	}
	st.Rearmed(st.id, 8000, 2)
	if g := take[*evidence.Gap](st.out); len(g) != 2 || g[0].GapID != whole[0].GapID || g[0].To != clock.Time(8000) || g[1].Symbol != "a" || g[1].From != clock.Time(8000) {
		t.Fatalf("%+v", g)
	}
	obs, cov := st.final(t, 9000)
	if o := obs["a"]; o.State != evidence.Hit || o.Complete || len(o.Gaps) != 2 || o.Gaps[0].DurationNs+o.Gaps[1].DurationNs != 450+1000+1000 {
		t.Errorf("%+v", o)
	}
	if o := obs["b"]; o.State != evidence.Partial || len(o.Gaps) != 1 || o.Gaps[0].DurationNs != 1000 {
		t.Errorf("%+v", o)
	}
	if obs["other"].State != evidence.ArmedNoHit || cov.Probes[0].State != evidence.Hit {
		t.Errorf("%+v %+v", obs["other"], cov.Probes)
	}
}

// A probe of ten thousand sites that stands down is one line, not ten thousand;
// so is one of which all stand but one.
func TestManyStood(t *testing.T) {
	const n = 10_000
	var sites []probe.Site
	var ids []uint32
	for i := range uint32(n) {
		s := armed(i+1, fmt.Sprint("f", i))
		s.Probe.ID = "p"
		sites, ids = append(sites, s), append(ids, i+1)
	}
	st := newStage(t, sites...)
	st.runs[st.id].searches = st.runs[st.id].searches[:1]
	st.runs[st.id].searches[0].ProbeID = "p"
	st.Publish(st.id, 0)
	st.out.lines = nil
	for i := range 80 {
		at := int64(6000 + 10*i)
		st.Stood(st.id, evidence.GapStoodDown, at, "stopAfter", ids...)
		st.Rearmed(st.id, at+4, ids...)
	}
	if g := take[*evidence.Gap](st.out); len(g) != 160 {
		t.Fatalf("%d gap lines", len(g))
	}
	if got := take[*evidence.Observation](st.out); len(got) != n {
		t.Errorf("%d lines: each site became partial once", len(got))
	}
	if kept := len(st.runs[st.id].gaps); kept > 2*manyGaps {
		t.Errorf("%d gaps are kept", kept)
	}
	obs, _ := st.final(t, 9000)
	if o := obs["f7"]; o.State != evidence.Partial || len(o.Gaps) != 1 || o.Gaps[0].DurationNs != 320 || o.Gaps[0].Count.N != 80 || o.Gaps[0].From != clock.Time(6000) || o.Gaps[0].To != clock.Time(6000+790+4) {
		t.Errorf("%+v", o.Gaps)
	}
}

func TestAttributionLost(t *testing.T) {
	st := newStage(t, armed(1, "hello"), armed(2, "hit"))
	st.Publish(st.id, 0)
	st.hit(2, 1, 5500)
	st.out.lines = nil
	st.Event(bpf.Event{Kind: bpf.EventLost, Cgroup: 42, Ns: 6000, Pid: 7})
	if g := take[*evidence.Gap](st.out); len(g) != 1 || g[0].Reason != evidence.GapAttributionLost || g[0].From != clock.Time(6000) || !g[0].To.IsZero() {
		t.Fatalf("%+v", g)
	}
	if got := take[*evidence.Observation](st.out); len(got) != 2 {
		t.Fatalf("%+v", got)
	}
	st.AttributionLost(st.id, 2, 6100, "seen in another cgroup")
	st.kern.run.Left = 3
	obs, cov := st.final(t, 9000)
	if o := obs["hello"]; o.State != evidence.Partial || o.Gaps[0].Count.N != 5 || o.Gaps[0].DurationNs != 3000 {
		t.Errorf("%+v", o)
	}
	if o := obs["hit"]; o.State != evidence.Hit || o.Complete {
		t.Errorf("%+v", o)
	}
	if len(cov.GapReasons) != 1 || cov.GapReasons[0] != evidence.GapAttributionLost {
		t.Errorf("%v", cov.GapReasons)
	}
}

// Processes that could not be followed may have left.
func TestUntracked(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.Publish(st.id, 0)
	st.kern.run.Untracked = 2
	obs, _ := st.final(t, 9000)
	if o := obs["hello"]; o.State != evidence.Partial || o.Gaps[0].Reason != evidence.GapAttributionLost || o.Gaps[0].Count.N != 2 {
		t.Errorf("%+v", o)
	}
}

// A container that maps files shared and executable as often as it can makes one
// line for each of so many files, and one for all others; the sites of the files
// that it did so with are partial.
func TestUnarmedMapping(t *testing.T) {
	other := late(2, "other", "/opt/x")
	st := newStage(t, armed(1, "hello"), other)
	st.Publish(st.id, 0)
	st.out.lines = nil
	for i := range 1000 {
		st.UnarmedMapping(st.id, libPath, 6000+int64(i), 0, "shared and executable")
	}
	if n := len(st.out.lines); n > 4 {
		t.Fatalf("%d lines for one file", n)
	}
	for i := range 1000 {
		st.UnarmedMapping(st.id, fmt.Sprint("/tmp/", i), 6000, 6001, "shared and executable")
	}
	st.UnarmedMapping(st.id, "", 6000, 0, "more files than are looked at")
	if lines := len(st.out.lines); lines > 2*maxGapFiles+20 {
		t.Fatalf("%d lines", lines)
	}
	for _, g := range take[*evidence.Gap](st.out) {
		if g.Scope == evidence.ScopeFile && g.Path == "" {
			t.Errorf("a gap of no file: %+v", g)
		}
	}
	obs, _ := st.final(t, 9000)
	if o := obs["hello"]; o.State != evidence.Partial || o.Gaps[0].Reason != evidence.GapUnarmedMapping || o.Gaps[0].Count.N < 1000 {
		t.Errorf("%+v", o.Gaps)
	}
	if o := obs["other"]; o.State != evidence.Partial {
		t.Errorf("further files may be this one: %+v", o)
	}
}

// The ring is full all the time: first hits are told at once, and how many details
// were lost is told now and then, and at the end.
func TestSweepIsBounded(t *testing.T) {
	var sites []probe.Site
	for i := range uint32(100) {
		sites = append(sites, armed(i+1, fmt.Sprint("f", i)))
	}
	st := newStage(t, sites...)
	st.Publish(st.id, 0)
	for i := range uint32(99) {
		st.hit(i+1, 1, 6000)
	}
	st.kern.run.RingFull = 1 // each line tells of the gap once
	st.Sweep()
	st.out.lines = nil
	const second = 1e9
	for i := range 600 { // ten minutes of hits on everything
		st.now += second
		for i := range uint32(99) {
			st.hit(i+1, 1000, st.now)
		}
		st.kern.run.RingFull += 50
		if i == 300 {
			st.hit(100, 1, st.now)
		}
		st.Sweep()
	}
	if got := take[*evidence.Observation](st.out); len(got) != 1 || got[0].Symbol != "f99" {
		t.Errorf("%d lines of sites, the one first hit has one", len(got))
	}
	if g := take[*evidence.Gap](st.out); len(g) > 62 || len(g) < 30 {
		t.Errorf("%d lines of the ring", len(g))
	}
	at := st.now + 5
	obs, cov := st.final(t, at)
	g := take[*evidence.Gap](st.out)
	if *obs["f0"].Count != 1+600_000 || cov.Losses.RingFull.N != 30_001 || g[len(g)-1].Count.N != 30_001 {
		t.Errorf("count %d, lost %v, gap %v", *obs["f0"].Count, cov.Losses, g[len(g)-1])
	}
}

// counting counts how often counters are read.
type counting struct {
	*fakeKernel
	reads int
}

func (k *counting) Counter(s probe.Site) (bpf.Counter, error) {
	k.reads++
	return k.fakeKernel.Counter(s)
}

// A sweep reads what may have been dropped: of the runs whose own events were,
// the sites that were not hit yet. What one container drops costs little for
// the others.
func TestSweepReadsWhatWasDropped(t *testing.T) {
	st := newStage(t)
	kerns := map[bool]*counting{}
	for _, loud := range []bool{true, false} {
		k := &counting{fakeKernel: &fakeKernel{slots: map[uint32]bpf.Counter{}}}
		id := st.identity
		id.ID, id.CgroupID = fmt.Sprintf("%064v", loud)[:64], map[bool]uint64{true: 50, false: 51}[loud]
		var sites []probe.Site
		for i := range uint32(100) {
			sites = append(sites, armed(i+1, fmt.Sprint("f", i)))
		}
		st.Armed(Start{Identity: id, Source: "hook", Sites: sites, Arm: k, ArmedAt: armedAt})
		st.Publish(id.RunID(), 0)
		kerns[loud] = k
	}
	loud, quiet := kerns[true], kerns[false]
	loud.reads, quiet.reads, st.out.lines = 0, 0, nil
	loud.run.RingFull = 1
	for i := range uint32(90) {
		loud.slots[i+1] = bpf.Counter{Count: 1, FirstNs: 6000, LastNs: 6000}
	}
	st.Sweep()
	if got := take[*evidence.Observation](st.out); len(got) < 90 || loud.reads == 0 || quiet.reads != 0 {
		t.Errorf("%d lines; %d reads of who dropped, %d of the other", len(got), loud.reads, quiet.reads)
	}
	loud.reads, st.out.lines = 0, nil
	for range 10 {
		st.now += 3e8
		st.Sweep() // nothing new was dropped
	}
	if loud.reads != 0 {
		t.Errorf("%d reads for nothing", loud.reads)
	}
	loud.run.RingFull++
	loud.slots[95] = bpf.Counter{Count: 1, FirstNs: st.now, LastNs: st.now}
	st.Sweep()
	if got := take[*evidence.Observation](st.out); len(got) != 1 || loud.reads > 10 {
		t.Errorf("%d lines, %d reads: 10 sites were not hit yet", len(got), loud.reads)
	}
}

// A file goes bad and well again all the time while its sites are hit: the counts
// are told once a second, and the last one is not forgotten.
func TestCountsAreToldOncePerSecond(t *testing.T) {
	var sites []probe.Site
	for i := range uint32(50) {
		sites = append(sites, armed(i+1, fmt.Sprint("f", i)))
	}
	st := newStage(t, sites...)
	st.Publish(st.id, 0)
	st.now = 1e12
	turn := func(n int) {
		for i := range n {
			st.now += 5e7
			for i := range uint32(50) {
				st.hit(i+1, 3, st.now)
			}
			var bad []probe.Trouble
			if i%2 == 0 {
				bad = []probe.Trouble{{Path: libPath, Reason: evidence.GapFileChanged, Detail: "toggled"}}
			}
			st.Checked(st.id, st.now, bad)
		}
	}
	turn(2) // hit, and with the gap
	st.out.lines = nil
	turn(200) // ten seconds
	obs := take[*evidence.Observation](st.out)
	if len(obs) > 11*50 || len(obs) < 9*50 {
		t.Errorf("%d lines of 50 sites in ten seconds", len(obs))
	}
	st.now += 2e9
	st.Checked(st.id, st.now, nil)
	obs = append(obs, take[*evidence.Observation](st.out)...)
	if last := obs[len(obs)-1]; uint64(*last.Count) != 202*3 {
		t.Errorf("the last line says %d, counted were %d", *last.Count, 202*3)
	}
}

// A file that there was no time to hash has no digest in any line of the run, and
// nobody waits for one.
func TestNotHashed(t *testing.T) {
	s := armed(1, "hello")
	hashed := 0
	s.File.Digest = func() (string, error) { hashed++; return "sha256:" + strings.Repeat("ab", 32), nil }
	st := newStage(t, s)
	st.NotHashed(st.id, map[*probe.File]error{s.File: errors.New("hash " + libPath + ": no time")})
	st.Publish(st.id, 0)
	st.Add(st.id, []probe.Site{armed(2, "other")}, nil, 6000, evidence.GapFileChanged)
	for _, o := range take[*evidence.Observation](st.out) {
		if o.Symbol == "hello" && (o.FileDigest != "" || !strings.Contains(o.Detail, "no time")) {
			t.Errorf("%+v", o)
		}
	}
	if obs, _ := st.final(t, 9000); obs["hello"].FileDigest != "" || hashed != 0 || obs["other"].FileDigest == "" {
		t.Errorf("%q, hashed %d times", obs["hello"].FileDigest, hashed)
	}
}

// A process that has mapped a file keeps it, however often the file is replaced
// since: what it executes there is counted under the number of that time.
func TestHitOfTheFirstOfMany(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.Publish(st.id, 0)
	st.now = 6000
	for id := uint32(101); id < 140; id++ {
		st.now += 10
		again := armed(id, "hello")
		again.Offset = armed(1, "hello").Offset
		st.Add(st.id, []probe.Site{again}, nil, st.now-5, evidence.GapFileChanged)
	}
	st.hit(1, 3, 7000)
	st.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 1, Ns: 7000, Pid: 7, Comm: "app"})
	if lines := take[*evidence.Observation](st.out); len(lines) == 0 || lines[len(lines)-1].State != evidence.Hit {
		t.Errorf("the event of the first number is not told: %+v", lines)
	}
	if obs, _ := st.final(t, 9000); obs["hello"].State != evidence.Hit || *obs["hello"].Count != 3 {
		t.Errorf("%s, %d", obs["hello"].State, *obs["hello"].Count)
	}
}

// What happens to one site happens to no other, though all begin as one.
func TestSitesOwn(t *testing.T) {
	a, b := armed(1, "a"), armed(2, "b")
	a.Probe.Stack = true
	st := newStage(t, a, b)
	st.Publish(st.id, 0)
	st.hit(1, 3, 6000)
	st.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 1, Ns: 6000, Pid: 7, Comm: "app"})
	st.Stack(42, 1, &evidence.Stack{Reason: "unreadable"})
	st.Stood(st.id, evidence.GapStoodDown, 6100, "enough", 1)
	again := armed(3, "a")
	again.Probe, again.Offset = a.Probe, a.Offset
	st.Add(st.id, []probe.Site{again}, nil, 6200, evidence.GapFileChanged)
	r := st.runs[st.id]
	if s := r.sites[0]; s.counter.Count != 3 || s.process == nil || s.stack == nil || len(s.gaps) == 0 || len(s.earlier) != 1 {
		t.Fatalf("%+v", s.seen)
	}
	if s := r.sites[1]; s.seen != &nothing || !reflect.DeepEqual(nothing, seen{}) {
		t.Errorf("of a site of which nothing is known: %+v", s.seen)
	}
	if n := unsafe.Sizeof(site{}); n > 40 { // for each place and container
		t.Errorf("a site takes %d bytes", n)
	}
}

func saidOf(s evidence.State) saidState {
	switch s {
	case evidence.NotArmed:
		return saidNotArmed
	case evidence.ArmedNoHit:
		return saidArmedNoHit
	case evidence.Partial:
		return saidPartial
	case evidence.Hit:
		return saidHit
	}
	return saidNothing
}
