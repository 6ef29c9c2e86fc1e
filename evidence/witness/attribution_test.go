package witness

import (
	"testing"

	"probity/bpf/probe"
	"probity/evidence/score"
)

// Whose an event of the kernel is cannot be said as surely as whose a function
// of a file is: it may be an interrupt's.
func TestAttribution(t *testing.T) {
	for _, c := range []struct {
		what probe.Planned
		want string
	}{
		{probe.Planned{Symbol: "hello", HasOffset: true}, score.AttributionCgroup},
		{probe.Planned{Marker: "libc:setjmp", Event: "libc:setjmp"}, score.AttributionCgroup},
		{probe.Planned{Function: "getppid", Syscall: true}, score.AttributionCgroup},
		{probe.Planned{Set: "network"}, score.AttributionCgroup},
		{probe.Planned{Event: "syscalls:sys_enter_getppid"}, score.AttributionCgroup},
		{probe.Planned{Event: "raw_syscalls:sys_enter"}, score.AttributionCgroup},
		{probe.Planned{Event: "sys_exit"}, score.AttributionCgroup},
		{probe.Planned{Event: "sched:sched_process_exec"}, score.AttributionCgroup},
		{probe.Planned{Event: "sched_process_exit"}, score.AttributionCgroup},
		{probe.Planned{Event: "task:task_rename"}, score.AttributionCgroup},
		{probe.Planned{Function: "tcp_v4_rcv"}, score.AttributionCurrent},
		{probe.Planned{Event: "softirq_entry"}, score.AttributionCurrent},
		{probe.Planned{Event: "irq:irq_handler_entry"}, score.AttributionCurrent},
		{probe.Planned{Event: "sched:sched_switch"}, score.AttributionCurrent},
	} {
		s := &site{Site: &probe.Site{Planned: &c.what}}
		if got := attributionOf(s); got != c.want {
			t.Errorf("%+v: %s, want %s", c.what, got, c.want)
		}
	}
}
