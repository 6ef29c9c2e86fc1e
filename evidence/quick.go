package evidence

import (
	"reflect"
	"strconv"
	"strings"
	"time"
)

// quick reads an observation, which nearly every line is, without reflection:
// the members of Observation in order, by hand. It takes exactly what
// decodeCanonical takes. Where it gives up, decodeCanonical says why, so it
// keeps no messages. TestDecodeAgreesWithReference and FuzzDecode would see a
// member that is forgotten here: its lines would still be read, only slowly, and
// TestQuickTakesVectors fails.
type quick struct {
	reader
	bad  bool // gave up
	some bool // a member of the present object was read: a comma comes first
}

// members read the members of an observation, in order. Each sets its member, or
// clears it where it is absent.
var members = [...]func(*quick, *Observation){
	func(q *quick, o *Observation) { q.enter(); required(q, `"kind":`, &o.Kind) },
	func(q *quick, o *Observation) { required(q, `"state":`, &o.State) },
	func(q *quick, o *Observation) { required(q, `"probeType":`, &o.ProbeType) },
	func(q *quick, o *Observation) { required(q, `"runId":`, &o.RunID) },
	func(q *quick, o *Observation) { required(q, `"containerId":`, &o.ContainerID) },
	func(q *quick, o *Observation) { required(q, `"runtime":`, &o.Runtime) },
	func(q *quick, o *Observation) { wanted(q, `"imageDigest":`, &o.ImageDigest) },
	func(q *quick, o *Observation) { wanted(q, `"imageDigestReason":`, &o.ImageDigestReason) },
	func(q *quick, o *Observation) { required(q, `"probeId":`, &o.ProbeID) },
	func(q *quick, o *Observation) { required(q, `"requestedProbeType":`, &o.RequestedProbeType) },
	func(q *quick, o *Observation) { wanted(q, `"symbol":`, &o.Symbol) },
	func(q *quick, o *Observation) { q.pointer(`"offset":`, &o.Offset) },
	func(q *quick, o *Observation) { wanted(q, `"path":`, &o.Path) },
	func(q *quick, o *Observation) { wanted(q, `"fileDigest":`, &o.FileDigest) },
	func(q *quick, o *Observation) { wanted(q, `"buildId":`, &o.BuildID) },
	func(q *quick, o *Observation) { wanted(q, `"origin":`, &o.Origin) },
	func(q *quick, o *Observation) { wanted(q, `"layerDiffId":`, &o.LayerDiffID) },
	func(q *quick, o *Observation) { wanted(q, `"symbolKind":`, &o.SymbolKind) },
	func(q *quick, o *Observation) { wanted(q, `"inline":`, &o.Inline) },
	func(q *quick, o *Observation) { wanted(q, `"demangled":`, &o.Demangled) },
	func(q *quick, o *Observation) { wanted(q, `"wanted":`, &o.Wanted) },
	func(q *quick, o *Observation) { wanted(q, `"inlinedIn":`, &o.InlinedIn) },
	func(q *quick, o *Observation) { rare(q, `"inlinedAt":`, inlinedAtShape, &o.InlinedAt) },
	func(q *quick, o *Observation) { q.number64(`"inlinedAtMore":`, &o.InlinedAtMore) },
	func(q *quick, o *Observation) { wanted(q, `"implements":`, &o.Implements) },
	func(q *quick, o *Observation) { wanted(q, `"function":`, &o.Function) },
	func(q *quick, o *Observation) { rare(q, `"duration":`, durationShape, &o.Duration) },
	func(q *quick, o *Observation) { rare(q, `"stack":`, stackShape, &o.Stack) },
	func(q *quick, o *Observation) { wanted(q, `"set":`, &o.Set) },
	func(q *quick, o *Observation) { q.entry(`"entry":`, &o.Entry) },
	func(q *quick, o *Observation) { q.number64(`"entries":`, &o.Entries) },
	func(q *quick, o *Observation) { rare(q, `"systemCalls":`, systemCallsShape, &o.SystemCalls) },
	func(q *quick, o *Observation) {
		if o.IOUring = false; q.member(`"ioUring":`) {
			q.truth(&o.IOUring)
			q.bad = q.bad || !o.IOUring
		}
	},
	func(q *quick, o *Observation) { rare(q, `"copies":`, copiesShape, &o.Copies) },
	func(q *quick, o *Observation) { wanted(q, `"event":`, &o.Event) },
	func(q *quick, o *Observation) { wanted(q, `"reason":`, &o.Reason) },
	func(q *quick, o *Observation) { wanted(q, `"detail":`, &o.Detail) },
	func(q *quick, o *Observation) { q.pointer(`"count":`, &o.Count) },
	func(q *quick, o *Observation) { q.time(`"firstAt":`, &o.FirstAt, true) },
	func(q *quick, o *Observation) { q.time(`"lastAt":`, &o.LastAt, true) },
	func(q *quick, o *Observation) { q.process(`"process":`, &o.Process) },
	func(q *quick, o *Observation) { rare(q, `"processes":`, processesShape, &o.Processes) },
	func(q *quick, o *Observation) { rare(q, `"redacted":`, redactedShape, &o.Redacted) },
	func(q *quick, o *Observation) { q.confidence(&o.Confidence) },
	func(q *quick, o *Observation) { rare(q, `"gaps":`, siteGapsShape, &o.Gaps) },
	func(q *quick, o *Observation) { q.boolean(`"complete":`, &o.Complete) },
	func(q *quick, o *Observation) { q.boolean(`"final":`, &o.Final) },
	func(q *quick, o *Observation) { q.time(`"from":`, &o.From, false) },
	func(q *quick, o *Observation) { q.time(`"to":`, &o.To, false) },
}

// quickObservation reports whether it read all of s into o.
func quickObservation(s string, o *Observation) bool {
	q := &quick{reader: reader{s: s}}
	for _, read := range members {
		read(q, o)
	}
	return q.end()
}

// end reports whether an object was read, and nothing follows it.
func (q *quick) end() bool {
	q.leave()
	return !q.bad && q.i == len(q.s)
}

var (
	copiesShape      = shapeOf(reflect.TypeFor[int]())
	inlinedAtShape   = shapeOf(reflect.TypeFor[[]Instance]())
	durationShape    = shapeOf(reflect.TypeFor[*Duration]())
	stackShape       = shapeOf(reflect.TypeFor[*Stack]())
	systemCallsShape = shapeOf(reflect.TypeFor[[]SystemCalls]())
	processesShape   = shapeOf(reflect.TypeFor[[]Process]())
	redactedShape    = shapeOf(reflect.TypeFor[[]Redaction]())
	siteGapsShape    = shapeOf(reflect.TypeFor[[]SiteGap]())
)

func (q *quick) enter() {
	q.bad = q.bad || !q.take('{')
	q.some = false
}

func (q *quick) leave() {
	q.bad = q.bad || !q.take('}')
	q.some = true // of the object around it
}

// member goes past a member's name, if it comes next.
func (q *quick) member(key string) bool {
	at := q.i
	if q.bad {
		return false
	}
	if q.some {
		if !q.at(',') {
			return false
		}
		at++
	}
	if !strings.HasPrefix(q.s[at:], key) {
		return false
	}
	q.i, q.some = at+len(key), true
	return true
}

func (q *quick) string() string {
	s, err := q.text()
	q.bad = q.bad || err != nil
	return s
}

func required[T ~string](q *quick, key string, into *T) {
	if !q.member(key) {
		q.bad = true
		return
	}
	*into = T(q.string())
}

func wanted[T ~string](q *quick, key string, into *T) {
	if *into = ""; q.member(key) {
		*into = T(q.string())
		q.bad = q.bad || *into == ""
	}
}

func (q *quick) pointer(key string, into **Uint64) {
	if *into = nil; q.member(key) {
		*into = new(Uint64)
		q.decimal(*into)
	}
}

func (q *quick) number64(key string, into *Uint64) {
	if *into = 0; q.member(key) {
		q.decimal(into)
		q.bad = q.bad || *into == 0
	}
}

// decimal reads what Uint64.UnmarshalText takes. What has more than 19 digits, and
// may not fit, is left to decodeCanonical.
func (q *quick) decimal(into *Uint64) {
	s := q.string()
	q.bad = q.bad || s == "" || len(s) > 19 || s[0] == '0' && len(s) > 1
	var n Uint64
	for i := 0; i < len(s) && !q.bad; i++ {
		d := s[i] - '0'
		q.bad = d > 9
		n = n*10 + Uint64(d)
	}
	*into = n
}

// small reads a whole number that is not negative.
func (q *quick) small() (n int) {
	lit := q.number()
	q.bad = q.bad || lit == "" || len(lit) > 18 || lit[0] == '0' && len(lit) > 1
	for i := 0; i < len(lit) && !q.bad; i++ {
		q.bad = lit[i] < '0' || lit[i] > '9'
		n = n*10 + int(lit[i]-'0')
	}
	return n
}

func (q *quick) process(key string, into **Process) {
	if *into = nil; !q.member(key) {
		return
	}
	p := new(Process)
	*into = p
	q.enter()
	if !q.member(`"pid":`) {
		q.bad = true
		return
	}
	p.Pid = q.small()
	wanted(q, `"comm":`, &p.Comm)
	wanted(q, `"path":`, &p.Path)
	wanted(q, `"session":`, &p.Session)
	q.leave()
}

func (q *quick) entry(key string, into **Entry) {
	if *into = nil; !q.member(key) {
		return
	}
	e := new(Entry)
	*into = e
	q.enter()
	q.process(`"parent":`, &e.Parent)
	wanted(q, `"argument":`, &e.Argument)
	wanted(q, `"device":`, &e.Device)
	q.number64(`"inode":`, &e.Inode)
	wanted(q, `"mapped":`, &e.Mapped)
	wanted(q, `"operation":`, &e.Operation)
	wanted(q, `"protocol":`, &e.Protocol)
	wanted(q, `"family":`, &e.Family)
	wanted(q, `"address":`, &e.Address)
	if q.member(`"port":`) {
		e.Port = q.small()
		q.bad = q.bad || e.Port == 0
	}
	wanted(q, `"access":`, &e.Access)
	q.leave()
}

func (q *quick) time(key string, into *Time, omittable bool) {
	if into.t = (time.Time{}); !q.member(key) {
		q.bad = q.bad || !omittable
		return
	}
	t, ok := parseTime(q.string())
	into.t = t
	q.bad = q.bad || !ok || omittable && t.IsZero()
}

func (q *quick) boolean(key string, into *bool) {
	if !q.member(key) {
		q.bad = true
		return
	}
	q.truth(into)
}

func (q *quick) truth(into *bool) {
	switch {
	case strings.HasPrefix(q.s[q.i:], "true"):
		*into = true
		q.i += len("true")
	case strings.HasPrefix(q.s[q.i:], "false"):
		*into = false
		q.i += len("false")
	default:
		q.bad = true
	}
}

func (q *quick) confidence(c *Confidence) {
	if !q.member(`"confidence":`) {
		q.bad = true
		return
	}
	q.enter()
	if !q.member(`"value":`) {
		q.bad = true
		return
	}
	lit := q.number()
	f, err := strconv.ParseFloat(lit, 64)
	c.Value = f
	var buf [32]byte
	// Within these bounds encoding/json has no exponent; others are left to decodeCanonical.
	plain := lit == "0" || f >= 1e-6 && f < 1e21
	q.bad = q.bad || err != nil || !plain || string(strconv.AppendFloat(buf[:0], f, 'f', -1, 64)) != lit
	required(q, `"version":`, &c.Version)
	if !q.member(`"inputs":`) {
		q.bad = true
		return
	}
	q.enter()
	required(q, `"probeType":`, &c.Inputs.ProbeType)
	required(q, `"attribution":`, &c.Inputs.Attribution)
	required(q, `"symbol":`, &c.Inputs.Symbol)
	required(q, `"losses":`, &c.Inputs.Losses)
	q.leave()
	q.leave()
}

// rare leaves a member that few lines have to the reader with reflection.
func rare[T any](q *quick, key string, sh *shape, into *T) {
	var absent T
	if *into = absent; q.member(key) {
		v := reflect.ValueOf(into).Elem()
		q.bad = q.value(sh, v) != nil || isAbsent(v) || q.bad
	}
}
