package evidence

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds on what a line may carry. They are those of the notices and policies
// that the values come from.
const (
	MaxID   = 256     // bytes of a container id, probe id, gap id or instance
	MaxText = 1 << 10 // characters of a name, reference, detail
	MaxPath = 4 << 10 // characters of a path or symbol: C++ names are long
	MaxComm = 15      // characters of a process's comm
)

// Runtimes, Scopes, Origins, SymbolKinds and Inlines list what their members
// may say.
var (
	Runtimes    = []string{"containerd", "cri-o", "podman", "docker", "runc", "crun"}
	Scopes      = []string{ScopeNode, ScopeSource, ScopeRun, ScopeFile, ScopeSite}
	Origins     = []string{"imageLayer", "upper", "volume", "tmpfs", "memfd", "other"}
	SymbolKinds = []string{"func", "ifunc", "alias", "clone", "folded", "inlined"}
	Inlines     = []string{"none", "unknown", "inlinedAt"}
)

// Validate says whether a line obeys the rules of the format (FORMAT.md): closed
// lists, required members, and the rules that tie members together. It reports
// the first rule that is broken. Writers call it before they sign, verifiers
// afterwards.
func Validate(l Line) error {
	switch v := l.(type) {
	case *Coverage:
		return v.validate()
	case *Observation:
		return v.validate()
	case *Gap:
		return v.validate()
	}
	return errors.New("no line")
}

// Validate says whether a header obeys the rules of the format.
func (h Header) Validate() error {
	seq, _, ok := ParseChunkName(h.Chunk)
	switch {
	case !slices.Contains(Formats, h.Format):
		return fmt.Errorf("format: %q is not one of %s", clip(h.Format), strings.Join(Formats, ", "))
	case !ok:
		return fmt.Errorf("chunk: %q is not 16 digits, '-' and 16 hex digits", clip(h.Chunk))
	case seq != uint64(h.Seq):
		return fmt.Errorf("seq: %d, but the chunk is named %s", h.Seq, h.Chunk)
	case h.Seq == 0:
		return errors.New("seq: 0, the first chunk has 1")
	case h.Clock.Wall.IsZero():
		return errors.New("clock: wall is missing")
	}
	if key, ok := strings.CutPrefix(h.KeyID, "SHA256:"); !ok || len(key) != 43 {
		return fmt.Errorf("keyId: %q is not an OpenSSH SHA256 fingerprint", clip(h.KeyID))
	}
	if (h.Log == "") != (h.Leaf == nil) {
		return errors.New("log, leaf: one without the other")
	}
	if h.Log != "" && h.Format == Format1 {
		return fmt.Errorf("log: in a chunk of %s", Format1)
	}
	return firstOf(
		text("node", h.Node, MaxText), text("bootId", h.BootID, MaxID), text("agent", h.Agent, MaxText), optional("log", h.Log, MaxText),
	)
}

func (c *Coverage) validate() error {
	if err := firstOf(
		runFields(c.RunID, c.ContainerID),
		oneOf("runtime", c.Runtime, Runtimes),
		imageFields(c.ImageDigest, c.ImageDigestReason),
		optional("containerName", c.ContainerName, MaxText),
		optional("image", c.Image, MaxText),
		text("bootId", c.BootID, MaxID),
		optional("cgroupPath", c.CgroupPath, MaxPath),
		text("attribution", c.Attribution, MaxID),
		text("source", c.Source, MaxText),
		optional("refused", c.Refused, MaxText),
		window(c.From, c.To),
		c.Losses.validate(),
		c.redactions(),
	); err != nil {
		return err
	}
	if c.ImageIndexDigest != "" && !isDigest(c.ImageIndexDigest) {
		return bad("imageIndexDigest", c.ImageIndexDigest)
	}
	if c.ImageConfigDigest != "" && !isDigest(c.ImageConfigDigest) {
		return bad("imageConfigDigest", c.ImageConfigDigest)
	}
	if c.Policies != "" && !isDigest(c.Policies) {
		return bad("policies", c.Policies)
	}
	if c.Refused != "" && c.FailPolicyEnforced == nil {
		return errors.New("refused: only with failPolicyEnforced")
	}
	if p := c.Pod; p != nil {
		if err := firstOf(text("pod.name", p.Name, MaxText), text("pod.namespace", p.Namespace, MaxText), optional("pod.uid", p.UID, MaxText)); err != nil {
			return err
		}
	}
	for i := range c.Probes {
		if err := c.Probes[i].validate(); err != nil {
			return fmt.Errorf("probes[%d]: %w", i, err)
		}
	}
	for i, r := range c.GapReasons {
		if err := gapReason(r); err != nil {
			return fmt.Errorf("gapReasons: %w", err)
		}
		for _, s := range c.GapReasons[:i] {
			if r == s {
				return fmt.Errorf("gapReasons: %s is there twice", r)
			}
		}
	}
	return nil
}

func (l Losses) validate() error {
	if (l.RingFull.Unknowable || l.KernelMissed.Unknowable) && l.Reason == "" {
		return errors.New("losses: a counter is unknowable, and reason does not say why")
	}
	for i, b := range l.ByType {
		if err := probeType("losses.byType.probeType", b.ProbeType); err != nil {
			return err
		}
		for _, c := range l.ByType[:i] {
			if b.ProbeType == c.ProbeType {
				return fmt.Errorf("losses.byType: %s is there twice", b.ProbeType)
			}
		}
		if b.KernelMissed.Unknowable && l.Reason == "" {
			return errors.New("losses: a counter is unknowable, and reason does not say why")
		}
	}
	return optional("losses.reason", l.Reason, MaxText)
}

func (p ProbeFold) validate() error {
	if p.Sites < 0 {
		return fmt.Errorf("sites: %d", p.Sites)
	}
	if !p.SearchComplete && p.SearchReason == "" {
		return errors.New("searchReason: missing, and the search was not complete")
	}
	if p.SearchComplete && p.SearchReason != "" {
		return errors.New("searchReason: only where the search was not complete")
	}
	return firstOf(text("probeId", p.ProbeID, MaxID), stateName(p.State), optional("searchReason", p.SearchReason, MaxText))
}

func (o *Observation) validate() error {
	return firstOf(
		runFields(o.RunID, o.ContainerID),
		oneOf("runtime", o.Runtime, Runtimes),
		imageFields(o.ImageDigest, o.ImageDigestReason),
		text("probeId", o.ProbeID, MaxID),
		stateName(o.State),
		probeType("probeType", o.ProbeType),
		probeType("requestedProbeType", o.RequestedProbeType),
		window(o.From, o.To),
		o.site(),
		o.code(),
		o.set(),
		o.processes(),
		o.Confidence.validate(),
		o.gaps(),
		o.facts(),
		o.redactions(),
	)
}

// validateMiddle is validate for a line that is alike with one that was valid.
func (o *Observation) validateMiddle() error {
	return firstOf(o.site(), o.code(), o.set(), o.processes(), o.facts(), o.redactions())
}

// site checks what the line says of the file and the instruction.
func (o *Observation) site() error {
	if err := firstOf(
		optional("symbol", o.Symbol, MaxPath), optional("path", o.Path, MaxPath), optional("buildId", o.BuildID, MaxID),
		optional("event", o.Event, MaxID), optional("detail", o.Detail, MaxText),
	); err != nil {
		return err
	}
	switch {
	case o.FileDigest != "" && !isDigest(o.FileDigest):
		return bad("fileDigest", o.FileDigest)
	case o.LayerDiffID != "" && !isDigest(o.LayerDiffID):
		return bad("layerDiffId", o.LayerDiffID)
	case o.LayerDiffID != "" && o.Origin != "imageLayer":
		return errors.New("layerDiffId: only with origin imageLayer")
	case o.Copies < 0:
		return fmt.Errorf("copies: %d", o.Copies)
	case o.Offset != nil && o.Path == "":
		return errors.New("path: missing, and there is an offset")
	case o.Offset != nil && o.FileDigest == "" && o.State != NotArmed && o.Detail == "":
		return errors.New("fileDigest: missing, the site was armed, and detail does not say why")
	}
	if o.Origin != "" {
		if err := oneOf("origin", o.Origin, Origins); err != nil {
			return err
		}
	}
	if o.SymbolKind != "" {
		if err := oneOf("symbolKind", o.SymbolKind, SymbolKinds); err != nil {
			return err
		}
	}
	if o.Inline != "" {
		return oneOf("inline", o.Inline, Inlines)
	}
	return nil
}

func (o *Observation) processes() error {
	if o.Process != nil {
		if err := o.Process.validate(); err != nil {
			return fmt.Errorf("process: %w", err)
		}
	}
	for i := range o.Processes {
		if err := o.Processes[i].validate(); err != nil {
			return fmt.Errorf("processes[%d]: %w", i, err)
		}
	}
	return nil
}

func (p Process) validate() error {
	if p.Pid < 0 {
		return fmt.Errorf("pid: %d", p.Pid)
	}
	if p.Session != "" && p.Session != SessionExec {
		return fmt.Errorf("session: %q is not %s", clip(p.Session), SessionExec)
	}
	return firstOf(optional("comm", p.Comm, MaxComm), optional("path", p.Path, MaxPath))
}

func (c Confidence) validate() error {
	if !(c.Value >= 0 && c.Value <= 1) {
		return fmt.Errorf("confidence: %v is not within 0 and 1", c.Value)
	}
	return firstOf(
		text("confidence.version", c.Version, MaxID), text("confidence.inputs.probeType", c.Inputs.ProbeType, MaxID),
		text("confidence.inputs.attribution", c.Inputs.Attribution, MaxID), text("confidence.inputs.symbol", c.Inputs.Symbol, MaxID),
		text("confidence.inputs.losses", c.Inputs.Losses, MaxID),
	)
}

func (o *Observation) gaps() error {
	for i, g := range o.Gaps {
		if err := gapReason(g.Reason); err != nil {
			return fmt.Errorf("gaps: %w", err)
		}
		for _, h := range o.Gaps[:i] {
			if g.Reason == h.Reason {
				return fmt.Errorf("gaps: %s is there twice, one entry per reason", g.Reason)
			}
		}
		if g.From.IsZero() {
			return fmt.Errorf("gaps: %s: from is missing", g.Reason)
		}
		if !g.To.IsZero() && g.To.t.Before(g.From.t) {
			return fmt.Errorf("gaps: %s: to is before from", g.Reason)
		}
		if o.Complete && !g.Reason.DetailOnly() {
			return fmt.Errorf("complete: true, and there is a gap %s", g.Reason)
		}
	}
	return nil
}

// facts ties the state to the members that belong to it.
func (o *Observation) facts() error {
	if o.State == NotArmed {
		switch {
		case o.Reason == "":
			return errors.New("reason: missing on a notArmed line")
		case o.ProbeType != o.RequestedProbeType:
			return fmt.Errorf("probeType: %s on a notArmed line, but %s was asked for", o.ProbeType, o.RequestedProbeType)
		case o.Confidence.Value != 0:
			return fmt.Errorf("confidence: %v on a notArmed line", o.Confidence.Value)
		case o.Count != nil || !o.FirstAt.IsZero() || !o.LastAt.IsZero() || o.Process != nil || o.Processes != nil || o.observed():
			return errors.New("state: notArmed, but something was observed")
		}
		return notArmedReason(o.Reason)
	}
	switch {
	case o.Reason != "":
		return fmt.Errorf("reason: %q on a line that is not notArmed", clip(string(o.Reason)))
	case o.Count == nil:
		return fmt.Errorf("count: missing on a line that is %s", o.State)
	case o.ProbeType == Uprobe && o.Offset == nil:
		return errors.New("offset: missing, and an instruction was armed")
	case o.ProbeType.OfKernelFunction() && o.Set == "" && o.Function == "":
		return errors.New("function: missing, and a kernel function was armed")
	}
	if o.State == Hit {
		switch {
		case *o.Count == 0:
			return errors.New("count: 0, but the state is hit")
		case o.FirstAt.IsZero() || o.LastAt.IsZero():
			return errors.New("firstAt, lastAt: missing, but the state is hit")
		case o.LastAt.t.Before(o.FirstAt.t):
			return errors.New("lastAt: before firstAt")
		case o.Set == SetSyscalls && len(o.SystemCalls) == 0:
			return errors.New("systemCalls: missing, but the state is hit")
		}
		return nil
	}
	switch {
	case *o.Count != 0:
		return fmt.Errorf("count: %d, but the state is %s", *o.Count, o.State)
	case !o.FirstAt.IsZero() || !o.LastAt.IsZero() || o.Process != nil || o.Processes != nil || o.observed():
		return fmt.Errorf("state: %s, but a hit was observed", o.State)
	case o.State == ArmedNoHit && !o.Complete:
		return errors.New("complete: false, but the state is armedNoHit")
	case o.State == Partial && o.Complete:
		return errors.New("complete: true, but the state is partial")
	case o.State == Partial && len(o.Gaps) == 0:
		return errors.New("gaps: none, but the state is partial")
	}
	return nil
}

func (g *Gap) validate() error {
	if err := firstOf(
		text("gapId", g.GapID, MaxID), oneOf("scope", g.Scope, Scopes), gapReason(g.Reason),
		optional("source", g.Source, MaxText), optional("path", g.Path, MaxPath), optional("probeId", g.ProbeID, MaxID),
		optional("symbol", g.Symbol, MaxPath), optional("detail", g.Detail, MaxText), g.redactions(),
	); err != nil {
		return err
	}
	if g.From.IsZero() {
		return errors.New("from: missing")
	}
	if !g.To.IsZero() && g.To.t.Before(g.From.t) {
		return errors.New("to: before from")
	}
	ofRun := g.Scope == ScopeRun || g.Scope == ScopeFile || g.Scope == ScopeSite
	switch {
	case ofRun:
		if err := runFields(g.RunID, g.ContainerID); err != nil {
			return err
		}
	case g.RunID != "" || g.ContainerID != "":
		return fmt.Errorf("runId, containerId: on a gap of scope %s", g.Scope)
	case g.Scope == ScopeSource && g.Source == "":
		return errors.New("source: missing on a gap of scope source")
	}
	if (g.Scope == ScopeFile || g.Scope == ScopeSite) && g.Path == "" && g.ProbeID == "" {
		return fmt.Errorf("path, probeId: both missing on a gap of scope %s", g.Scope)
	}
	switch {
	case g.Offset != nil && g.Scope != ScopeSite:
		return fmt.Errorf("offset: on a gap of scope %s", g.Scope)
	case g.ProbeType == "":
		return nil
	case g.Scope != ScopeRun && g.Scope != ScopeSite:
		return fmt.Errorf("probeType: on a gap of scope %s", g.Scope)
	}
	return probeType("probeType", g.ProbeType)
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func bad(member, v string) error {
	return fmt.Errorf("%s: %q is not \"sha256:\" and 64 lower-case hex digits", member, clip(v))
}

func text(member, v string, most int) error {
	if v == "" {
		return fmt.Errorf("%s: missing", member)
	}
	return optional(member, v, most)
}

func optional(member, v string, most int) error {
	if len(v) > most && utf8.RuneCountInString(v) > most {
		return fmt.Errorf("%s: more than %d characters", member, most)
	}
	return nil
}

func oneOf(member, v string, list []string) error {
	for _, x := range list {
		if v == x {
			return nil
		}
	}
	return fmt.Errorf("%s: %q is not one of %s", member, clip(v), strings.Join(list, ", "))
}

func runFields(runID, containerID string) error {
	if !isHex(runID, 32) {
		return fmt.Errorf("runId: %q is not 32 lower-case hex digits", clip(runID))
	}
	return text("containerId", containerID, MaxID)
}

func imageFields(digest, reason string) error {
	switch {
	case digest == "" && reason == "":
		return errors.New("imageDigest, imageDigestReason: both missing")
	case digest != "" && reason != "":
		return errors.New("imageDigestReason: only where there is no imageDigest")
	case digest != "" && !isDigest(digest):
		return bad("imageDigest", digest)
	}
	return optional("imageDigestReason", reason, MaxText)
}

func window(from, to Time) error {
	switch {
	case from.IsZero():
		return errors.New("from: missing")
	case to.IsZero():
		return errors.New("to: missing")
	case to.t.Before(from.t):
		return errors.New("to: before from")
	}
	return nil
}

func stateName(s State) error {
	for _, x := range States {
		if s == x {
			return nil
		}
	}
	return fmt.Errorf("state: %q is not known", clip(string(s)))
}

func probeType(member string, p ProbeType) error {
	for _, x := range ProbeTypes {
		if p == x {
			return nil
		}
	}
	return fmt.Errorf("%s: %q is not known", member, clip(string(p)))
}

func gapReason(r GapReason) error {
	for _, x := range GapReasons {
		if r == x {
			return nil
		}
	}
	return fmt.Errorf("reason: %q is not a known gap", clip(string(r)))
}

func notArmedReason(r NotArmedReason) error {
	for _, x := range NotArmedReasons {
		if r == x {
			return nil
		}
	}
	return fmt.Errorf("reason: %q is not a known reason for not arming", clip(string(r)))
}
