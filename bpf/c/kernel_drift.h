/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Everything that differs between the kernels that we support, one commented
 * block each.
 */
#ifndef PROBITY_KERNEL_DRIFT_H
#define PROBITY_KERNEL_DRIFT_H

/*
 * struct linux_binprm: only the member we read, relocated by BTF (CO-RE) when
 * the raw tracepoint is loaded. The member's name has not changed since 2.6.
 */
struct linux_binprm {
	const char *filename;
} __attribute__((preserve_access_index));

/*
 * The record of the tracepoint sched:sched_process_exec as tracefs describes
 * it in events/sched/sched_process_exec/format; unchanged from 3.5 to 7.2.
 * filename is a __data_loc: offset from the record's start in the low 16 bits.
 */
struct sched_process_exec_record {
	__u64 common;
	__u32 filename_loc;
	__s32 pid;
	__s32 old_pid;
};

/*
 * bpf_get_attach_cookie (since 5.15 for perf links, 6.6 for uprobe_multi) is
 * absent from older kernels, where one copy of the program is loaded per site
 * with its number in fixed_site. The verifier prunes the other branch, so the
 * unknown helper is never looked at.
 */
const volatile __u32 fixed_site = 0;

#endif
