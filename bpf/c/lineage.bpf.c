// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Lineage: which processes are a container's own. A process becomes one by an
 * execve inside an armed cgroup, its children are by birth, and it stays one
 * until it ends or leaves the cgroup's subtree.
 *
 * What a runtime does inside the cgroup before the container's first execve
 * (`runc init` makes a thousand system calls there) is not the container; nor
 * is what an exec session does before its own.
 *
 * Each event has two ways in: the tracepoint, whose record tracefs describes,
 * and the raw tracepoint, whose arguments need the kernel's BTF.
 */
#include <linux/types.h>
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "attribution.h"
#include "files.h"
#include "kernel_drift.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* A process of the container that is not, or not any more, in the map. */
static __always_inline void count_untracked(__u64 cgroup)
{
	struct run *r;

	r = bpf_map_lookup_elem(&runs, &cgroup);
	if (r)
		__sync_fetch_and_add(&r->untracked, 1);
}

/* Gives back to a run's share of the map. */
static __always_inline void discount(__u64 cgroup)
{
	struct run *r;

	if (!cgroup)
		return;
	r = bpf_map_lookup_elem(&runs, &cgroup);
	if (r)
		__sync_fetch_and_add(&r->processes, -1);
}

static __always_inline void unmark(__u32 tgid)
{
	struct process *p;
	__u64 counted;

	p = bpf_map_lookup_elem(&processes, &tgid);
	if (!p)
		return;
	counted = p->counted;
	if (!bpf_map_delete_elem(&processes, &tgid))
		discount(counted);
}

/*
 * Makes a process the container's in whose cgroup p says it is. All containers
 * share the map, so none may have more than its share: who bears processes
 * without end loses sight of its own, which is counted, and not of others'.
 * The share may be passed by as many as there are processors.
 */
static __always_inline void mark(__u32 tgid, struct process *p)
{
	struct settings *set;
	struct process *known;
	struct run *r;
	__u64 before;
	__u32 zero = 0;

	known = bpf_map_lookup_elem(&processes, &tgid);
	before = known ? known->counted : 0;
	r = bpf_map_lookup_elem(&runs, &p->cgroup);
	set = bpf_map_lookup_elem(&settings, &zero);
	p->counted = 0;
	if (r && set) {
		if (before != p->cgroup && r->processes >= set->share) {
			__sync_fetch_and_add(&r->untracked, 1);
			unmark(tgid); /* what it was is over */
			return;
		}
		p->counted = p->cgroup;
		__sync_fetch_and_add(&r->processes, 1);
	}
	if (bpf_map_update_elem(&processes, &tgid, p, BPF_ANY)) {
		discount(p->counted);
		count_untracked(p->cgroup);
		return;
	}
	discount(before);
}

/* What was executed. Without the kernel's types only the path is known. */
struct executed {
	const char *filename;
	const char *interp;
	const unsigned char *name;
	__u64 device;
	__u64 inode;
	__s64 ctime;
	__s64 size;
};

static __always_inline void read_text(char *to, __u32 size, const void *from)
{
	to[0] = 0;
	if (from && bpf_probe_read_kernel_str(to, size, from) < 0)
		to[0] = 0;
}

static __always_inline void tell_exec(__u64 cgroup, struct run *r, __u32 session, __u64 now, const struct executed *x)
{
	struct exec_event *e;
	__u64 id;

	if (!r->first_exec_ns)
		r->first_exec_ns = now;
	r->last_exec_ns = now;
	__sync_fetch_and_add(&r->execs, 1);
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		__sync_fetch_and_add(&r->execs_lost, 1);
		count_ring_full(cgroup);
		return;
	}
	id = bpf_get_current_pid_tgid();
	e->type = EVENT_EXEC;
	e->session = session;
	e->cgroup = cgroup;
	e->ns = now;
	e->pid = id >> 32;
	e->tid = (__u32)id;
	e->device = x->device;
	e->inode = x->inode;
	e->ctime = x->ctime;
	e->size = x->size;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	read_text(e->path, sizeof(e->path), x->filename);
	read_text(e->interp, sizeof(e->interp), x->interp);
	read_text(e->name, sizeof(e->name), x->name);
	bpf_ringbuf_submit(e, 0);
}

/*
 * A process that is not known, does not descend from one that is, and is not the
 * container's first one was put there from outside: an exec session. Which one is the
 * first its runtime says. The order of the calls of execve does not: a runtime that has
 * let init go on does not wait for its execve, and a session may come before it. Only
 * where the first one is not known, whoever calls execve first is taken for it.
 */
static __always_inline __u32 session_of(const struct run *r, __u32 tgid)
{
	if (r->init)
		return tgid == r->init ? SESSION_INIT : SESSION_EXEC;
	return r->first_exec_ns ? SESSION_EXEC : SESSION_INIT;
}

static __always_inline int on_exec(const struct executed *x)
{
	struct process p = {}, *known;
	__u32 levels, i, tgid;
	__u64 cgroup, now = 0;
	struct run *r;

	levels = armed_levels();
	if (!levels)
		return 0;
	tgid = current_tgid();
	known = bpf_map_lookup_elem(&processes, &tgid);
	for_each_armed(i, levels, cgroup) {
		r = bpf_map_lookup_elem(&runs, &cgroup);
		if (!r)
			continue;
		if (!now)
			now = bpf_ktime_get_boot_ns();
		if (is_containers(known, i))
			p.session = known->session;
		else
			p.session = session_of(r, tgid);
		p.cgroup = cgroup;
		p.level = i;
		tell_exec(cgroup, r, p.session, now, x);
	}
	if (!p.cgroup)
		return 0;
	if (known && known->cgroup == p.cgroup) {
		known->fresh = 0;
		return 0;
	}
	p.fresh = 1;
	mark(tgid, &p);
	return 0;
}

SEC("tracepoint/sched/sched_process_exec")
int exec_tracepoint(struct sched_process_exec_record *ctx)
{
	struct executed x = { .filename = (const char *)ctx + (ctx->filename_loc & 0xffff) };

	return on_exec(&x);
}

SEC("raw_tracepoint/sched_process_exec")
int exec_raw(struct bpf_raw_tracepoint_args *ctx)
{
	struct linux_binprm *bprm = (struct linux_binprm *)ctx->args[2];

	struct file *f = BPF_CORE_READ(bprm, file);
	struct inode *inode = BPF_CORE_READ(f, f_inode);
	struct dentry *dentry = BPF_CORE_READ(f, f_path.dentry);
	struct executed x = {};

	x.filename = BPF_CORE_READ(bprm, filename);
	x.interp = BPF_CORE_READ(bprm, interp);
	if (x.interp == x.filename)
		x.interp = 0;
	x.device = device_of(inode);
	x.inode = BPF_CORE_READ(inode, i_ino);
	x.ctime = ctime_of(inode);
	x.size = BPF_CORE_READ(inode, i_size);
	if (BPF_CORE_READ(inode, i_nlink) <= 1 && dentry != BPF_CORE_READ(f, f_path.mnt, mnt_root))
		x.name = BPF_CORE_READ(dentry, d_name.name);
	return on_exec(&x);
}

static __always_inline void count_left(__u64 cgroup, __u32 pid, __u32 tid)
{
	struct lost_event *e;
	struct run *r;

	r = bpf_map_lookup_elem(&runs, &cgroup);
	if (!r)
		return;
	__sync_fetch_and_add(&r->left, 1);
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count_ring_full(cgroup);
		return;
	}
	e->type = EVENT_LOST;
	e->pad = 0;
	e->cgroup = cgroup;
	e->ns = bpf_ktime_get_boot_ns();
	e->pid = pid;
	e->tid = tid;
	bpf_ringbuf_submit(e, 0);
}

/*
 * A child is what its parent is. Numbers are used again: what is known of an
 * earlier process with the child's number is forgotten.
 */
static __always_inline bool on_fork(__u32 child)
{
	struct process *parent, p;

	parent = current_process();
	if (!parent) {
		unmark(child);
		return false;
	}
	p = *parent;
	p.fresh = 0;
	p.ending = 0;
	mark(child, &p);
	return true;
}

/*
 * Where sched_process_fork has child_pid and sched_process_free has pid: the
 * names before them became __data_loc in 6.17 and were arrays of 16 bytes
 * earlier, so the Go side reads the offset from tracefs.
 */
const volatile __u32 pid_offset = 0;

static __always_inline __u32 record_pid(void *ctx)
{
	__u32 pid = 0;

	bpf_probe_read_kernel(&pid, sizeof(pid), ctx + pid_offset);
	return pid;
}

/*
 * The record's child_pid is a thread's as well: then it is a number that nobody
 * looks up, until its thread is freed or the number becomes a process's.
 */
SEC("tracepoint/sched/sched_process_fork")
int fork_tracepoint(void *ctx)
{
	on_fork(record_pid(ctx));
	return 0;
}

static __always_inline struct cgroup *parent_of(struct cgroup *cgrp)
{
	struct cgroup_subsys_state *css;

	css = BPF_CORE_READ(cgrp, self.parent);
	return css ? (void *)css - bpf_core_field_offset(struct cgroup, self) : NULL;
}

/* Whether a cgroup is in the subtree in which the process belongs. */
static __always_inline bool is_below(struct cgroup *cgrp, const struct process *p)
{
	__s32 up, i;

	up = BPF_CORE_READ(cgrp, level) - (__s32)p->level;
	if (up < 0)
		return false;
	for (i = 0; i < MAX_LEVEL && i < up; i++) {
		cgrp = parent_of(cgrp);
		if (!cgrp)
			return false;
	}
	return BPF_CORE_READ(cgrp, kn, id) == p->cgroup;
}

/* The depth of the cgroup with the id, if it is cgrp or around it; else -1. */
static __always_inline __s32 level_around(struct cgroup *cgrp, __u64 id)
{
	__s32 i;

	for (i = 0; i < MAX_LEVEL && cgrp; i++) {
		if (BPF_CORE_READ(cgrp, kn, id) == id)
			return BPF_CORE_READ(cgrp, level);
		cgrp = parent_of(cgrp);
	}
	return -1;
}

#define MAX_AROUND 8	/* armed containers, each within the next, of which a process is told */

/*
 * A process of p's container has come into a cgroup that is not below its
 * container's. It has left that one, and those around it until one that has
 * the cgroup below it too: that one's it still is. A single thread leaves its
 * process behind, which stays what it is; of the thread no container knows any
 * more.
 */
static __always_inline void on_left(struct cgroup *to, const struct process *p, __u32 tgid, __u32 pid, bool whole)
{
	struct process now = *p;
	__u64 id = p->cgroup, *outer;
	__s32 i, level;

	for (i = 0; i < MAX_AROUND; i++) {
		level = i && whole ? level_around(to, id) : -1;
		if (level >= 0) {
			now.cgroup = id;
			now.level = level;
			mark(tgid, &now);
			return;
		}
		count_left(id, tgid, pid);
		outer = bpf_map_lookup_elem(&outers, &id);
		if (!outer)
			break;
		id = *outer;
	}
	if (whole)
		unmark(tgid);
}

/*
 * clone3 may bear a child into another cgroup (CLONE_INTO_CGROUP), of which no
 * migration tells. Where it is is read after it was marked: whoever moves it
 * between finds a mark, or is found here.
 */
SEC("raw_tracepoint/sched_process_fork")
int fork_raw(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *child = (struct task_struct *)ctx->args[1];
	struct process *parent, p;
	struct cgroup *in;
	__u32 pid, tgid;

	pid = BPF_CORE_READ(child, pid);
	tgid = BPF_CORE_READ(child, tgid);
	if (pid != tgid || !on_fork(tgid))
		return 0;
	parent = current_process();
	in = BPF_CORE_READ(child, cgroups, dfl_cgrp);
	if (parent && !is_below(in, parent)) {
		p = *parent;
		p.fresh = 0;
		p.ending = 0;
		on_left(in, &p, tgid, pid, true);
	}
	return 0;
}

/*
 * The first thread's task is freed last, also if it has ended long before. By the
 * record it cannot be seen whether the number is another's by then.
 */
SEC("tracepoint/sched/sched_process_free")
int free_tracepoint(void *ctx)
{
	unmark(record_pid(ctx));
	return 0;
}

/*
 * The end of a process is the end of its last thread. It goes on working for the
 * container: it closes its files and connections on the way out. A number may be
 * used again before the task is freed, and then is not marked.
 */
SEC("raw_tracepoint/sched_process_exit")
int exit_raw(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	struct process *p;
	__u32 tgid;

	if (BPF_CORE_READ(task, signal, live.counter) > 0)
		return 0;
	tgid = BPF_CORE_READ(task, tgid);
	p = bpf_map_lookup_elem(&processes, &tgid);
	if (p)
		p->ending = 1;
	return 0;
}

SEC("raw_tracepoint/sched_process_free")
int free_raw(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	struct process *p;
	__u32 pid;

	pid = BPF_CORE_READ(task, pid);
	p = bpf_map_lookup_elem(&processes, &pid);
	if (p && p->ending)
		unmark(pid);
	return 0;
}

/*
 * A process was moved. cgroup_attach_task is called once per migration with the
 * leader of what is moved, for processes as for single threads (which can only
 * be moved within a threaded subtree).
 */
SEC("raw_tracepoint/cgroup_attach_task")
int move_raw(struct bpf_raw_tracepoint_args *ctx)
{
	struct cgroup *to = (struct cgroup *)ctx->args[0];
	struct task_struct *task = (struct task_struct *)ctx->args[2];
	struct process *p, copy;
	__u32 tgid;

	tgid = BPF_CORE_READ(task, tgid);
	p = bpf_map_lookup_elem(&processes, &tgid);
	if (!p)
		return 0;
	/* A cgroup of a v1 hierarchy says nothing of where the task is. */
	if (BPF_CORE_READ(to, root, hierarchy_id) != BPF_CORE_READ(task, cgroups, dfl_cgrp, root, hierarchy_id))
		return 0;
	if (is_below(to, p))
		return 0;
	copy = *p;
	on_left(to, &copy, tgid, BPF_CORE_READ(task, pid), ctx->args[3] & 1);
	return 0;
}
