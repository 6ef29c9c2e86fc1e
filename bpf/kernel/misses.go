package kernel

import "fmt"

// misses says whether every run that the kernel skips is counted somewhere we
// can read. A counter that never moves cannot be told by trying from one that
// is not there, so this goes by version, and a kernel whose release has no
// version counts nothing.
//
//   - uprobe_multi runs its program without a guard against recursion, so no
//     run is skipped (uprobe_prog_run); nor is one of a uprobe's perf event,
//     from 6.0 on (8c7dcb84e3b7, bpf_prog_run_array_uprobe).
//   - Before, and for kprobes and tracepoints still, trace_call_bpf skips a run
//     while another program runs on the same CPU; counted from 6.7 on
//     (dd8657894c11).
//   - A return is lost uncounted where more than 64 of them are pending in one
//     task (prepare_uretprobe); those of a kretprobe are counted in its link.
//   - Trampolines count what they skip since they skip anything (5.12,
//     9ed9e9ba2337), and so do raw tracepoints (6.1, 05b24ff9b2cf).
func misses(release, probeType string, m Mechanism) (counts bool, reason string) {
	major, minor, ok := version(release)
	if !ok {
		return false, fmt.Sprintf("kernel release %q has no version", release)
	}
	from := func(a, b int) bool { return major > a || major == a && minor >= b }
	switch {
	case probeType == "uretprobe":
		return false, "a return is skipped and not counted when more than 64 are pending in one task"
	case m == UprobeMulti, m == Trampoline, m == RawTracepoint:
		return true, ""
	case probeType == "uprobe" || probeType == "usdt":
		if !from(6, 0) {
			return false, "by version: before 6.0 a run is skipped, and not counted, while another program runs on the same CPU"
		}
		return true, ""
	case !from(6, 7):
		return false, "by version: kernels before 6.7 do not count every skipped run"
	}
	return true, ""
}
