package kernel

import (
	"slices"
	"strings"
	"testing"
)

// A set is seen by the best way of which every part is there.
func TestSetWays(t *testing.T) {
	all := func() []ProbeType {
		r := make([]ProbeType, trySysExit+1)
		for i := range r {
			r[i] = ProbeType{Supported: true, CountsMisses: true, Mechanism: RawTracepoint}
		}
		for i, name := range Types {
			r[i].ProbeType = name
		}
		r[tryFentry].Mechanism, r[tryFexit].Mechanism = Trampoline, Trampoline
		r[tryKprobe].Mechanism, r[tryKretprobe].Mechanism = PerfLink, PerfLink
		r[tryTracepoint].Mechanism = TracefsLink
		r[tryKprobe].CountsMisses, r[tryKprobe].MissesReason = false, "old"
		return r
	}
	for _, c := range []struct {
		set  string
		lack []int
		want Mechanism
		why  string // in the reason
	}{
		{"files", nil, Trampoline, ""},
		{"files", []int{tryFentry}, Trampoline, ""},
		{"files", []int{tryFexit}, PerfLink, "fexit: none"},
		{"files", []int{tryFexit, tryKretprobe}, RawTracepoint, "kretprobe: none"},
		{"files", []int{tryRaw}, TracefsLink, "rawTracepoint: none"}, // each better way needs it
		{"libraries", []int{tryRaw}, "", "rawTracepoint: none"},
		{"network", []int{tryFentry}, PerfLink, "fentry: none"},
		{"libraries", []int{tryFentry, tryKprobe}, RawTracepoint, "kprobe: none"},
		{"exec", []int{tryTracepoint}, RawTracepoint, ""},
		{"exec", []int{tryRaw}, TracefsLink, "rawTracepoint: none"},
		{"exec", []int{tryRaw, tryTracepoint}, "", "tracepoint: none"},
	} {
		r := all()
		for _, i := range c.lack {
			r[i] = ProbeType{ProbeType: r[i].ProbeType, Reason: "none", MissesReason: "not supported"}
		}
		s := set(c.set, r)
		if s.Supported != (c.want != "") || s.Mechanism != c.want || !strings.Contains(s.Reason, c.why) || c.why == "" && s.Reason != "" {
			t.Errorf("%s without %v: %+v, want %q because of %q", c.set, c.lack, s, c.want, c.why)
		}
		if s.CountsMisses != (s.Supported && c.want != PerfLink || c.set == "files" && c.want == PerfLink) {
			t.Errorf("%s without %v counts misses: %v", c.set, c.lack, s.CountsMisses)
		}
	}
	for _, name := range Sets {
		if len(setWays[name]) == 0 {
			t.Errorf("no way to see %s", name)
		}
	}
}

// What reads the kernel's structures needs their types.
func TestSetsNeedTypes(t *testing.T) {
	f := Facts{AttachCookie: Answer{Yes: true}, Types: []ProbeType{{ProbeType: "tracepoint", Supported: true, Mechanism: PerfLink, CountsMisses: true}}, Sets: []Set{{Set: "libraries", Supported: true, Mechanism: Trampoline, CountsMisses: true}, {Set: "exec", Supported: true, Mechanism: RawTracepoint, CountsMisses: true}, {Set: "files", Reason: "none", MissesReason: "not supported"}}}
	if with := f.WithBTF(BTFSource{Source: "/types"}); !slices.EqualFunc(with.Sets, f.Sets, func(a, b Set) bool { return a.Supported == b.Supported }) || with.BTF.Source != "/types" {
		t.Errorf("with types: %+v", with)
	}
	without := f.WithBTF(BTFSource{Source: noBTF})
	if s := without.Set("libraries"); s.Supported || s.Mechanism != "" || s.Reason == "" || s.CountsMisses {
		t.Errorf("without: %+v", s)
	}
	if s := without.Set("exec"); !s.Supported || s.Mechanism != PerfLink || s.Reason == "" || !s.CountsMisses || len(s.Hooks) == 0 {
		t.Errorf("without, by the records of tracepoints: %+v", s)
	}
	f.AttachCookie = Answer{}
	if s := f.WithBTF(BTFSource{Source: noBTF}).Set("exec"); s.Supported {
		t.Errorf("before 5.15: %+v", s)
	}
	if s := without.Set("files"); s.Reason != "none" {
		t.Errorf("what was not supported has another reason now: %+v", s)
	}
	if !f.Set("exec").Supported {
		t.Error("the facts that were asked were changed")
	}
}
