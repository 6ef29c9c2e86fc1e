package evidence

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"unicode/utf8"
)

// This file writes canonical JSON: what encoding/json writes for the structs of
// a line without escaping HTML, with U+FFFD as itself, in a quarter of the time.
// An observation, which nearly every line is, is written by hand; all else by the
// shapes that the reader uses too. TestEncodersAgree and FuzzEncode hold both
// against encoding/json.

// Append appends the canonical bytes of a line to b, without a newline.
func Append(b []byte, l Line) ([]byte, error) {
	w := writer{b: b}
	switch v := l.(type) {
	case *Coverage:
		v.Kind = KindCoverage
		if v.Probes == nil {
			v.Probes = []ProbeFold{} // a list in every language, never null
		}
		w.value(coverageShape, reflect.ValueOf(v).Elem())
	case *Observation:
		v.Kind = KindObservation
		w.observation(v)
	case *Gap:
		v.Kind = KindGap
		w.value(gapShape, reflect.ValueOf(v).Elem())
	}
	if err := w.check(l, len(w.b)-len(b)); err != nil {
		return b, err
	}
	return w.b, nil
}

// Encode returns the canonical bytes of a line, without a newline: compact
// JSON, members in the order of the struct, no HTML escaping.
func Encode(l Line) ([]byte, error) {
	return Append(make([]byte, 0, 1<<10), l)
}

// Encoder encodes lines one after the other, and checks them. The lines of the
// entries of a set, of which there may be thousands, begin and end alike: it
// remembers how the last one did. The zero value is ready to use.
type Encoder struct {
	w          writer
	head, tail []byte      // of the last line of an entry; none if empty
	last       Observation // which it was: of what is in head and tail
}

// Append appends a line as [Append] does, if it obeys the rules of the format as
// [Validate] has them.
func (e *Encoder) Append(b []byte, l Line) ([]byte, error) {
	o, ok := l.(*Observation)
	if !ok || o.Entry == nil {
		out, err := Append(b, l)
		if err == nil {
			err = valid(out[len(b):], Validate(l))
		}
		if err != nil {
			return b, err
		}
		return out, nil
	}
	o.Kind = KindObservation
	w := &e.w
	w.b, w.err = b, nil
	alike := len(e.head) > 0 && o.alike(&e.last)
	if alike {
		w.b = append(w.b, e.head...)
	} else {
		w.head(o)
	}
	from := len(w.b)
	w.middle(o)
	to := len(w.b)
	if alike {
		w.b = append(w.b, e.tail...)
	} else {
		w.tail(o)
	}
	out := w.b
	w.b = nil
	err := w.check(o, len(out)-len(b))
	switch {
	case err != nil:
	case alike:
		err = valid(out[len(b):], o.validateMiddle())
	default:
		err = valid(out[len(b):], o.validate())
	}
	if err != nil {
		return b, err
	}
	if !alike {
		e.head, e.tail, e.last = append(e.head[:0], out[len(b):from]...), append(e.tail[:0], out[to:]...), *o
	}
	return out, nil
}

// Forget lets go of the last line.
func (e *Encoder) Forget() { e.head, e.last = e.head[:0], Observation{} }

func valid(line []byte, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", line[:min(len(line), 200)], err)
	}
	return nil
}

// alike reports whether the line begins and ends as the other one does.
func (o *Observation) alike(p *Observation) bool {
	return o.State == p.State && o.ProbeType == p.ProbeType && o.RunID == p.RunID && o.ContainerID == p.ContainerID && o.Runtime == p.Runtime &&
		o.ImageDigest == p.ImageDigest && o.ImageDigestReason == p.ImageDigestReason && o.ProbeID == p.ProbeID && o.RequestedProbeType == p.RequestedProbeType &&
		o.Confidence == p.Confidence && len(o.Gaps) == len(p.Gaps) && (len(o.Gaps) == 0 || &o.Gaps[0] == &p.Gaps[0]) &&
		o.Complete == p.Complete && o.Final == p.Final && o.From == p.From && o.To == p.To
}

// writer appends to b. It keeps the first error.
type writer struct {
	b   []byte
	err error

	second int64    // the last time's, in Unix time
	until  [21]byte // what it begins with, to the point
}

// check returns why a line of so many bytes cannot be written.
func (w *writer) check(l Line, n int) error {
	if w.err != nil {
		return fmt.Errorf("encode %s line: %w", l.kind(), w.err)
	}
	if n >= MaxLineBytes {
		return fmt.Errorf("encode %s line: %d bytes, at most %d are allowed", l.kind(), n, MaxLineBytes-1)
	}
	return nil
}

func (w *writer) observation(o *Observation) {
	w.head(o)
	w.middle(o)
	w.tail(o)
}

// head writes how the lines of all entries of a set of a run begin.
func (w *writer) head(o *Observation) {
	w.b = append(w.b, `{"kind":"`+KindObservation+`"`...)
	w.text(`,"state":`, string(o.State))
	w.text(`,"probeType":`, string(o.ProbeType))
	w.text(`,"runId":`, o.RunID)
	w.text(`,"containerId":`, o.ContainerID)
	w.text(`,"runtime":`, o.Runtime)
	w.optional(`,"imageDigest":`, o.ImageDigest)
	w.optional(`,"imageDigestReason":`, o.ImageDigestReason)
	w.text(`,"probeId":`, o.ProbeID)
	w.text(`,"requestedProbeType":`, string(o.RequestedProbeType))
}

func (w *writer) middle(o *Observation) {
	w.optional(`,"symbol":`, o.Symbol)
	w.pointer(`,"offset":`, o.Offset)
	w.optional(`,"path":`, o.Path)
	w.optional(`,"fileDigest":`, o.FileDigest)
	w.optional(`,"buildId":`, o.BuildID)
	w.optional(`,"origin":`, o.Origin)
	w.optional(`,"layerDiffId":`, o.LayerDiffID)
	w.optional(`,"symbolKind":`, o.SymbolKind)
	w.optional(`,"inline":`, o.Inline)
	w.optional(`,"demangled":`, o.Demangled)
	w.optional(`,"wanted":`, o.Wanted)
	w.optional(`,"inlinedIn":`, o.InlinedIn)
	if len(o.InlinedAt) > 0 {
		w.rare(`,"inlinedAt":`, inlinedAtShape, &o.InlinedAt)
	}
	w.number64(`,"inlinedAtMore":`, o.InlinedAtMore)
	w.optional(`,"implements":`, o.Implements)
	w.optional(`,"function":`, o.Function)
	if o.Duration != nil {
		w.rare(`,"duration":`, durationShape, &o.Duration)
	}
	if o.Stack != nil {
		w.rare(`,"stack":`, stackShape, &o.Stack)
	}
	w.optional(`,"set":`, o.Set)
	w.entry(o.Entry)
	w.number64(`,"entries":`, o.Entries)
	if len(o.SystemCalls) > 0 {
		w.rare(`,"systemCalls":`, systemCallsShape, &o.SystemCalls)
	}
	if o.IOUring {
		w.b = append(w.b, `,"ioUring":true`...)
	}
	if o.Copies != 0 {
		w.b = strconv.AppendInt(append(w.b, `,"copies":`...), int64(o.Copies), 10)
	}
	w.optional(`,"event":`, o.Event)
	w.optional(`,"reason":`, string(o.Reason))
	w.optional(`,"detail":`, o.Detail)
	w.pointer(`,"count":`, o.Count)
	if !o.FirstAt.IsZero() {
		w.time(`,"firstAt":`, o.FirstAt)
	}
	if !o.LastAt.IsZero() {
		w.time(`,"lastAt":`, o.LastAt)
	}
	w.process(`,"process":`, o.Process)
	if len(o.Processes) > 0 {
		w.rare(`,"processes":`, processesShape, &o.Processes)
	}
	if len(o.Redacted) > 0 {
		w.rare(`,"redacted":`, redactedShape, &o.Redacted)
	}
}

// tail writes how they end.
func (w *writer) tail(o *Observation) {
	w.b = append(w.b, `,"confidence":{"value":`...)
	w.float(o.Confidence.Value)
	w.text(`,"version":`, o.Confidence.Version)
	w.text(`,"inputs":{"probeType":`, o.Confidence.Inputs.ProbeType)
	w.text(`,"attribution":`, o.Confidence.Inputs.Attribution)
	w.text(`,"symbol":`, o.Confidence.Inputs.Symbol)
	w.text(`,"losses":`, o.Confidence.Inputs.Losses)
	w.b = append(w.b, "}}"...)
	if len(o.Gaps) > 0 {
		w.rare(`,"gaps":`, siteGapsShape, &o.Gaps)
	}
	w.boolean(`,"complete":`, o.Complete)
	w.boolean(`,"final":`, o.Final)
	w.time(`,"from":`, o.From)
	w.time(`,"to":`, o.To)
	w.b = append(w.b, '}')
}

func (w *writer) entry(e *Entry) {
	if e == nil {
		return
	}
	w.b = append(w.b, `,"entry":`...)
	at := len(w.b)
	w.process(`,"parent":`, e.Parent)
	w.optional(`,"argument":`, e.Argument)
	w.optional(`,"device":`, e.Device)
	w.number64(`,"inode":`, e.Inode)
	w.optional(`,"mapped":`, e.Mapped)
	w.optional(`,"operation":`, e.Operation)
	w.optional(`,"protocol":`, e.Protocol)
	w.optional(`,"family":`, e.Family)
	w.optional(`,"address":`, e.Address)
	if e.Port != 0 {
		w.b = strconv.AppendInt(append(w.b, `,"port":`...), int64(e.Port), 10)
	}
	w.optional(`,"access":`, e.Access)
	if len(w.b) == at {
		w.b = append(w.b, '{')
	} else {
		w.b[at] = '{' // instead of the first comma
	}
	w.b = append(w.b, '}')
}

func (w *writer) process(key string, p *Process) {
	if p == nil {
		return
	}
	w.b = append(append(w.b, key...), `{"pid":`...)
	w.b = strconv.AppendInt(w.b, int64(p.Pid), 10)
	w.optional(`,"comm":`, p.Comm)
	w.optional(`,"path":`, p.Path)
	w.optional(`,"session":`, p.Session)
	w.b = append(w.b, '}')
}

func (w *writer) text(key, s string) {
	w.b = appendText(append(w.b, key...), s)
}

func (w *writer) optional(key, s string) {
	if s != "" {
		w.text(key, s)
	}
}

func (w *writer) quoted64(u Uint64) {
	w.b = append(strconv.AppendUint(append(w.b, '"'), uint64(u), 10), '"')
}

func (w *writer) pointer(key string, u *Uint64) {
	if u != nil {
		w.b = append(w.b, key...)
		w.quoted64(*u)
	}
}

func (w *writer) number64(key string, u Uint64) {
	if u != 0 {
		w.pointer(key, &u)
	}
}

func (w *writer) boolean(key string, v bool) {
	w.b = strconv.AppendBool(append(w.b, key...), v)
}

func (w *writer) time(key string, t Time) {
	w.b = append(w.b, key...)
	second, at := t.t.Unix(), len(w.b)
	if w.until[0] == 0 || second != w.second { // most are of the same second as the one before
		var err error
		if w.b, err = appendTime(w.b, t); err != nil {
			if w.err == nil {
				w.err = err
			}
			return
		}
		w.second = second
		copy(w.until[:], w.b[at:])
		return
	}
	w.b = append(append(w.b, w.until[:]...), `000000000Z"`...)
	for i, v := len(w.b)-3, t.t.Nanosecond(); v > 0; i, v = i-1, v/10 {
		w.b[i] = byte('0' + v%10)
	}
}

func (w *writer) float(f float64) {
	if abs := math.Abs(f); abs == 0 && !math.Signbit(f) || abs >= 1e-6 && abs < 1e21 {
		w.b = strconv.AppendFloat(w.b, f, 'f', -1, 64)
		return
	}
	b, err := json.Marshal(f)
	if err != nil && w.err == nil {
		w.err = err
	}
	w.b = append(w.b, b...)
}

func (w *writer) rare(key string, sh *shape, v any) {
	w.b = append(w.b, key...)
	w.value(sh, reflect.ValueOf(v).Elem())
}

// value appends a value of the given shape.
func (w *writer) value(sh *shape, v reflect.Value) {
	switch sh.kind {
	case isString:
		w.b = appendText(w.b, v.String())
	case isBool:
		w.b = strconv.AppendBool(w.b, v.Bool())
	case isInt:
		w.b = strconv.AppendInt(w.b, v.Int(), 10)
	case isFloat:
		w.float(v.Float())
	case isUint64:
		w.quoted64(Uint64(v.Uint()))
	case isLoss:
		l := v.Addr().Interface().(*Loss)
		if l.Unknowable {
			w.b = append(w.b, `"unknowable"`...)
		} else {
			w.quoted64(Uint64(l.N))
		}
	case isTime:
		w.time("", *v.Addr().Interface().(*Time))
	case isPointer:
		if v.IsNil() {
			w.b = append(w.b, "null"...)
		} else {
			w.value(sh.elem, v.Elem())
		}
	case isSlice: // one that has to be there is [], never null
		w.b = append(w.b, '[')
		for i := range v.Len() {
			if i > 0 {
				w.b = append(w.b, ',')
			}
			w.value(sh.elem, v.Index(i))
		}
		w.b = append(w.b, ']')
	default:
		w.object(sh, v)
	}
}

func (w *writer) object(sh *shape, v reflect.Value) {
	w.b = append(w.b, '{')
	first := true
	for i := range sh.fields {
		m := &sh.fields[i]
		f := v.Field(i)
		if m.omit != never && isAbsent(f) {
			continue
		}
		if !first {
			w.b = append(w.b, ',')
		}
		first = false
		w.b = append(w.b, m.key...)
		w.value(m.shape, f)
	}
	w.b = append(w.b, '}')
}

// appendText appends a text in its one spelling.
func appendText(b []byte, s string) []byte {
	b = append(b, '"')
	at := 0 // what is before is written
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			b = append(b, s[at:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\b':
				b = append(b, `\b`...)
			case '\f':
				b = append(b, `\f`...)
			case '\n':
				b = append(b, `\n`...)
			case '\r':
				b = append(b, `\r`...)
			case '\t':
				b = append(b, `\t`...)
			default:
				const hex = "0123456789abcdef"
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			at = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = utf8.AppendRune(append(b, s[at:i]...), utf8.RuneError)
			at = i + n
		case r == '\u2028':
			b = append(append(b, s[at:i]...), `\u2028`...)
			at = i + n
		case r == '\u2029':
			b = append(append(b, s[at:i]...), `\u2029`...)
			at = i + n
		}
		i += n
	}
	return append(append(b, s[at:]...), '"')
}

// appendTime appends a time in TimeLayout, in quotes.
func appendTime(b []byte, t Time) ([]byte, error) {
	year, month, day := t.t.Date()
	if year < 0 || year > 9999 {
		return b, fmt.Errorf("year %d does not fit %s", year, TimeLayout)
	}
	hour, minute, second := t.t.Clock()
	var buf [len(TimeLayout) + 2]byte
	copy(buf[:], `"0000-00-00T00:00:00.000000000Z"`)
	for _, part := range [...]struct{ end, v int }{
		{5, year}, {8, int(month)}, {11, day}, {14, hour}, {17, minute}, {20, second}, {30, t.t.Nanosecond()},
	} {
		for i, v := part.end-1, part.v; v > 0; i, v = i-1, v/10 {
			buf[i] = byte('0' + v%10)
		}
	}
	return append(b, buf[:]...), nil
}
