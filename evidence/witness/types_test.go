package witness

import (
	"testing"

	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
)

// A hit of each probe type that a kernel can serve has a line that is the format's, and
// names that type.
func TestEachProbeType(t *testing.T) {
	var sites []probe.Site
	want := map[evidence.ProbeType]bool{}
	for i, typ := range evidence.ProbeTypes {
		id := uint32(i + 1)
		var s probe.Site
		switch typ {
		case evidence.UnknownProbe:
			continue // no kernel serves it
		case evidence.Uprobe, evidence.Uretprobe, evidence.USDT:
			s = armed(id, "f")
			if s.Type, s.Requested = typ, typ; typ == evidence.USDT {
				s.Symbol, s.Kind, s.Inline, s.Marker, s.Event = "", "", "", "p:n", "p:n"
			}
		case evidence.Tracepoint, evidence.RawTracepoint:
			s = probe.Site{Type: typ, Armed: true, ID: id, Planned: &probe.Planned{Probe: &policy.Probe{ID: "e", Type: string(typ)}, Requested: typ, Event: "task:task_rename"}}
		default:
			s = kernelSite(id, "do_it", typ, typ)
		}
		sites, want[typ] = append(sites, s), true
	}
	st, _ := newTyped(t, sites...)
	st.Publish(st.id, 0)
	for i := range sites {
		st.hit(sites[i].ID, 1, 6000)
	}
	st.out.lines = nil
	st.End(st.id, 9000, true)
	for _, o := range take[*evidence.Observation](st.out) {
		if o.State == evidence.Hit {
			delete(want, o.ProbeType)
		}
	}
	if len(want) > 0 {
		t.Errorf("no line of a hit of %v", want)
	}
}
