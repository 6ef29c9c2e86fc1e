// Package container holds the two plain values that every runtime source
// speaks: [Identity], who a container is, and [Notice], what happened to it.
//
// In: what a runtime said, already parsed by the source's own package. Out:
// validated values. The package does no I/O and trusts nobody: a value that
// came from a runtime or a hook is a claim until the package that received it
// has cross-checked it (see runtime/oci and runtime/nri). It is not a control:
// validation here bounds sizes and characters, it does not prove that a pid
// belongs to a container.
package container

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Runtime names the software that runs a container, as evidence spells it.
type Runtime string

// The runtimes that evidence can name.
const (
	Containerd Runtime = "containerd"
	CRIO       Runtime = "cri-o"
	Podman     Runtime = "podman"
	Docker     Runtime = "docker"
	Runc       Runtime = "runc"
	Crun       Runtime = "crun"
)

// Valid reports whether r is one of the names above.
func (r Runtime) Valid() bool {
	switch r {
	case Containerd, CRIO, Podman, Docker, Runc, Crun:
		return true
	}
	return false
}

// Pod is the Kubernetes pod of a container, as CRI names it.
type Pod struct {
	ID        string            `json:"id,omitempty"`
	Name      string            `json:"name,omitempty"`
	Namespace string            `json:"namespace,omitempty"`
	UID       string            `json:"uid,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// Image is what is known of a container's image. A digest is "sha256:" and 64
// lower-case hex digits, or empty; Digest is empty exactly if DigestReason is
// not.
type Image struct {
	Name         string `json:"name,omitempty"`
	Digest       string `json:"digest,omitempty"`       // of the platform manifest
	IndexDigest  string `json:"indexDigest,omitempty"`  // of the index, if there is one
	ConfigDigest string `json:"configDigest,omitempty"` // the "image ID" of most tools
	DigestReason string `json:"digestReason,omitempty"` // why Digest is empty
}

// Identity says who a container is. The zero value is nobody.
//
// Runtime, ID, BootID and CgroupID make a run: one life of a container (and
// InitStart, where there is no cgroup of its own). The
// other fields are attributes and may be completed later without changing
// which run it is.
type Identity struct {
	Runtime Runtime `json:"runtime"`
	ID      string  `json:"id"`
	Name    string  `json:"name,omitempty"`
	Pod     *Pod    `json:"pod,omitempty"`
	Image   Image   `json:"image"`
	// User is whose own (rootless) runtime told of it; what is said here besides the
	// cgroup is that user's claim. 0: it is root's, or the host's.
	User        uint32            `json:"user,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Cut says that not all labels and annotations are there: one that is missing
	// may be among those that were left out.
	Cut bool `json:"cut,omitempty"`

	BootID     string `json:"bootId,omitempty"`
	CgroupID   uint64 `json:"cgroupId,string,omitempty"` // kernel cgroup id (inode number in cgroup2)
	CgroupPath string `json:"cgroupPath,omitempty"`      // below the cgroup mount, begins with "/"
	// InitStart is when the container's init started, in clock ticks since boot
	// (field 22 of /proc/PID/stat). It is set where the container has no cgroup
	// of its own, and tells its lives apart then.
	InitStart uint64 `json:"initStart,string,omitempty"`
}

// RunID names the run: the first 32 hex digits of SHA-256 over runtime, id,
// boot id and cgroup id (decimal), and InitStart (decimal) where there is no
// cgroup id, joined by NUL.
func (id Identity) RunID() string {
	parts := []string{string(id.Runtime), id.ID, id.BootID, strconv.FormatUint(id.CgroupID, 10)}
	if id.CgroupID == 0 {
		parts = append(parts, strconv.FormatUint(id.InitStart, 10))
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:16])
}

// Bounds on what a runtime may tell us. They are generous for real runtimes
// and small enough that a thousand containers cannot exhaust the agent.
const (
	MaxID         = 256     // bytes of a container or pod id
	MaxName       = 1 << 10 // bytes of a name, namespace or image reference
	MaxPath       = 4 << 10 // bytes of a path
	MaxPairs      = 1 << 10 // labels, and annotations, of one container
	MaxPairsBytes = 1 << 18 // bytes of all of them
)

// ErrInvalid is wrapped by every validation error of this package.
var ErrInvalid = errors.New("invalid notice")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// Validate checks the bounds and the spelling of what is filled in. It says
// which field is wrong.
func (id Identity) Validate() error {
	if !id.Runtime.Valid() {
		return invalid("runtime %q is not known", clip(string(id.Runtime)))
	}
	if id.ID == "" || len(id.ID) > MaxID || !plainID(id.ID) {
		return invalid("container id %q: want 1 to %d letters, digits, '_', '.', '+' or '-'", clip(id.ID), MaxID)
	}
	texts := []struct{ field, v string }{
		{"name", id.Name}, {"image name", id.Image.Name}, {"boot id", id.BootID},
	}
	if id.Pod != nil {
		texts = append(texts, []struct{ field, v string }{
			{"pod id", id.Pod.ID}, {"pod name", id.Pod.Name}, {"pod namespace", id.Pod.Namespace}, {"pod uid", id.Pod.UID},
		}...)
		if err := pairs("pod labels", id.Pod.Labels); err != nil {
			return err
		}
	}
	for _, t := range texts {
		if len(t.v) > MaxName || !utf8.ValidString(t.v) {
			return invalid("%s: longer than %d bytes or not UTF-8", t.field, MaxName)
		}
	}
	if len(id.CgroupPath) > MaxPath {
		return invalid("cgroup path: longer than %d bytes", MaxPath)
	}
	if err := pairs("labels", id.Labels); err != nil {
		return err
	}
	if err := pairs("annotations", id.Annotations); err != nil {
		return err
	}
	for _, d := range []struct{ field, v string }{
		{"image digest", id.Image.Digest}, {"image index digest", id.Image.IndexDigest}, {"image config digest", id.Image.ConfigDigest},
	} {
		if d.v != "" && !ValidDigest(d.v) {
			return invalid("%s %q: want \"sha256:\" and 64 lower-case hex digits", d.field, clip(d.v))
		}
	}
	return nil
}

func pairs(what string, m map[string]string) error {
	if len(m) > MaxPairs {
		return invalid("%s: %d of them, at most %d are taken", what, len(m), MaxPairs)
	}
	n := 0
	for k, v := range m {
		n += len(k) + len(v)
	}
	if n > MaxPairsBytes {
		return invalid("%s: %d bytes, at most %d are taken", what, n, MaxPairsBytes)
	}
	return nil
}

// ValidDigest reports whether s is "sha256:" and 64 lower-case hex digits.
func ValidDigest(s string) bool {
	h, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(h) != 64 {
		return false
	}
	for i := range len(h) {
		if !(h[i] >= '0' && h[i] <= '9' || h[i] >= 'a' && h[i] <= 'f') {
			return false
		}
	}
	return true
}

func plainID(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c == '.' || c == '-' || c == '+') {
			return false
		}
	}
	return s != "." && s != ".."
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}
