// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Sites: count hits per (container, site) and tell of the first one.
 *
 * Counters are the truth, the ring buffer carries detail only: a full ring
 * costs the detail, is counted, and never costs a count.
 */
#include <linux/types.h>
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "attribution.h"
#include "kernel_drift.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Emitted so that bpf2go finds the types of ring buffer records. */
const enum event_type *unused_event_type __attribute__((unused));
const struct hit_event *unused_hit_event __attribute__((unused));
const struct exec_event *unused_exec_event __attribute__((unused));
const struct lost_event *unused_lost_event __attribute__((unused));
const enum session *unused_session __attribute__((unused));

/*
 * bpf_get_attach_cookie (since 5.15 for perf links, 6.6 for uprobe_multi) is
 * absent from older kernels and from some types of programs, where one copy of
 * the program is loaded per site with its number in fixed_site. The verifier
 * prunes the other branch, so the unknown helper is never looked at.
 */
const volatile __u32 fixed_site = 0;

/* Of the programs on all system calls: the one that their site is about. */
const volatile __u64 fixed_syscall = 0;

static __always_inline __u32 site_of(void *ctx)
{
	return fixed_site ? fixed_site : (__u32)bpf_get_attach_cookie(ctx);
}

static __always_inline void account_hit(struct slot_key *key, __u64 *now)
{
	struct process *p;
	struct hit_event *e;
	struct slot *s;
	__u64 id, first;

	s = bpf_map_lookup_elem(&slots, key);
	if (!s)
		return;
	if (!*now)
		*now = bpf_ktime_get_boot_ns();
	/*
	 * Times before the count: whoever reads a count finds its times. Two
	 * processors may both see 0 and both tell: fetching atomics need 5.12.
	 * The agent takes the earlier of the two.
	 */
	first = s->first_ns;
	if (!first)
		s->first_ns = *now;
	s->last_ns = *now;
	__sync_fetch_and_add(&s->count, 1);
	if (first)
		return;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count_ring_full(key->cgroup);
		return;
	}
	id = bpf_get_current_pid_tgid();
	e->type = EVENT_HIT;
	e->site = key->site;
	e->cgroup = key->cgroup;
	e->ns = *now;
	e->pid = id >> 32;
	e->tid = (__u32)id;
	p = current_process();
	e->session = p ? p->session : SESSION_UNKNOWN;
	e->pad = 0;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	bpf_ringbuf_submit(e, 0);
}

/*
 * A site in a file. Only depths at which some container is armed are looked at,
 * so a neighbour on a probed inode pays for one or two failed lookups besides
 * the trap.
 */
static __always_inline int on_hit(__u32 site)
{
	struct slot_key key = {};
	__u32 levels, i;
	__u64 now = 0;

	levels = armed_levels();
	key.site = site;
	for_each_armed(i, levels, key.cgroup)
		account_hit(&key, &now);
	return 0;
}

/*
 * A site in the kernel: everybody comes by. It counts for the container's own
 * processes only, and not for the runtime's that works inside its cgroup.
 */
static __always_inline int on_kernel_hit(__u32 site)
{
	struct slot_key key = {};
	struct process *p;
	__u32 levels, i;
	__u64 now = 0;

	p = current_process();
	if (!p)
		return 0;
	levels = armed_levels();
	key.site = site;
	for_each_armed(i, levels, key.cgroup) {
		if (is_containers(p, i))
			account_hit(&key, &now);
	}
	return 0;
}

SEC("uprobe.multi")
int uprobe_multi(void *ctx)
{
	return on_hit(site_of(ctx));
}

SEC("uprobe")
int uprobe_single(void *ctx)
{
	return on_hit(site_of(ctx));
}

SEC("kprobe")
int kernel_probe(void *ctx)
{
	return on_kernel_hit(site_of(ctx));
}

SEC("tracepoint")
int kernel_tracepoint(void *ctx)
{
	return on_kernel_hit(site_of(ctx));
}

SEC("raw_tracepoint")
int kernel_raw_tracepoint(void *ctx)
{
	return on_kernel_hit(fixed_site);
}

/* What they attach to is chosen when they are loaded, one copy per function. */
SEC("fentry")
int function_entry(void *ctx)
{
	return on_kernel_hit(fixed_site);
}

SEC("fexit")
int function_return(void *ctx)
{
	return on_kernel_hit(fixed_site);
}

/*
 * One system call, seen at the events of them all. A 32-bit program's numbers
 * mean other calls, so they are left out: the call's own function and
 * tracepoint do not see them either.
 */
SEC("raw_tracepoint/sys_enter")
int syscall_enter_raw(struct bpf_raw_tracepoint_args *ctx)
{
	if (ctx->args[1] != fixed_syscall || is_compat_task())
		return 0;
	return on_kernel_hit(fixed_site);
}

SEC("raw_tracepoint/sys_exit")
int syscall_exit_raw(struct bpf_raw_tracepoint_args *ctx)
{
	if (syscall_of((struct pt_regs *)ctx->args[0]) != fixed_syscall || is_compat_task())
		return 0;
	return on_kernel_hit(fixed_site);
}
