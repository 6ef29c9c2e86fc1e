package evidence

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// This file holds what an observation can say besides its state: where else a
// function's code is, how long it ran, the stack, and the entries of sets. All
// of it came with version 2 of the format.

// Bounds on lists in an observation. What is past them is cut and counted.
const (
	MaxInstances  = 64      // of inlinedAt
	MaxInstance   = 512     // characters of the function that an instance lies in
	MaxFrames     = 64      // of a stack
	MaxFrameText  = 512     // characters of a frame's path or symbol
	MaxListText   = 8 << 10 // bytes of text in inlinedAt, or in a stack, together
	MaxBuckets    = 64      // of a duration: one for each power of two of 64 bits
	MaxSystemCall = 1024    // system call numbers are below
	MaxSocketPath = 108     // characters of a socket's path: sun_path in unix(7)
	maxBuildIDHex = 128
)

// Instance is one place where a function was inlined.
type Instance struct {
	Offset Uint64 `json:"offset"`       // of its first instruction in the file
	In     string `json:"in,omitempty"` // the function that it lies in
}

// Duration is the histogram of the times between entry and return.
type Duration struct {
	Unit      string   `json:"unit"`      // UnitNs
	Counts    []Uint64 `json:"counts"`    // [i]: of 2^i to 2^(i+1)-1; [0] has 0 too; the last is not 0
	SumNs     Uint64   `json:"sumNs"`     // of all that were counted
	Count     Uint64   `json:"count"`     // returns with their entry: the sum of Counts
	Unmatched Uint64   `json:"unmatched"` // entries without a return seen, and returns without an entry
}

// UnitNs is the unit of every duration.
const UnitNs = "ns"

// NewDuration makes a duration of what the kernel counted per power of two of
// nanoseconds; nil if nothing was.
func NewDuration(buckets []uint64, sumNs, unmatched uint64) *Duration {
	d := &Duration{Unit: UnitNs, Counts: []Uint64{}, SumNs: Uint64(sumNs), Unmatched: Uint64(unmatched)}
	if len(buckets) > MaxBuckets {
		rest := uint64(0)
		for _, n := range buckets[MaxBuckets-1:] {
			rest += n
		}
		buckets = append(slices.Clone(buckets[:MaxBuckets-1]), rest)
	}
	for i, n := range buckets {
		if n == 0 {
			continue
		}
		for len(d.Counts) < i {
			d.Counts = append(d.Counts, 0)
		}
		d.Counts = append(d.Counts, Uint64(n))
		d.Count += Uint64(n)
	}
	if d.Count == 0 && unmatched == 0 {
		return nil
	}
	return d
}

// Plus returns both together. Either may be nil, which is none; neither is
// changed.
func (d *Duration) Plus(e *Duration) *Duration {
	switch {
	case d == nil:
		return e
	case e == nil:
		return d
	}
	longer, shorter := d.Counts, e.Counts
	if len(longer) < len(shorter) {
		longer, shorter = shorter, longer
	}
	sum := &Duration{Unit: UnitNs, Counts: slices.Clone(longer), SumNs: d.SumNs + e.SumNs, Count: d.Count + e.Count, Unmatched: d.Unmatched + e.Unmatched}
	for i, n := range shorter {
		sum.Counts[i] += n
	}
	return sum
}

// Stack is the user stack of a site's first hit, innermost frame first.
type Stack struct {
	Frames    []Frame `json:"frames"`
	More      Uint64  `json:"more,omitempty"`      // frames that were read and did not fit into the line
	Truncated bool    `json:"truncated,omitempty"` // callers may be missing at the end
	Reason    string  `json:"reason,omitempty"`    // why something is missing, for a person
}

// Frame is one frame of a stack: a place in a file that has a build id, or why
// there is none.
type Frame struct {
	BuildID string  `json:"buildId,omitempty"`
	Offset  *Uint64 `json:"offset,omitempty"` // in the file
	Path    string  `json:"path,omitempty"`
	Symbol  string  `json:"symbol,omitempty"`
	Reason  string  `json:"reason,omitempty"` // exactly where there is no BuildID; one of FrameReasons
}

// FrameReasons list why a frame has no build id.
var FrameReasons = []string{"anonymous", "noBuildId", "vdso", "unknown"}

// The sets.
const (
	SetExec      = "exec"
	SetLibraries = "libraries"
	SetSyscalls  = "syscalls"
	SetNetwork   = "network"
	SetFiles     = "files"
)

// Sets lists them all.
var Sets = []string{SetExec, SetLibraries, SetSyscalls, SetNetwork, SetFiles}

// Entry is what tells one entry of a set from the others, besides what the
// observation has a member for (path, fileDigest, buildId, origin, layerDiffId).
type Entry struct {
	Parent    *Process `json:"parent,omitempty"`    // exec: of the first process
	Argument  string   `json:"argument,omitempty"`  // exec: the path as given to execve, if it is another
	Device    string   `json:"device,omitempty"`    // exec, libraries, files: MAJOR:MINOR of the file
	Inode     Uint64   `json:"inode,omitempty"`     // and its inode
	Mapped    string   `json:"mapped,omitempty"`    // libraries: how
	Operation string   `json:"operation,omitempty"` // network
	Protocol  string   `json:"protocol,omitempty"`  // network
	Family    string   `json:"family,omitempty"`    // network
	Address   string   `json:"address,omitempty"`   // network: of the other side, or the own one of bind
	Port      int      `json:"port,omitempty"`      // network: of the other side, or the own one of accept and bind
	Access    string   `json:"access,omitempty"`    // files
}

// Mappings, Operations, Protocols, Families and Accesses list what an entry's
// members may say.
var (
	Mappings   = []string{"private", "privateWritable", "shared", "sharedWritable"}
	Operations = []string{"connect", "accept", "bind", "send", "dns"}
	Protocols  = []string{"tcp", "udp", "sctp", "icmp", "raw", "stream", "dgram", "seqpacket", "other"}
	Families   = []string{"ipv4", "ipv6", "unix", "vsock", "netlink", "packet", "other"}
	Accesses   = []string{"read", "write", "exec"}
)

// SystemCalls are the system calls of one architecture that were used.
type SystemCalls struct {
	Arch    string `json:"arch"`
	Numbers []int  `json:"numbers"`          // rising
	Beyond  bool   `json:"beyond,omitempty"` // a number at or past MaxSystemCall was used too
}

// Arches lists the architectures of system calls, as the kernel's tables name them.
var Arches = []string{"x86_64", "i386", "x32", "aarch64", "arm"}

// FormatOf returns the oldest version of the format that has all that the line
// says.
func FormatOf(l Line) string {
	if Redacted(l) != nil || ofCoalesced(l) || ofFailPolicy(l) {
		return Format3
	}
	later := false
	switch v := l.(type) {
	case *Coverage:
		later = v.Losses.ByType != nil
		for i := range v.Probes {
			later = later || v.Probes[i].Entries != 0
		}
	case *Observation:
		later = v.SymbolKind == "inlined" || v.Inline == "inlinedAt" || v.Demangled != "" || v.Wanted != "" || v.InlinedIn != "" ||
			v.InlinedAt != nil || v.InlinedAtMore != 0 || v.Implements != "" || v.Function != "" || v.Duration != nil || v.Stack != nil ||
			v.Set != "" || v.Entry != nil || v.Entries != 0 || v.SystemCalls != nil || v.IOUring || v.Process != nil && v.Process.Session != ""
		for i := range v.Processes {
			later = later || v.Processes[i].Session != ""
		}
	case *Gap:
		later = v.Offset != nil || v.ProbeType != ""
	}
	if later {
		return Format2
	}
	return Format1
}

// ofCoalesced reports whether a line names the gap reason that came with version 3.
func ofCoalesced(l Line) bool {
	switch v := l.(type) {
	case *Coverage:
		return slices.Contains(v.GapReasons, GapCoalesced)
	case *Observation:
		return slices.ContainsFunc(v.Gaps, func(g SiteGap) bool { return g.Reason == GapCoalesced })
	case *Gap:
		return v.Reason == GapCoalesced
	}
	return false
}

// ofFailPolicy reports whether a line has the members about the fail policy, which
// came with version 3, too.
func ofFailPolicy(l Line) bool {
	c, ok := l.(*Coverage)
	return ok && (c.FailPolicyEnforced != nil || c.Refused != "")
}

// observed reports whether a member is there that only a hit can have.
func (o *Observation) observed() bool {
	return o.Duration != nil || o.Stack != nil || o.Entry != nil || o.Entries != 0 || o.SystemCalls != nil || o.IOUring
}

// code checks what the line says of the function and of what it did.
func (o *Observation) code() error {
	if err := firstOf(
		optional("demangled", o.Demangled, MaxText), optional("wanted", o.Wanted, MaxText), optional("inlinedIn", o.InlinedIn, MaxPath),
		optional("implements", o.Implements, MaxPath), optional("function", o.Function, MaxText),
	); err != nil {
		return err
	}
	switch {
	case o.Demangled != "" && o.Symbol == "":
		return errors.New("demangled: only with a symbol")
	case o.InlinedIn != "" && o.SymbolKind != "inlined":
		return errors.New("inlinedIn: only with symbolKind inlined")
	case (o.Inline == "inlinedAt") != (len(o.InlinedAt) > 0 || o.InlinedAtMore > 0):
		return errors.New("inlinedAt: exactly with inline inlinedAt")
	case o.Function == "":
	case o.Path != "" || o.Offset != nil || o.inFile() || o.Symbol != "" || o.Event != "":
		return errors.New("function: a kernel function lies in no file of the container")
	case !o.ProbeType.OfKernelFunction() && !o.RequestedProbeType.OfKernelFunction():
		return fmt.Errorf("function: on a line about a %s", o.ProbeType)
	}
	if err := instances(o.InlinedAt); err != nil {
		return err
	}
	if o.Duration != nil {
		if err := o.Duration.validate(); err != nil {
			return fmt.Errorf("duration: %w", err)
		}
	}
	if o.Stack != nil {
		if err := o.Stack.validate(); err != nil {
			return fmt.Errorf("stack: %w", err)
		}
	}
	return nil
}

// inFile reports whether the line names anything of a file besides its path.
func (o *Observation) inFile() bool {
	return o.FileDigest != "" || o.BuildID != "" || o.Origin != "" || o.LayerDiffID != ""
}

func instances(list []Instance) error {
	if len(list) > MaxInstances {
		return fmt.Errorf("inlinedAt: %d entries, at most %d are listed", len(list), MaxInstances)
	}
	n := 0
	for _, x := range list {
		n += len(x.In)
		if err := optional("inlinedAt.in", x.In, MaxInstance); err != nil {
			return err
		}
	}
	if n > MaxListText {
		return fmt.Errorf("inlinedAt: %d bytes of text, at most %d are listed", n, MaxListText)
	}
	return nil
}

func (d *Duration) validate() error {
	var sum Uint64
	for _, n := range d.Counts {
		sum += n
	}
	switch n := len(d.Counts); {
	case d.Unit != UnitNs:
		return fmt.Errorf("unit: %q is not %s", clip(d.Unit), UnitNs)
	case n > MaxBuckets:
		return fmt.Errorf("counts: %d entries, there are %d powers of two", n, MaxBuckets)
	case n > 0 && d.Counts[n-1] == 0:
		return errors.New("counts: the last is 0")
	case sum != d.Count:
		return fmt.Errorf("count: %d, but counts has %d together", d.Count, sum)
	case d.Count == 0 && d.SumNs != 0:
		return errors.New("sumNs: not 0, and nothing was counted")
	}
	return nil
}

func (s *Stack) validate() error {
	if len(s.Frames) > MaxFrames {
		return fmt.Errorf("%d frames, at most %d are listed", len(s.Frames), MaxFrames)
	}
	if (s.Truncated || s.More > 0 || len(s.Frames) == 0) && s.Reason == "" {
		return errors.New("reason: missing, and the stack is not whole")
	}
	n := 0
	for i := range s.Frames {
		n += len(s.Frames[i].Path) + len(s.Frames[i].Symbol)
		if err := s.Frames[i].validate(); err != nil {
			return fmt.Errorf("frames[%d]: %w", i, err)
		}
	}
	if n > MaxListText {
		return fmt.Errorf("%d bytes of text, at most %d are listed", n, MaxListText)
	}
	return optional("reason", s.Reason, MaxText)
}

func (f *Frame) validate() error {
	switch {
	case (f.BuildID == "") == (f.Reason == ""):
		return errors.New("buildId, reason: the one or the other")
	case f.BuildID != "" && (len(f.BuildID) > maxBuildIDHex || !isHex(f.BuildID, len(f.BuildID))):
		return fmt.Errorf("buildId: %q is not lower-case hex digits", clip(f.BuildID))
	case f.BuildID != "" && f.Offset == nil:
		return errors.New("offset: missing, and there is a build id")
	case f.Reason != "" && f.Offset != nil && f.Path == "":
		return errors.New("offset: in what file?")
	}
	if f.Reason != "" {
		if err := oneOf("reason", f.Reason, FrameReasons); err != nil {
			return err
		}
	}
	return firstOf(optional("path", f.Path, MaxFrameText), optional("symbol", f.Symbol, MaxFrameText))
}

// set checks a line about a set, and that no other line says what only those say.
func (o *Observation) set() error {
	switch {
	case o.Set == "":
		if o.Entry != nil || o.Entries != 0 || o.SystemCalls != nil || o.IOUring {
			return errors.New("set: missing, and the line says what only a set's does")
		}
		return nil
	case o.Symbol != "" || o.Offset != nil || o.Function != "" || o.Event != "" || o.SymbolKind != "" || o.Inline != "" || o.Copies != 0 ||
		o.Implements != "" || o.Duration != nil || o.Stack != nil:
		return errors.New("set: on a line about an instruction")
	case o.Set != SetSyscalls && (o.SystemCalls != nil || o.IOUring):
		return fmt.Errorf("systemCalls, ioUring: on a line of the set %s", clip(o.Set))
	case o.Entry != nil && o.Entries != 0:
		return errors.New("entries: only on the set's own line")
	case o.Set == SetSyscalls && (o.Entry != nil || o.Entries != 0):
		return errors.New("entry, entries: on a line of the set syscalls")
	case (o.Entry == nil || o.Set == SetNetwork) && (o.Path != "" || o.inFile()):
		return errors.New("path: on a line of a set that is about no file")
	}
	if err := oneOf("set", o.Set, Sets); err != nil {
		return err
	}
	if o.Entry != nil {
		known := o.Entry.Inode != 0 || IsRedacted(o.Redacted, "entry.inode")
		if o.Set != SetNetwork && o.Path == "" && (!known || o.Detail == "") {
			return fmt.Errorf("path: missing on an entry of %s, and there is no inode, or no detail that says why", o.Set)
		}
		if err := o.Entry.validate(o.Set, IsRedacted(o.Redacted, "entry.address")); err != nil {
			return fmt.Errorf("entry: %w", err)
		}
	}
	for i := range o.SystemCalls {
		for _, x := range o.SystemCalls[:i] {
			if x.Arch == o.SystemCalls[i].Arch {
				return fmt.Errorf("systemCalls: %s is there twice", x.Arch)
			}
		}
		if err := o.SystemCalls[i].validate(); err != nil {
			return fmt.Errorf("systemCalls[%d]: %w", i, err)
		}
	}
	return nil
}

func (e *Entry) validate(set string, redacted bool) error {
	switch {
	case e.Parent != nil && set != SetExec:
		return fmt.Errorf("parent: on an entry of %s", set)
	case e.Argument != "" && set != SetExec:
		return fmt.Errorf("argument: on an entry of %s", set)
	case e.Mapped != "" && set != SetLibraries:
		return fmt.Errorf("mapped: on an entry of %s", set)
	case e.Access != "" && set != SetFiles:
		return fmt.Errorf("access: on an entry of %s", set)
	case (e.Operation != "" || e.Protocol != "" || e.Family != "" || e.Address != "" || e.Port != 0) && set != SetNetwork:
		return fmt.Errorf("operation, protocol, family, address, port: on an entry of %s", set)
	case (e.Device != "" || e.Inode != 0) && set == SetNetwork:
		return errors.New("device, inode: on an entry of network")
	case e.Inode != 0 && e.Device == "":
		return errors.New("device: missing, and there is an inode")
	case e.Device != "" && !isDevice(e.Device):
		return fmt.Errorf("device: %q is not MAJOR:MINOR", clip(e.Device))
	}
	switch set {
	case SetExec:
		if e.Parent != nil {
			if err := e.Parent.validate(); err != nil {
				return fmt.Errorf("parent: %w", err)
			}
		}
		return optional("argument", e.Argument, MaxPath)
	case SetLibraries:
		return oneOf("mapped", e.Mapped, Mappings)
	case SetFiles:
		return oneOf("access", e.Access, Accesses)
	case SetNetwork:
		return e.network(redacted)
	}
	return nil
}

func (e *Entry) network(redacted bool) error {
	if err := firstOf(oneOf("operation", e.Operation, Operations), oneOf("protocol", e.Protocol, Protocols), oneOf("family", e.Family, Families)); err != nil {
		return err
	}
	if e.Port < 0 || e.Port > 65535 {
		return fmt.Errorf("port: %d", e.Port)
	}
	if redacted {
		return nil // a mark, or a part of a path
	}
	if e.Family == "ipv4" || e.Family == "ipv6" {
		// One spelling of an address (RFC 5952), so that equal ones are equal texts.
		a, err := netip.ParseAddr(e.Address)
		if err != nil || a.Zone() != "" || a.Is4() != (e.Family == "ipv4") || a.String() != e.Address {
			return fmt.Errorf("address: %q is not an address of %s in its shortest form", clip(e.Address), e.Family)
		}
		return nil
	}
	if e.Port != 0 {
		return fmt.Errorf("port: with family %s", e.Family)
	}
	return optional("address", e.Address, MaxSocketPath)
}

// isDevice reports whether s is two decimal numbers of 32 bits, joined by ':'.
func isDevice(s string) bool {
	digits, colons := 0, 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == ':' && digits > 0 && colons == 0:
			digits, colons = 0, 1
		case c < '0' || c > '9' || digits == 10 || digits == 1 && s[i-1] == '0':
			return false
		default:
			digits++
		}
	}
	return colons == 1 && digits > 0
}

func (s *SystemCalls) validate() error {
	last := -1
	for _, n := range s.Numbers {
		if n <= last || n >= MaxSystemCall {
			return fmt.Errorf("numbers: %d, they rise from 0 to at most %d", n, MaxSystemCall-1)
		}
		last = n
	}
	if len(s.Numbers) == 0 && !s.Beyond {
		return errors.New("numbers: none")
	}
	return oneOf("arch", s.Arch, Arches)
}
