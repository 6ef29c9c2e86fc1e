package kernel

import "os"

// BTFSource is where the types of kernel structures come from.
type BTFSource struct {
	Source string `json:"source"` // a path, or "none"
	Reason string `json:"reason,omitempty"`
}

const (
	ownBTFPath = "/sys/kernel/btf/vmlinux"
	noBTF      = "none"
)

// ownBTF says why the kernel does not offer its own types, or nil.
func ownBTF() error {
	_, err := os.Stat(ownBTFPath)
	return err
}
