// Package probe turns a policy into armed sites and keeps proving that they
// are armed.
//
// In: the probes that a policy selects for a container, and a view of its
// files. [MakePlan] is the pure half: probes and files in, a [Plan] of sites
// out, with a reason for each one that will not be armed. [Engine.Arm] is the
// privileged half: it attaches, proves, and returns a [Handle] whose counters
// run. On return from Arm each site says whether it is armed, by which probe
// type the kernel really serves it, or why not.
//
// What is trusted: the kernel, and that the lower layers of an image change
// only by the hand of root on the host. The container's files are hostile: they
// are read with bounds by bpf/symbol and opened with openat2 by runtime/image.
//
// Arming is proven, not assumed. The kernel looks at an instruction only when
// a mapping of it exists, so the agent maps the file itself, private and
// executable and through the container's own path, and afterwards wants to
// read a breakpoint at each offset (FACT: a function that begins with a lock
// prefix attaches without error and is never hit). The links themselves are
// made through the lower layer's own path, because a link pins the mount that
// it was resolved through.
//
// What is not a control: a process that rewrites or copies its own text, maps
// it shared or writable, or runs code inlined elsewhere is not seen.
package probe

import (
	"time"

	"probity/bpf/policy"
	"probity/bpf/symbol"
	"probity/evidence"
	"probity/runtime/image"
)

// File is one file of a container in which sites were looked for.
type File struct {
	Match   image.Match
	Size    int64
	BuildID string
	// Digest is the SHA-256 of the file's bytes ("sha256:..."), computed on
	// first use and remembered; empty and an error if it cannot be read any more.
	Digest func() (string, error)
	// DigestBy is Digest, but for that it is [ErrNotHashed] if the file was not
	// hashed by then, which is not remembered.
	DigestBy func(until time.Time) (string, error)

	stamp    stamp     // of the bytes that were read
	unsteady error     // Facts.unsteady
	plan     *filePlan // that it is of, if containers share it
}

// Site is what one probe wants of one place, or the reason why there is none:
// one instruction of one file, one function or event of the kernel, or one set.
//
// A node has a hundred thousand of them and more, of which most differ in
// nothing but the container: what was planned is behind a pointer.
type Site struct {
	*Planned

	// Reason is set if the site is not armed; Detail explains it to a person.
	Reason evidence.NotArmedReason
	Detail string

	// What Arm found out.
	Type  evidence.ProbeType // what the kernel really used
	ID    uint32             // the site's number in the kernel
	Armed bool
	Kept  bool // an earlier engine armed it, and its counter goes on: nothing was missed in between
}

// Planned is what is known of a site before it is armed. It is never changed
// after it was planned: the containers of an image share it.
type Planned struct {
	Probe     *policy.Probe      // shared by its sites
	Requested evidence.ProbeType // of a set, the best that sees it
	Set       string             // one of policy.Sets, or ""

	// Of user probes.
	File      *File  // nil if no file matched
	Symbol    string // raw, as in the file's table; "" for an offset that the policy gave
	Demangled string // "" if the same
	Wanted    string // the item of the policy that Symbol matched
	Kind      string // symbolKind of FORMAT.md
	Inline    string // inline of FORMAT.md
	Copies    int    // files that the probe's target matched
	Offset    uint64 // in the file, if HasOffset
	// Returns are the offsets in the file of the return instructions that end
	// a Duration; without any it is the kernel's return probe.
	Returns    []uint64
	InlinedIn  string // the function that this instance of Symbol was inlined in
	InlinedAt  []symbol.Instance
	Implements string // the IFUNC that chooses Symbol
	Marker     string // of a usdt, "provider:name"
	Semaphore  uint64 // of a usdt: the file offset of what to count up; 0: none

	// Of kernel probes.
	Function string // the kernel's, or the system call as the policy names it: see Syscall
	Event    string

	HasOffset bool
	Duration  bool // the entry is to be paired with the return
	Go        bool // a call is a goroutine's and not a thread's
	// Return: this is one of Symbol's return instructions, which stand for a
	// uretprobe where the kernel's own would break the target.
	Return  bool
	Syscall bool // Function is a system call's name
}

// Search says whether all files of a probe were found.
type Search struct {
	ProbeID  string
	Complete bool
	Why      string // why not
}

// Plan is what to arm for one container.
type Plan struct {
	Sites    []Site
	Searches []Search
}

// Files is the container's file tree, as far as planning needs it.
type Files interface {
	// Glob as image.View.Glob.
	Glob(pattern string) (matches []image.Match, complete bool, why string)
	// Inspect reads the ELF file behind m, looking for what q wants.
	Inspect(m image.Match, q symbol.Query) (Facts, error)
}

// Finder is a file tree that knows its files not only by their paths. In one
// that is no Finder a probe that names its target otherwise finds nothing, and
// its search is incomplete.
type Finder interface {
	Files
	// Lookup as image.View.Lookup.
	Lookup(path string) (m image.Match, exec bool, err error)
	// Objects returns the ELF files of the image and of the writable layer of
	// which want says that they are wanted, sorted by path.
	Objects(want func(symbol.Identity) bool) (matches []image.Match, complete bool, why string)
	// Command is what the container starts.
	Command() Command
}

// Command is what a container starts, as its configuration says.
type Command struct {
	Arg0 string // a path, or a name for $PATH; "" if it is not known
	Path string // the container's $PATH; "" if it is not known, or has none
	Dir  string // the working directory
}

// Facts are what was read of one file.
type Facts struct {
	ELF     *symbol.File
	Symbols []symbol.Symbol // of the whole query, in its order
	// As of File.
	Digest   func() (string, error)
	DigestBy func(until time.Time) (string, error)
	Head     string // the first bytes, also of a file that is no ELF file

	stamp    stamp
	unsteady error      // why these need not be facts of the file with that stamp
	plans    *filePlans // of this file; nil: they are not shared
}
