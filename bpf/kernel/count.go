package kernel

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// tally is what the programs on trial write to: for each trial a count, the
// cookie it saw, and what bpf_get_stack said.
type tally struct{ m *ebpf.Map }

const (
	tallySize   = 56 // count, cookie, what bpf_get_stack returned, one struct bpf_stack_build_id
	tallyCookie = 8
	tallyStack  = 16
	tallyFrame  = 24
	maxTrials   = 32
)

func newTally() (*tally, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "probity_tally", Type: ebpf.Array, KeySize: 4, ValueSize: tallySize, MaxEntries: maxTrials})
	if err != nil {
		return nil, fmt.Errorf("make a map: %w", err)
	}
	return &tally{m}, nil
}

// seen is what one trial's program wrote.
type seen struct {
	count, cookie uint64
	stack         int64
	buildID       bool // the first frame has a build-id
}

func (t *tally) read(trial uint32) (seen, error) {
	var b [tallySize]byte
	if err := t.m.Lookup(trial, &b); err != nil {
		return seen{}, fmt.Errorf("read the count: %w", err)
	}
	order := binary.NativeEndian
	return seen{
		count: order.Uint64(b[0:]), cookie: order.Uint64(b[tallyCookie:]), stack: int64(order.Uint64(b[tallyStack:])),
		buildID: order.Uint32(b[tallyFrame:]) == 1, // BPF_STACK_BUILD_ID_VALID
	}, nil
}

// BPF_F_USER_STACK | BPF_F_USER_BUILD_ID
const userBuildID = 1<<8 | 1<<11

// program counts its runs. What it uses is what every kernel has had since
// 4.18, and the cookie's helper if that is asked for.
func (t *tally) program(trial uint32, cookie, stack bool) asm.Instructions {
	ins := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.StoreImm(asm.RFP, -4, int64(trial), asm.Word),
		asm.LoadMapPtr(asm.R1, t.m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R7, asm.R1, asm.DWord),
	}
	if cookie {
		ins = append(ins,
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.FnGetAttachCookie.Call(),
			asm.StoreMem(asm.R7, tallyCookie, asm.R0, asm.DWord),
		)
	}
	if stack {
		ins = append(ins,
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Reg(asm.R2, asm.R7),
			asm.Add.Imm(asm.R2, tallyFrame),
			asm.Mov.Imm(asm.R3, tallySize-tallyFrame),
			asm.Mov.Imm(asm.R4, userBuildID),
			asm.FnGetStack.Call(),
			asm.StoreMem(asm.R7, tallyStack, asm.R0, asm.DWord),
		)
	}
	return append(ins, asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), asm.Return())
}

func (t *tally) load(spec ebpf.ProgramSpec, trial uint32, cookie, stack bool) (*ebpf.Program, error) {
	spec.Name = "probity_trial"
	spec.License = "Dual BSD/GPL"
	spec.Instructions = t.program(trial, cookie, stack)
	prog, err := ebpf.NewProgramWithOptions(&spec, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return nil, fmt.Errorf("load a program of type %s: %w", spec.Type, cause(err))
	}
	return prog, nil
}

func (t *tally) close() error { return t.m.Close() }
