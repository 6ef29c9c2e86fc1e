package kernel

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf/btf"
)

// BTFSource is where the types of kernel structures come from.
type BTFSource struct {
	Source string `json:"source"`           // a path, or "none"
	Reason string `json:"reason,omitempty"` // why it is none, or what could not be checked
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

// OpenBTF finds the types of this kernel's structures, which programs that
// read them need: the kernel's own where it has them, else those in path, a
// file or a directory as [FindBTF] wants it. Types that the library would find
// by itself (a vmlinux of this release with its debug information) come last.
//
// A nil Spec means that the library looks for the kernel's own, or that there
// is none and the source says so. An error means that path was looked at and is
// of no use: what needs no types works all the same.
func (f Facts) OpenBTF(path string) (*btf.Spec, BTFSource, error) {
	if f.KernelBTF.Yes {
		s := BTFSource{Source: ownBTFPath}
		if path != "" {
			s.Reason = path + " is not needed: the kernel has its own"
		}
		return nil, s, nil
	}
	if path != "" {
		spec, s, err := FindBTF(path, f.Release, f.Machine)
		if err != nil {
			return nil, BTFSource{Source: noBTF, Reason: text(err)}, err
		}
		return spec, s, nil
	}
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, BTFSource{Source: noBTF, Reason: "the kernel was built without it, and none was named (--btf)"}, nil
	}
	if err := plausible(spec, f.Machine); err != nil {
		return nil, BTFSource{Source: noBTF, Reason: "a vmlinux of this release: " + err.Error()}, nil
	}
	return spec, BTFSource{Source: "a vmlinux of this release in /boot or /usr/lib"}, nil
}

// plausible says why these types cannot be those of a kernel for this machine.
// Which kernel of that machine they are of is not written in them.
func plausible(spec *btf.Spec, machine string) error {
	var task, regs *btf.Struct
	if err := spec.TypeByName("task_struct", &task); errors.Is(err, btf.ErrNotFound) {
		return errors.New("it has no struct task_struct, so it is not a kernel's")
	} else if err != nil {
		return fmt.Errorf("struct task_struct: %w", err)
	}
	want, ok := map[string]string{"x86_64": "r15", "aarch64": "pstate"}[machine]
	if !ok {
		return nil
	}
	if err := spec.TypeByName("pt_regs", &regs); err != nil {
		return fmt.Errorf("struct pt_regs: %w", err)
	}
	if !hasMember(regs, want) {
		return fmt.Errorf("its struct pt_regs is not that of %s", machine)
	}
	return nil
}

func hasMember(s *btf.Struct, name string) bool {
	for _, m := range s.Members {
		if m.Name == name {
			return true
		}
		if inner, ok := btf.UnderlyingType(m.Type).(*btf.Struct); ok && m.Name == "" && hasMember(inner, name) {
			return true
		}
		if u, ok := btf.UnderlyingType(m.Type).(*btf.Union); ok && m.Name == "" {
			for _, um := range u.Members {
				if inner, ok := btf.UnderlyingType(um.Type).(*btf.Struct); ok && hasMember(inner, name) {
					return true
				}
			}
		}
	}
	return false
}
