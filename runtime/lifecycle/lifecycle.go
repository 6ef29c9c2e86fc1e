// Package lifecycle is the table of live containers: it joins what all sources
// say and decides when a run is armed, looked at, and sealed.
//
// In: notices whose identity the caller has completed (boot id, and the cgroup
// of a process that lives), what an earlier agent left open: Left, and what the
// caller's own hands report back: Armed, CgroupEmpty, SourceLost, SourceBack,
// Stopping. Out: actions, in the
// order they are to be done. The table does no I/O, has no clock and starts
// nothing; it is not safe for concurrent use.
//
// It trusts the identity: two notices with one boot id, container id and
// cgroup id are one run, whatever their sources call the runtime; without a cgroup of
// its own, those with one run id are. Everything
// else about a notice it expects to be wrong: sources send them twice, late,
// out of order or never, and the table ends in the same state. The end of a
// run is never a notice; it is CgroupEmpty.
//
//	            Created                Starting, Started, Existing
//	 (nobody) ----------> created  --------------------------------+
//	     |                   |                                     |
//	     |                   | Removed, too many: Forget           |
//	     |                   v                                     |
//	     |                (nobody)                                 |
//	     | Starting, Started, Existing                             |
//	     +------------------------------------------> armed <------+   Arm
//	                                                  |   |
//	                              Armed               |   | CgroupEmpty
//	                 running <------------------------+   v
//	                  |                                stopped
//	                  | CgroupEmpty                       | Armed
//	                  v                                   v
//	                sealed <------------------------------+    Seal, Forget
//
//	Left                  left: LookNow
//	Starting, Started, Existing    left -> armed: Arm, as of a new run
//	CgroupEmpty                    left -> sealed: Seal, Forget
//	Stopping                       left: Forget, since nothing more is known of it
//
//	Stopped, Removed               LookNow, in left, armed and running
//	Starting again                 Await: one arming answers all who wait
//	Stopping                       Seal with Final false, Forget, for all
//
// For each run there is exactly one Arm, and exactly one Seal with Final true
// unless the agent stops first. A run that an earlier agent left open has at most
// one Arm. A sealed run is remembered, so that a notice
// about it that comes after its end changes nothing; the last MaxSealed of
// them are. What is only created is bounded by MaxCreated.
//
// It is not a control: it does not know whether a process lives.
package lifecycle

import "probity/runtime/container"

// The bounds of what the table keeps about containers that have no process.
const (
	MaxCreated = 1024 // containers that are only created; the oldest is forgotten
	MaxSealed  = 4096 // runs whose end is remembered, and containers removed
)

// State is how far a run has come.
type State uint8

// The states, in order.
const (
	Created State = iota + 1 // known; it has no process
	Armed                    // Arm was issued, its result is not known
	Running                  // armed, or known that it cannot be
	Stopped                  // its cgroup is empty, but it is still being armed
	Sealed                   // its evidence is complete; it is not in the table any more
	Left                     // an earlier agent armed it; nobody has told of it since
)

func (s State) String() string {
	switch s {
	case Created:
		return "created"
	case Armed:
		return "armed"
	case Running:
		return "running"
	case Stopped:
		return "stopped"
	case Sealed:
		return "sealed"
	case Left:
		return "left"
	}
	return "unknown"
}

// Run is one life of a container, as the table has it. A container that is
// only created has no ID yet: that needs its cgroup.
type Run struct {
	ID     string
	State  State
	Notice container.Notice // the first that announced a process, or the creation
	Left   bool             // an earlier agent left it open
	OK     bool             // Armed said that something is armed
	Ended  int64            // boot time when the cgroup was found empty, or 0
}

// Action is something the caller has to do.
type Action interface{ action() }

// Prefetch asks to index the image of a container ahead of its start.
type Prefetch struct{ Notice container.Notice }

// Arm asks to arm a run and to report Armed, whether or not that went well.
// The kind of its notice says whether the process waits for it (Starting) or
// runs already (Started, Existing).
type Arm struct{ Run Run }

// Await asks to answer a notice that waits only when the run is armed, which
// it may be already: somebody else's notice came first.
type Await struct{ Run Run }

// LookNow asks to look whether the run's cgroup is empty.
type LookNow struct{ Run Run }

// Seal asks to write the run's last lines. At is when the window ends.
type Seal struct {
	Run   Run
	Final bool // nothing of the run executes any more
	At    int64
}

// Forget asks to let go of all that is held for the run, after its Seal. A Run
// without an ID was only created: what was prefetched for it may go.
type Forget struct{ Run Run }

// SourceGap says that a source could not tell of anything from From to To; To
// is 0 when the gap opens.
type SourceGap struct {
	Source   string
	From, To int64
}

func (Prefetch) action()  {}
func (Arm) action()       {}
func (Await) action()     {}
func (LookNow) action()   {}
func (Seal) action()      {}
func (Forget) action()    {}
func (SourceGap) action() {}
