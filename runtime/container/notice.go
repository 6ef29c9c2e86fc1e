package container

// Kind says what happened to a container.
type Kind uint8

// The kinds of notice. Sources may send them twice, late, out of order or
// never; the lifecycle table ends in the same state regardless.
const (
	// Created: the runtime knows the container; it has no process yet.
	// Useful to index its image ahead of the start.
	Created Kind = iota + 1
	// Starting: the barrier. The process exists and its cgroup and root
	// filesystem are final, but its first instruction has not run, and will
	// not before the source is answered.
	Starting
	// Started: the process runs. Sent by sources that have no barrier, or
	// after it.
	Started
	// Stopped: look now, the container may have ended.
	Stopped
	// Removed: the runtime has forgotten the container.
	Removed
	// Existing: the runtime listed the container as running when the source
	// connected.
	Existing
)

var kindNames = [...]string{Created: "created", Starting: "starting", Started: "started", Stopped: "stopped", Removed: "removed", Existing: "existing"}

func (k Kind) String() string {
	if k == 0 || int(k) >= len(kindNames) {
		return "unknown"
	}
	return kindNames[k]
}

// Notice is one message from a source about one container. It is a pure value.
type Notice struct {
	// Source names who says so, such as "nri:/var/run/nri/nri.sock" or "hook".
	Source string
	Kind   Kind
	// Identity as far as the source knows it.
	Identity Identity
	// Pid of the container's init on the host, or 0.
	Pid int
	// Rootfs is the host path of the merged root filesystem, for sources
	// whose notice comes before the process has entered it (OCI createRuntime);
	// empty means /proc/PID/root.
	Rootfs string
	// Namespace is containerd's, of the container; empty means that of CRI.
	Namespace string
	// Bundle is the OCI bundle's directory, if known.
	Bundle string
	// Made is a boot time before which this life cannot have begun, as the clocks stand
	// now: when the bundle's configuration was written (with Stopped, by a source that was
	// told the bundle), or when its creation was told. 0 is not known.
	Made int64
	// Mounts are the mounts that the container gets on top of its root file
	// system, where they are not in /proc/PID/mountinfo yet.
	Mounts []Mount
	// CgroupName is what the runtime calls the container's cgroup: the last part of
	// its path, which may not be where init is by now. "" if it does not say.
	CgroupName string
	// Shared says why the container has no cgroup of its own, where its source has found
	// that out. "" says that it has not.
	Shared string
	// Command is what it starts, if known.
	Command Command
	// At is CLOCK_BOOTTIME in nanoseconds when the notice was received.
	At int64
}

// Mount is one mount inside a container.
type Mount struct {
	Destination string // absolute, inside the container
	Type        string // file system type, or "bind"
	Source      string
}

// Validate checks the notice's own fields and its identity.
func (n Notice) Validate() error {
	if n.Kind == 0 || int(n.Kind) >= len(kindNames) {
		return invalid("kind %d is not known", n.Kind)
	}
	if n.Source == "" {
		return invalid("no source")
	}
	if n.Pid < 0 || n.Pid > 1<<22 { // PID_MAX_LIMIT on 64-bit kernels
		return invalid("pid %d: out of range", n.Pid)
	}
	if len(n.Rootfs) > MaxPath || len(n.Bundle) > MaxPath {
		return invalid("rootfs or bundle: longer than %d bytes", MaxPath)
	}
	if len(n.Command.Arg0) > MaxPath || len(n.Command.Dir) > MaxPath || len(n.Command.Path) > MaxPATH {
		return invalid("command: longer than %d bytes, or its $PATH than %d", MaxPath, MaxPATH)
	}
	if len(n.CgroupName) > MaxName || len(n.Namespace) > MaxName {
		return invalid("cgroup name or namespace: longer than %d bytes", MaxName)
	}
	if len(n.Mounts) > MaxPairs {
		return invalid("mounts: %d of them, at most %d are taken", len(n.Mounts), MaxPairs)
	}
	return n.Identity.Validate()
}
