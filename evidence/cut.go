package evidence

import "slices"

// Cut brings an observation's lists and long texts within their bounds, counting
// what it leaves out, and then halves its lists until the line can be written: what
// a container chose to be long may cost detail, but not the line (for path and symbol
// see [Spell]). A line that is too long for its other members is left as it is.
func Cut(o *Observation) {
	if len(o.Demangled) > MaxText {
		o.Demangled = ""
	}
	o.leaveOutLong()
	o.cutInstances(MaxInstances, MaxListText)
	if o.Stack != nil {
		o.cutStack(MaxFrames, MaxListText)
	}
	if o.size() < MaxLineBytes {
		return
	}
	for most := MaxFrames / 2; most > 0 && !o.writable(); most /= 2 {
		o.cutInstances(most, MaxListText*most/MaxFrames)
		if o.Stack != nil {
			o.cutStack(most, MaxListText*most/MaxFrames)
		}
	}
	if !o.writable() {
		o.Demangled, o.Stack = "", nil
		o.cutInstances(0, 0)
	}
	if !o.writable() {
		o.InlinedIn, o.Implements = "", ""
		o.Processes = nil
	}
}

// leaveOutLong leaves out names in lists that are past their own bound. The lists
// may be other lines' too, so they are copied.
func (o *Observation) leaveOutLong() {
	for i := range o.InlinedAt {
		if len(o.InlinedAt[i].In) > MaxInstance {
			o.InlinedAt = slices.Clone(o.InlinedAt)
			o.InlinedAt[i].In = ""
		}
	}
	if o.Stack == nil {
		return
	}
	for i := range o.Stack.Frames {
		if f := o.Stack.Frames[i]; len(f.Path) > MaxFrameText || len(f.Symbol) > MaxFrameText {
			s := *o.Stack
			s.Frames = slices.Clone(s.Frames)
			if len(f.Path) > MaxFrameText {
				f.Path = ""
			}
			if len(f.Symbol) > MaxFrameText {
				f.Symbol = ""
			}
			if f.Path == "" && f.BuildID == "" {
				f.Offset = nil // in no file that is named
			}
			s.Frames[i] = f
			o.Stack = &s
		}
	}
}

func (o *Observation) writable() bool {
	_, err := Encode(o)
	return err == nil
}

// size is at least the length of the line, guessed from its texts: a byte of a
// text takes at most six.
func (o *Observation) size() int {
	const (
		fixed   = 2048 // all that does not grow
		element = 192  // of a list, without its texts
		escaped = 6
	)
	text := len(o.Symbol) + len(o.Path) + len(o.Demangled) + len(o.Wanted) + len(o.InlinedIn) + len(o.Implements) + len(o.Function) +
		len(o.Detail) + len(o.ImageDigestReason) + len(o.ProbeID) + len(o.Event) + len(o.ContainerID)
	n := fixed + element*(len(o.InlinedAt)+len(o.Processes)+len(o.Gaps))
	for i := range o.InlinedAt {
		text += len(o.InlinedAt[i].In)
	}
	if o.Stack != nil {
		n += element * len(o.Stack.Frames)
		text += len(o.Stack.Reason)
		for i := range o.Stack.Frames {
			text += len(o.Stack.Frames[i].Path) + len(o.Stack.Frames[i].Symbol)
		}
	}
	for i := range o.Processes {
		text += len(o.Processes[i].Comm) + len(o.Processes[i].Path)
	}
	if p := o.Process; p != nil {
		text += len(p.Path)
	}
	if o.Entry != nil && o.Entry.Parent != nil {
		text += len(o.Entry.Parent.Path)
	}
	for i := range o.SystemCalls {
		n += 5 * len(o.SystemCalls[i].Numbers)
	}
	n += element * len(o.Redacted)
	if o.Duration != nil {
		n += 24 * len(o.Duration.Counts)
	}
	return n + escaped*text
}

// cutInstances keeps so many instances with so many bytes of text.
func (o *Observation) cutInstances(most, text int) {
	keep := 0
	for keep < len(o.InlinedAt) && keep < most {
		if len(o.InlinedAt[keep].In) > text {
			break
		}
		text -= len(o.InlinedAt[keep].In)
		keep++
	}
	if keep == len(o.InlinedAt) {
		return
	}
	o.InlinedAtMore += Uint64(len(o.InlinedAt) - keep)
	o.InlinedAt = o.InlinedAt[:keep:keep]
	if keep == 0 {
		o.InlinedAt = nil
	}
}

// cutStack does the same for frames. The stack may be another line's too, so it
// is copied.
func (o *Observation) cutStack(most, text int) {
	s := *o.Stack
	keep := 0
	for keep < len(s.Frames) && keep < most {
		n := len(s.Frames[keep].Path) + len(s.Frames[keep].Symbol)
		if n > text {
			break
		}
		text -= n
		keep++
	}
	if keep == len(s.Frames) {
		return
	}
	s.More += Uint64(len(s.Frames) - keep)
	s.Frames = append([]Frame{}, s.Frames[:keep]...)
	if s.Reason == "" {
		s.Reason = "the line has no room for all frames"
	}
	o.Stack = &s
}
