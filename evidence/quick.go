package evidence

import (
	"reflect"
	"strconv"
	"strings"
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

// quickObservation reports whether it read all of s into o.
func quickObservation(s string, o *Observation) bool {
	q := &quick{reader: reader{s: s}}
	q.enter()
	required(q, `"kind":`, &o.Kind)
	required(q, `"state":`, &o.State)
	required(q, `"probeType":`, &o.ProbeType)
	required(q, `"runId":`, &o.RunID)
	required(q, `"containerId":`, &o.ContainerID)
	required(q, `"runtime":`, &o.Runtime)
	wanted(q, `"imageDigest":`, &o.ImageDigest)
	wanted(q, `"imageDigestReason":`, &o.ImageDigestReason)
	required(q, `"probeId":`, &o.ProbeID)
	required(q, `"requestedProbeType":`, &o.RequestedProbeType)
	wanted(q, `"symbol":`, &o.Symbol)
	q.pointer(`"offset":`, &o.Offset)
	wanted(q, `"path":`, &o.Path)
	wanted(q, `"fileDigest":`, &o.FileDigest)
	wanted(q, `"buildId":`, &o.BuildID)
	wanted(q, `"origin":`, &o.Origin)
	wanted(q, `"layerDiffId":`, &o.LayerDiffID)
	wanted(q, `"symbolKind":`, &o.SymbolKind)
	wanted(q, `"inline":`, &o.Inline)
	wanted(q, `"demangled":`, &o.Demangled)
	wanted(q, `"wanted":`, &o.Wanted)
	wanted(q, `"inlinedIn":`, &o.InlinedIn)
	q.rare(`"inlinedAt":`, inlinedAtShape, &o.InlinedAt)
	q.number64(`"inlinedAtMore":`, &o.InlinedAtMore)
	wanted(q, `"implements":`, &o.Implements)
	wanted(q, `"function":`, &o.Function)
	q.rare(`"duration":`, durationShape, &o.Duration)
	q.rare(`"stack":`, stackShape, &o.Stack)
	wanted(q, `"set":`, &o.Set)
	q.entry(`"entry":`, &o.Entry)
	q.number64(`"entries":`, &o.Entries)
	q.rare(`"systemCalls":`, systemCallsShape, &o.SystemCalls)
	if q.member(`"ioUring":`) {
		q.truth(&o.IOUring)
		q.bad = q.bad || !o.IOUring
	}
	q.rare(`"copies":`, copiesShape, &o.Copies)
	wanted(q, `"event":`, &o.Event)
	wanted(q, `"reason":`, &o.Reason)
	wanted(q, `"detail":`, &o.Detail)
	q.pointer(`"count":`, &o.Count)
	q.time(`"firstAt":`, &o.FirstAt, true)
	q.time(`"lastAt":`, &o.LastAt, true)
	q.process(`"process":`, &o.Process)
	q.rare(`"processes":`, processesShape, &o.Processes)
	q.confidence(&o.Confidence)
	q.rare(`"gaps":`, siteGapsShape, &o.Gaps)
	q.boolean(`"complete":`, &o.Complete)
	q.boolean(`"final":`, &o.Final)
	q.time(`"from":`, &o.From, false)
	q.time(`"to":`, &o.To, false)
	q.leave()
	return !q.bad && q.i == len(s)
}

var (
	copiesShape      = shapeOf(reflect.TypeFor[int]())
	inlinedAtShape   = shapeOf(reflect.TypeFor[[]Instance]())
	durationShape    = shapeOf(reflect.TypeFor[*Duration]())
	stackShape       = shapeOf(reflect.TypeFor[*Stack]())
	systemCallsShape = shapeOf(reflect.TypeFor[[]SystemCalls]())
	processesShape   = shapeOf(reflect.TypeFor[[]Process]())
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
	if q.member(key) {
		*into = T(q.string())
		q.bad = q.bad || *into == ""
	}
}

func (q *quick) pointer(key string, into **Uint64) {
	if q.member(key) {
		*into = new(Uint64)
		q.bad = (*into).UnmarshalText([]byte(q.string())) != nil || q.bad
	}
}

func (q *quick) number64(key string, into *Uint64) {
	if q.member(key) {
		q.bad = into.UnmarshalText([]byte(q.string())) != nil || *into == 0 || q.bad
	}
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
	if !q.member(key) {
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
	if !q.member(key) {
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
	if !q.member(key) {
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
func (q *quick) rare(key string, sh *shape, into any) {
	if q.member(key) {
		v := reflect.ValueOf(into).Elem()
		q.bad = q.value(sh, v) != nil || absent(v) || q.bad
	}
}
