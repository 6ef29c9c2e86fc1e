/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Everything that differs between the kernels that we support, one commented
 * block each.
 */
#ifndef PROBITY_KERNEL_DRIFT_H
#define PROBITY_KERNEL_DRIFT_H

/*
 * struct linux_binprm: only the members we read, relocated by BTF (CO-RE) when
 * the raw tracepoint is loaded. Their names have not changed since 2.6.
 */
struct linux_binprm {
	struct file *file;
	const char *filename;
	const char *interp;
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
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	char comm[16];
	struct fs_struct *fs;
	struct files_struct *files;
	struct css_set *cgroups;
	struct signal_struct *signal;
	struct nsproxy *nsproxy;
	unsigned int personality;
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

/*
 * The same without the kernel's types: where thread_info has been since 5.11.
 * Without types no kernel older than 5.15 can tell whose cgroup it is in.
 */
#if defined(__TARGET_ARCH_x86)
#define THREAD_STATUS 16
#else
#define THREAD_FLAGS 0
#endif

static __always_inline int is_compat_task_bare(void)
{
	void *task = (void *)bpf_get_current_task();
	__u64 v = 0;

#if defined(__TARGET_ARCH_x86)
	bpf_probe_read_kernel(&v, sizeof(__u32), task + THREAD_STATUS);
	return v & 0x2;
#else
	bpf_probe_read_kernel(&v, sizeof(v), task + THREAD_FLAGS);
	return (v >> 22) & 1;
#endif
}

/* The system call that a task is in: its number, its arguments (calls.h). */
struct pt_regs {
#if defined(__TARGET_ARCH_x86)
	unsigned long r10, r9, r8, bp, bx, dx, si, di, cx, orig_ax, ip;
#else
	unsigned long regs[31];
	unsigned long pc;
	unsigned long orig_x0;
	__s32 syscallno;
#endif
} __attribute__((preserve_access_index));

static __always_inline __u64 syscall_of(struct pt_regs *regs)
{
#if defined(__TARGET_ARCH_x86)
	return (__u32)BPF_CORE_READ(regs, orig_ax); /* as the kernel does: the upper half is ignored */
#else
	return (__u32)BPF_CORE_READ(regs, syscallno);
#endif
}

/*
 * An inode's change time: i_ctime until 6.5, __i_ctime until 6.10, then two
 * members, of whose nanoseconds the top bit is a mark from 6.13 on.
 */
struct timespec64 {
	__s64 tv_sec;
	long tv_nsec;
} __attribute__((preserve_access_index));

struct inode___old {
	struct timespec64 i_ctime;
} __attribute__((preserve_access_index));

struct inode___6_6 {
	struct timespec64 __i_ctime;
} __attribute__((preserve_access_index));

struct inode___6_11 {
	__s64 i_ctime_sec;
	__u32 i_ctime_nsec;
} __attribute__((preserve_access_index));

/*
 * What overlayfs maps is a file of a layer. Until 6.6 its path is the one in
 * the overlay; from 6.7 on its path is the layer's and the overlay's is beside
 * it. Then it is marked FMODE_BACKING, which is bit 25 until 6.13 and bit 24
 * from 6.14 on, where bit 25 means something else.
 */
#define FMODE_BACKING_6_5 0x2000000
#define FMODE_BACKING_6_14 0x1000000

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
} __attribute__((preserve_access_index));

struct backing_file {
	struct path user_path;
} __attribute__((preserve_access_index));

/*
 * bpf_get_current_ancestor_cgroup_id exists since 5.6, but for programs of our
 * types only since 5.15. Before, a cgroup lists the ids of its ancestors, and
 * the Go side says at which offset, from the kernel's BTF: a relocation would
 * make newer kernels need BTF for nothing. It must be inline: verifiers of that
 * time don't know after a call which states are alike, and never come to an end
 * with the loop around it.
 */
struct cgroup_offsets {
	__u32 task_cgroups;	/* 0: the kernel has the helper */
	__u32 css_set_dfl_cgrp;
	__u32 cgroup_level;
	__u32 cgroup_ancestor_ids;
};

const volatile struct cgroup_offsets ancestor_offsets = {};

static __always_inline __u64 current_ancestor_cgroup_id(__u32 level)
{
	void *at;
	__u64 id = 0;
	int depth = -1;

	if (!ancestor_offsets.task_cgroups)
		return bpf_get_current_ancestor_cgroup_id(level);
	at = (void *)bpf_get_current_task();
	bpf_probe_read_kernel(&at, sizeof(at), at + ancestor_offsets.task_cgroups);
	bpf_probe_read_kernel(&at, sizeof(at), at + ancestor_offsets.css_set_dfl_cgrp);
	bpf_probe_read_kernel(&depth, sizeof(depth), at + ancestor_offsets.cgroup_level);
	if (depth < (int)level)
		return 0;
	bpf_probe_read_kernel(&id, sizeof(id), at + ancestor_offsets.cgroup_ancestor_ids + level * sizeof(id));
	return id;
}

/*
 * The registers that a user probe's program is given: the machines' own, which
 * are the kernel's interface (struct pt_regs, struct user_pt_regs), by index.
 */
#if defined(__TARGET_ARCH_x86)
#define REG_SP 19
#define REG_G 1		/* r14: the goroutine, since Go 1.17 */
#else
#define REG_SP 31
#define REG_LINK 30
#define REG_G 28
#endif
#define user_reg(ctx, i) (((const volatile __u64 *)(ctx))[i])

/* The address that a function returns to, at its first instruction or its return. */
static __always_inline __u64 return_address(void *ctx)
{
#if defined(__TARGET_ARCH_x86)
	__u64 address = 0;

	bpf_probe_read_user(&address, sizeof(address), (void *)user_reg(ctx, REG_SP));
	return address;
#else
	return user_reg(ctx, REG_LINK);
#endif
}

#endif
