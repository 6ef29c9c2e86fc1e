package policy

import (
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// What the keys of a probe mean depends on its type. kinds says which a type
// takes, besides id and type: what is not in it is an error and not ignored,
// because its author expects something of it.
var (
	targetKeys   = []string{"file", "library", "buildId", "program"}
	functionKeys = []string{"symbols", "symbolGlobs", "symbolRegexps"}
	kernelKeys   = []string{"functions", "syscalls"}
	optionKeys   = []string{"stack", "stopAfter", "maxRate", "rearmAfter"}

	kinds = map[string]kind{
		Uprobe:        {target: true, where: append(slices.Clone(functionKeys), "offsets"), duration: true},
		Uretprobe:     {target: true, where: functionKeys},
		USDT:          {target: true, where: []string{"markers"}},
		Kprobe:        {where: kernelKeys, duration: true},
		Kretprobe:     {where: kernelKeys},
		Fentry:        {where: kernelKeys, duration: true},
		Fexit:         {where: kernelKeys},
		Tracepoint:    {where: []string{"event"}},
		RawTracepoint: {where: []string{"event"}},
	}
)

// kind is what one type of probe takes.
type kind struct {
	target   bool     // one of targetKeys
	where    []string // at least one of these
	duration bool
}

func (k kind) takes(key string) bool {
	return key == "id" || key == "type" || key == "requires" || slices.Contains(k.where, key) || slices.Contains(optionKeys, key) ||
		k.target && slices.Contains(targetKeys, key) || k.duration && key == "duration"
}

// probe reads one probe and returns where its id is.
func (w *walk) probe(n *yaml.Node) (p Probe, id position) {
	given := map[string]*yaml.Node{}
	var order []string // as written
	note := func(key string, f field) field {
		return func(v *yaml.Node) { given[key] = v; order = append(order, key); f(v) }
	}
	keys := map[string]field{
		"id":            func(v *yaml.Node) { p.ID = w.name(v, "id") },
		"type":          func(v *yaml.Node) { p.Type = w.probeType(v) },
		"set":           func(v *yaml.Node) { p.Set = w.set(v) },
		"file":          func(v *yaml.Node) { p.File = w.file(v) },
		"library":       func(v *yaml.Node) { p.Library = w.library(v) },
		"buildId":       func(v *yaml.Node) { p.BuildID = w.buildID(v) },
		"program":       func(v *yaml.Node) { p.Program = w.program(v) },
		"symbols":       func(v *yaml.Node) { p.Symbols = list(w, v, "symbols", w.symbol) },
		"symbolGlobs":   func(v *yaml.Node) { p.SymbolGlobs = few(w, v, "symbolGlobs", maxGlobs, w.symbolGlob) },
		"symbolRegexps": func(v *yaml.Node) { p.SymbolRegexps = few(w, v, "symbolRegexps", maxRegexps, w.symbolRegexp) },
		"offsets":       func(v *yaml.Node) { p.Offsets = list(w, v, "offsets", w.offset) },
		"markers":       func(v *yaml.Node) { p.Markers = few(w, v, "markers", maxGlobs, w.marker) },
		"functions":     func(v *yaml.Node) { p.Functions = few(w, v, "functions", maxKernelNames, w.function) },
		"syscalls":      func(v *yaml.Node) { p.Syscalls = few(w, v, "syscalls", maxKernelNames, w.syscall) },
		"event":         func(v *yaml.Node) { p.Event, _ = w.text(v, "event", maxKernel) }, // its form depends on the type
		"duration":      func(v *yaml.Node) { p.Duration = w.boolean(v, "duration") },
		"stack":         func(v *yaml.Node) { p.Stack = w.boolean(v, "stack") },
		"stopAfter":     func(v *yaml.Node) { p.StopAfter = w.count(v, "stopAfter", MaxStopAfter) },
		"maxRate":       func(v *yaml.Node) { p.MaxRate = w.count(v, "maxRate", MaxMaxRate) },
		"requires":      func(v *yaml.Node) { p.Requires = w.oneOf(v, "requires", Requirements) },
		"quota":         func(v *yaml.Node) { p.Quota = w.count(v, "quota", MaxQuota) },
		"rearmAfter":    func(v *yaml.Node) { p.RearmAfter = w.duration(v, "rearmAfter", MinRearmAfter, MaxRearmAfter) },
	}
	for key, f := range keys {
		keys[key] = note(key, f)
	}
	if !w.fields(n, "probe", keys) {
		return Probe{}, at(n)
	}
	id = at(n)
	if v := given["id"]; v != nil {
		id = at(v)
	} else {
		w.add(at(n), "probe: no id")
	}
	switch {
	case given["type"] != nil && given["set"] != nil:
		w.add(at(given["set"]), "set: this probe has a type, and one is either: make it two probes")
	case given["set"] != nil:
		for _, key := range order {
			switch {
			case key == "quota" && p.Set == SetSyscalls:
				w.add(at(given[key]), "quota: the set syscalls has none: it cannot be full")
			case key != "id" && key != "set" && key != "quota" && key != "requires":
				w.add(at(given[key]), "%s: a set has none: it is about all that the container does", key)
			}
		}
	case given["type"] != nil && p.Type != "":
		w.ofType(n, &p, order, given)
	case given["type"] == nil:
		w.add(at(n), "probe: neither type nor set: want one of them")
	}
	return p, id
}

// ofType checks what depends on the type.
func (w *walk) ofType(n *yaml.Node, p *Probe, order []string, given map[string]*yaml.Node) {
	k := kinds[p.Type]
	target := ""
	for _, key := range order {
		switch {
		case !k.takes(key):
			w.add(at(given[key]), "%s: a %s has none%s", key, p.Type, instead(key, p.Type, k))
		case !slices.Contains(targetKeys, key):
		case target != "":
			w.add(at(given[key]), "%s: there is a target already, %s at line %d: make it two probes", key, target, given[target].Line)
		default:
			target = key
		}
	}
	if k.target && target == "" {
		w.add(at(n), "%s: no target: want one of %s", p.Type, or(targetKeys))
	}
	if !slices.ContainsFunc(k.where, func(key string) bool { return given[key] != nil }) {
		w.add(at(n), "%s: nothing to probe: want %s", p.Type, or(k.where))
	}
	if p.Event != "" && given["event"] != nil {
		p.Event = w.event(given["event"], p.Type, p.Event)
	}
	if v := given["duration"]; p.Duration && k.duration && given["offsets"] != nil {
		// A return probe takes the word on top of the stack for a return
		// address: anywhere but at a function's first instruction it is none.
		w.add(at(v), "duration: only functions return: want %s instead of offsets", or(functionKeys))
	}
	if v := given["rearmAfter"]; v != nil && given["stopAfter"] == nil && given["maxRate"] == nil {
		w.add(at(v), "rearmAfter: nothing makes this probe stand down: want stopAfter or maxRate beside it")
	}
}

// instead says what the author of a key may have meant that the type does not
// have.
func instead(key, typ string, k kind) string {
	switch {
	case key == "quota":
		return ": only sets have entries; stopAfter bounds hits"
	case key == "offsets" && typ == Uretprobe:
		return ": only functions return: want " + or(functionKeys)
	case key == "duration" && typ != Tracepoint && typ != RawTracepoint && typ != USDT:
		return ": a uprobe, kprobe or fentry with duration pairs the entry with the return"
	case key == "markers" && k.target:
		return ": markers are of type usdt"
	case slices.Contains(kernelKeys, key) && k.target:
		return ": it names functions of the kernel; those of a file are symbols"
	case slices.Contains(functionKeys, key) && slices.Contains(k.where, "functions"):
		return ": functions of the kernel are named by functions or syscalls"
	case slices.Contains(targetKeys, key):
		return ": it is in the kernel, not in a file"
	}
	return ""
}

func (w *walk) probeType(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode && slices.Contains(Sets, n.Value) {
		w.add(at(n), "type: %s is a set: write set: %s", n.Value, n.Value)
		return ""
	}
	return w.oneOf(n, "type", Types)
}

func (w *walk) set(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode && slices.Contains(Types, n.Value) {
		w.add(at(n), "set: %s is a type: write type: %s", n.Value, n.Value)
		return ""
	}
	return w.oneOf(n, "set", Sets)
}

func (w *walk) oneOf(n *yaml.Node, name string, values []string) string {
	s, ok := w.text(n, name, maxText)
	if ok && !slices.Contains(values, s) {
		w.add(at(n), "%s: unknown value %q: want %s", name, clip(s), or(values))
		return ""
	}
	return s
}

// or joins what can be chosen from.
func or(values []string) string {
	if len(values) < 2 {
		return strings.Join(values, "")
	}
	last := len(values) - 1
	return strings.Join(values[:last], ", ") + " or " + values[last]
}

// Bounds on the options. The largest numbers are past what can happen, so that
// what is beyond them is a slip of the hand.
const (
	MaxStopAfter  = 1_000_000_000_000
	MaxMaxRate    = 100_000_000 // per second
	MinRearmAfter = time.Second
	MaxRearmAfter = 7 * 24 * time.Hour
	MaxQuota      = 131_072 // what the kernel has for all containers before Linux 6.1
)
