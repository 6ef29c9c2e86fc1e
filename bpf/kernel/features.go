package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// features asks what programs may use. Each answer comes from loading a
// program or making a map.
func (f *Facts) features() {
	f.AttachCookie = answer(features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetAttachCookie))
	f.FuncIP = answer(features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetFuncIp))
	f.RingBuffer = answer(features.HaveMapType(ebpf.RingBuf))
	f.TaskStorage = answer(features.HaveMapType(ebpf.TaskStorage))
	f.FetchAtomics = answer(fetchAtomics())
}

// fetchAtomics runs a program that adds to 5 and takes what was there, in one
// instruction. To load it is not enough: a verifier that does not know the bit
// could take the instruction for one that only adds.
func fetchAtomics() error {
	add := asm.FetchAdd.Mem(asm.RFP, asm.R1, asm.DWord, -8)
	add.Constant = 0x01 // BPF_ADD|BPF_FETCH: the library (0.22.0) writes the immediate that it finds, which is 0
	prog, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name: "probity_fetch", Type: ebpf.SocketFilter, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, 5),
			asm.StoreMem(asm.RFP, -8, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R1, 1),
			add,
			asm.Mov.Reg(asm.R0, asm.R1),
			asm.Return(),
		},
	}, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return fmt.Errorf("load a program: %w", cause(err))
	}
	defer prog.Close()
	got, err := prog.Run(&ebpf.RunOptions{Data: make([]byte, 64), Repeat: 1})
	if err != nil {
		return fmt.Errorf("run a program: %w", cause(err))
	}
	if got != 5 {
		return fmt.Errorf("the kernel takes such a program, and gives it %d for 5", got)
	}
	return nil
}

func tracefs() error {
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		if _, err := os.Stat(filepath.Join(dir, "events", hookGroup, hookEvent, "id")); err == nil {
			return nil
		}
	}
	return errors.New("not mounted on /sys/kernel/tracing or /sys/kernel/debug/tracing")
}

// perfMechanisms names what a perf event of this kind is: the library takes
// the kernel's own perf event for probes where there is one (4.17), and makes
// an event in tracefs only where there is none.
func perfMechanisms(kind string) (withCookie, perSite Mechanism) {
	if _, err := os.Stat("/sys/bus/event_source/devices/" + kind + "/type"); errors.Is(err, os.ErrNotExist) {
		return TracefsLink, TracefsEvent
	}
	return PerfLink, PerfEvent
}

// lockdown reads "[none] integrity confidentiality".
func lockdown() string {
	b, err := os.ReadFile("/sys/kernel/security/lockdown")
	if errors.Is(err, os.ErrNotExist) {
		return "not known: securityfs is not mounted, or the kernel has no lockdown"
	}
	if err != nil {
		return "not known: " + text(err)
	}
	_, rest, _ := strings.Cut(string(b), "[")
	mode, _, ok := strings.Cut(rest, "]")
	if !ok {
		return fmt.Sprintf("not known: /sys/kernel/security/lockdown says %q", b)
	}
	return mode
}

// kprobeBlacklist counts the functions that kprobes may not be put on.
func kprobeBlacklist() string {
	b, err := os.ReadFile("/sys/kernel/debug/kprobes/blacklist")
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "not known: no kprobes in debugfs, or it is not mounted"
	case err != nil:
		return "not known: " + text(err)
	}
	return fmt.Sprintf("%d functions", bytes.Count(b, []byte("\n")))
}
