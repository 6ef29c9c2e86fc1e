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
 * The records of tracepoints as tracefs describes them in
 * events/sched/NAME/format. A __data_loc is an offset from the record's start
 * in its low 16 bits.
 *
 * sched_process_exec: unchanged from 3.5 to 7.2.
 */
struct sched_process_exec_record {
	__u64 common;
	__u32 filename_loc;
	__s32 pid;
	__s32 old_pid;
};

/*
 * Members that lineage reads, relocated by BTF. The ancestors of a cgroup are
 * found by the parents of its own css: ancestor_ids[] became ancestors[] in 6.1,
 * and kernfs_node.parent became __parent in 6.15, but self.parent has always
 * been there.
 */
struct kernfs_node {
	__u64 id;
} __attribute__((preserve_access_index));

struct cgroup_root {
	int hierarchy_id;
} __attribute__((preserve_access_index));

struct cgroup_subsys_state {
	struct cgroup_subsys_state *parent;
} __attribute__((preserve_access_index));

struct cgroup {
	struct cgroup_subsys_state self;
	int level;
	struct kernfs_node *kn;
	struct cgroup_root *root;
} __attribute__((preserve_access_index));

struct css_set {
	struct cgroup *dfl_cgrp;
} __attribute__((preserve_access_index));

typedef struct {
	int counter;
} __attribute__((preserve_access_index)) atomic_t;

struct signal_struct {
	atomic_t live;
} __attribute__((preserve_access_index));

/*
 * How a task makes its system calls. Both machines keep it in thread_info, which
 * is the task's first member since 4.9 (x86) and 4.10 (arm64), but not in the
 * same place: TS_COMPAT in status, _TIF_32BIT in flags.
 */
struct thread_info {
#if defined(__TARGET_ARCH_x86)
	__u32 status;
#else
	unsigned long flags;
#endif
} __attribute__((preserve_access_index));

struct task_struct {
	struct thread_info thread_info;
	int pid;
	int tgid;
	struct css_set *cgroups;
	struct signal_struct *signal;
} __attribute__((preserve_access_index));

static __always_inline int is_compat_task(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

#if defined(__TARGET_ARCH_x86)
	return BPF_CORE_READ(task, thread_info.status) & 0x2;
#else
	return (BPF_CORE_READ(task, thread_info.flags) >> 22) & 1;
#endif
}

/* The number of the system call that a task is in. */
struct pt_regs {
#if defined(__TARGET_ARCH_x86)
	unsigned long orig_ax;
#else
	__s32 syscallno;
#endif
} __attribute__((preserve_access_index));

static __always_inline __u64 syscall_of(struct pt_regs *regs)
{
#if defined(__TARGET_ARCH_x86)
	return BPF_CORE_READ(regs, orig_ax);
#else
	return (__u32)BPF_CORE_READ(regs, syscallno);
#endif
}

#endif
