package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// byStub is BY_STUB in c/probity.bpf.c.
const byStub = ^uint64(0)

// stub returns a program for one site that says which one it is and goes on in
// the shared program. The verifier and the compiler of the kernel look at the
// shared program once, and at ten instructions for each site.
func (o *Objects) stub(name string, at At) (*Program, error) {
	o.progs.mu.Lock()
	defer o.progs.mu.Unlock()
	body, err := o.commonLocked(at.Pair, name, func(s *ebpf.CollectionSpec) error {
		return s.Variables[probesVarFixedSite].Set(byStub)
	})
	if err != nil {
		return nil, err
	}
	array, err := o.stubArray(sharedKey{at.Pair, name}, body)
	if err != nil {
		return nil, fmt.Errorf("make %s callable: %w", name, err)
	}
	p, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name: "probity_stub", Type: body.Type(), License: "Dual BSD/GPL",
		Instructions: stubOf(at.Cookie(), o.coll.Maps[probesMapStubCookie], array),
	}, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return nil, fmt.Errorf("load the stub of %s: %w", name, err)
	}
	return o.own(p, name), nil
}

// stubArray returns the array that holds nothing but the program. The kernel
// empties it when nobody has it open any more, so it is kept open until Close.
// With progs.mu held.
func (o *Objects) stubArray(k sharedKey, body *ebpf.Program) (*ebpf.Map, error) {
	if m := o.progs.stubbed[k]; m != nil {
		return m, nil
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "probity_stubs", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	if err := m.Put(uint32(0), body); err != nil {
		m.Close()
		return nil, err
	}
	if o.progs.stubbed == nil {
		o.progs.stubbed = map[sharedKey]*ebpf.Map{}
	}
	o.progs.stubbed[k] = m
	return m, nil
}

// stubOf leaves the cookie where the shared program looks for it, and calls
// that. Neither step can fail: the map has its one element, the array its one
// program.
func stubOf(cookie uint64, told, array *ebpf.Map) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, told.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadImm(asm.R1, int64(cookie), asm.DWord),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, array.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return(),
	}
}
