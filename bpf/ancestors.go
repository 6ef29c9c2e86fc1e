package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
)

// tellAncestors tells the programs of the specs where a cgroup lists its
// ancestors, on kernels that lack the helper (before 5.15, see
// c/kernel_drift.h). types are the kernel's, or nil to ask the kernel for them.
func tellAncestors(types *btf.Spec, specs ...*ebpf.CollectionSpec) error {
	if features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetCurrentAncestorCgroupId) == nil {
		return nil
	}
	offsets, err := ancestorOffsets(types)
	if err != nil {
		return fmt.Errorf("find the ancestors of a cgroup, for which this kernel has no helper: %w", err)
	}
	for _, spec := range specs {
		// A program that asks for no ancestors does without the variable.
		if v := spec.Variables["ancestor_offsets"]; v != nil {
			if err := v.Set(offsets); err != nil {
				return fmt.Errorf("set ancestor_offsets: %w", err)
			}
		}
	}
	return nil
}

func ancestorOffsets(types *btf.Spec) (o probesCgroupOffsets, err error) {
	if types == nil {
		if types, err = btf.LoadKernelSpec(); err != nil {
			return o, err
		}
	}
	for _, m := range []struct {
		of, name string
		to       *uint32
	}{
		{"task_struct", "cgroups", &o.TaskCgroups},
		{"css_set", "dfl_cgrp", &o.CssSetDflCgrp},
		{"cgroup", "level", &o.CgroupLevel},
		{"cgroup", "ancestor_ids", &o.CgroupAncestorIds}, // until 6.1
	} {
		var s *btf.Struct
		if err := types.TypeByName(m.of, &s); err != nil {
			return o, err
		}
		bits, ok := memberAt(s.Members, m.name)
		if !ok {
			return o, fmt.Errorf("struct %s has no member %s", m.of, m.name)
		}
		*m.to = bits.Bytes()
	}
	if o.TaskCgroups == 0 {
		return o, errors.New("struct task_struct begins with its cgroups, which no kernel's does")
	}
	return o, nil
}

// memberAt finds a member, in unnamed structures and unions too.
func memberAt(members []btf.Member, name string) (btf.Bits, bool) {
	for _, m := range members {
		if m.Name == name {
			return m.Offset, true
		}
		var inner []btf.Member
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if m.Name != "" {
			continue
		}
		if at, ok := memberAt(inner, name); ok {
			return m.Offset + at, true
		}
	}
	return 0, false
}
