package witness

import (
	"slices"
	"testing"

	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
)

// place is what tells a site of a file from others for who reads the evidence
// (FORMAT.md, "Observation").
type place struct {
	probe, path, origin, digest, symbol, event, function string
	offset                                               evidence.Uint64
}

func placeOf(o *evidence.Observation) place {
	p := place{o.ProbeID, o.Path, o.Origin, o.FileDigest, o.Symbol, o.Event, o.Function, 0}
	if o.Offset != nil {
		p.offset = *o.Offset
	}
	return p
}

// read returns the latest line of each site, as whoever reads the lines has them:
// from their bytes.
func read(t *testing.T, lines []evidence.Line) map[place]*evidence.Observation {
	t.Helper()
	out := map[place]*evidence.Observation{}
	for _, l := range lines {
		b, err := evidence.Encode(l)
		if err != nil {
			t.Fatal(err)
		}
		again, err := evidence.Decode(string(b))
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if o, ok := again.(*evidence.Observation); ok {
			out[placeOf(o)] = o
		}
	}
	return out
}

func hits(of map[place]*evidence.Observation) (n evidence.Uint64) {
	for _, o := range of {
		if o.State == evidence.Hit {
			n += *o.Count
		}
	}
	return n
}

// A container that lets a file not be armed again, which it has executed, does not
// take its hits back: the later line about the same place would be believed.
func TestHitStaysWhenTheFileIsNotArmedAgain(t *testing.T) {
	for _, r := range []evidence.NotArmedReason{evidence.OverBudget, evidence.AttachFailed} {
		st := newStage(t, armed(1, "hello"))
		st.Publish(st.id, 0)
		st.now = 6000
		st.Add(st.id, []probe.Site{late(2, "a", "/tmp/a.so")}, nil, 5500, evidence.GapUnarmedMapping)
		st.hit(2, 3, 6500)
		refused := late(2, "a", "/tmp/a.so")
		refused.Armed, refused.ID, refused.Reason, refused.Detail = false, 0, r, "there are too many"
		st.now = 7000
		st.Add(st.id, []probe.Site{refused}, nil, 6800, evidence.GapFileChanged)
		if got := hits(read(t, st.out.lines)); got != 3 {
			t.Errorf("%s: %d hits are left of 3", r, got)
		}
		gaps := take[*evidence.Gap](st.out)
		if g := gaps[len(gaps)-1]; g.Reason != evidence.GapAttachFailed || g.From != clock.Time(6800) || !g.To.IsZero() || g.Path != "/tmp/a.so" {
			t.Errorf("%s: %+v", r, g)
		}
		st.now = 8000 // and it can be armed again
		again := late(3, "a", "/tmp/a.so")
		again.Offset = refused.Offset
		st.Add(st.id, []probe.Site{again}, nil, 7800, evidence.GapFileChanged)
		st.hit(3, 2, 8500)
		gaps = take[*evidence.Gap](st.out)
		if !slices.ContainsFunc(gaps, func(g *evidence.Gap) bool { return g.Reason == evidence.GapAttachFailed && g.To == clock.Time(8000) }) {
			t.Errorf("%s: %+v", r, gaps)
		}
		st.now = 9000
		st.End(st.id, 9000, true)
		if got := hits(read(t, st.out.lines)); got != 5 {
			t.Errorf("%s: %d hits are left of 5 at the end", r, got)
		}
	}
}

// A site that could not be armed at first is one site when it is, and what was
// before is a gap of it.
func TestArmedAfterAll(t *testing.T) {
	refused := late(2, "a", "/tmp/a.so")
	refused.Armed, refused.ID, refused.Reason, refused.Detail = false, 0, evidence.AttachFailed, "not now"
	st := newStage(t, refused)
	st.Publish(st.id, 0)
	st.now = 7000
	st.Add(st.id, []probe.Site{late(2, "a", "/tmp/a.so")}, nil, 6500, evidence.GapUnarmedMapping)
	got := read(t, st.out.lines)
	if len(got) != 1 {
		t.Fatalf("%d sites", len(got))
	}
	for _, o := range got {
		if o.State != evidence.Partial || len(o.Gaps) != 2 || o.Gaps[0].From != clock.Time(6500) || o.Gaps[1].From != clock.Time(armedAt) || o.Gaps[1].To != clock.Time(6500) {
			t.Errorf("%+v", o)
		}
	}
	if _, cov := st.final(t, 9000); cov.Probes[0].Sites != 1 {
		t.Errorf("%+v", cov.Probes)
	}
}

// Names that differ only in bytes that are not UTF-8 are those of different files.
func TestNamesThatAreNotText(t *testing.T) {
	site := func(id uint32, path string) probe.Site {
		s := late(id, "a", path)
		s.Offset, s.Probe = 0x1000, &policy.Probe{ID: "p", Type: "uprobe"}
		return s
	}
	names := []string{"/x/\xff.so", "/x/\xfe.so", "/x/\uFFFD.so", "/x/\xff\xfe.so", "/x/\uFFFD\uFFFD.so", "/x/a.so"}
	var sites []probe.Site
	for i, n := range names {
		sites = append(sites, site(uint32(i+1), n))
	}
	st := newStage(t, sites...)
	st.hit(1, 3, 6000)
	st.Publish(st.id, 0)
	st.now = 9000
	st.End(st.id, 9000, true)
	got := read(t, st.out.lines)
	if len(got) != len(names) || hits(got) != 3 {
		t.Errorf("%d sites of %d, %d hits of 3", len(got), len(names), hits(got))
	}
}
