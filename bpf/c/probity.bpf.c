// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Sites: count hits per (container, site) and tell of the first one. The same
 * programs are compiled once more with PAIRS (pairs.bpf.c), where they also
 * time what is between entry and return.
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
const struct stack_event *unused_stack_event __attribute__((unused));
const enum standing *unused_standing __attribute__((unused));
const enum slot_flags *unused_slot_flags __attribute__((unused));
const enum cookie_bits *unused_cookie_bits __attribute__((unused));
const enum session *unused_session __attribute__((unused));

/*
 * bpf_get_attach_cookie (since 5.15 for perf links, 6.6 for uprobe_multi) is
 * absent from older kernels and from some types of programs. Where a program
 * must be loaded for each site anyway (fentry, raw tracepoints) its copy has
 * the cookie in fixed_site. Else fixed_site is BY_STUB, and the program is
 * reached by a tail call from the site's stub (../stub.go), ten instructions
 * that leave the cookie in stub_cookie: a copy of all this took the verifier
 * long. Nothing comes in between: before 5.15 the kernel runs one such program
 * on a processor at a time, and it is not preempted (trace_call_bpf).
 *
 * The verifier prunes the other branches, so an unknown helper is never looked
 * at.
 */
#define BY_STUB (~0ULL)
const volatile __u64 fixed_site = 0;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} stub_cookie SEC(".maps");

/* Of the programs on all system calls: the one that their site is about. */
const volatile __u64 fixed_syscall = 0;

static __always_inline __u64 cookie_of(void *ctx)
{
	__u32 zero = 0;
	__u64 *told;

	if (fixed_site == BY_STUB) {
		told = bpf_map_lookup_elem(&stub_cookie, &zero);
		return told ? *told : 0;
	}
	return fixed_site ? fixed_site : bpf_get_attach_cookie(ctx);
}

/* Whether the slot does not count now. Once its time is over it counts again. */
static __always_inline bool stands_down(struct slot *s, __u64 now)
{
	if (!s->stood_ns)
		return false;
	if (!s->rearm_ns || now < s->stood_ns + s->rearm_ns)
		return true;
	s->base = s->count;
	s->second_ns = now;
	s->second_base = s->count;
	s->stood_ns = 0;
	return false;
}

/* After a hit was counted. */
static __always_inline void stand_down(const struct slot_key *key, struct slot *s, __u64 now)
{
	struct totals *t;
	struct run *r;
	__u32 zero = 0;
	__u64 count;

	count = s->count;
	if (s->stop_after && count - s->base >= s->stop_after) {
		s->standing = STANDING_ANSWERED;
	} else if (!s->max_rate) {
		return;
	} else if (now - s->second_ns >= 1000000000ULL) {
		s->second_ns = now;
		s->second_base = count;
		return;
	} else if (count - s->second_base >= s->max_rate) {
		s->standing = STANDING_TOO_OFTEN;
	} else {
		return;
	}
	/* Another processor may do the same: the agent looks at the time. */
	s->stood_ns = now;
	__sync_fetch_and_add(&s->stood, 1);
	r = bpf_map_lookup_elem(&runs, &key->cgroup);
	if (r)
		__sync_fetch_and_add(&r->stood, 1);
	t = bpf_map_lookup_elem(&totals, &zero);
	if (t)
		__sync_fetch_and_add(&t->stood, 1);
}

static __always_inline void tell_hit(const struct slot_key *key, __u64 now)
{
	struct process *p;
	struct hit_event *e;
	__u64 id;

	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count_ring_full(key->cgroup);
		return;
	}
	id = bpf_get_current_pid_tgid();
	e->type = EVENT_HIT;
	e->site = key->site;
	e->cgroup = key->cgroup;
	e->ns = now;
	e->pid = id >> 32;
	e->tid = (__u32)id;
	p = current_process();
	e->session = p ? p->session : SESSION_UNKNOWN;
	e->pad = 0;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	bpf_ringbuf_submit(e, 0);
}

/* What account_hit returns. */
#define COUNTED 1
#define WANTS_STACK 2
#define WANTS_CALLER 4

/*
 * A hit in one container. A function of its own, which the verifier looks at
 * once and not at each depth; static it would not be one.
 */
__attribute__((noinline)) int account_hit(__u64 cgroup, __u32 site)
{
	struct slot_key key = {};
	__u64 now, first;
	struct slot *s;

	key.cgroup = cgroup;
	key.site = site;
	s = bpf_map_lookup_elem(&slots, &key);
	if (!s)
		return 0;
	now = bpf_ktime_get_boot_ns();
	if (stands_down(s, now))
		return 0;
	/*
	 * Times before the count: whoever reads a count finds its times. Two
	 * processors may both see 0 and both tell: fetching atomics need 5.12.
	 * The agent takes the earlier of the two.
	 */
	first = s->first_ns;
	if (!first)
		s->first_ns = now;
	s->last_ns = now;
	__sync_fetch_and_add(&s->count, 1);
	if (s->stop_after || s->max_rate)
		stand_down(&key, s, now);
	if (first)
		return COUNTED;
	tell_hit(&key, now);
	return COUNTED | (s->flags & SLOT_STACK ? WANTS_STACK : 0) | (s->flags & SLOT_CALLER ? WANTS_CALLER : 0);
}

/*
 * The user stack of a first hit. Where containers are nested and it is the
 * first of several of them, the innermost gets it.
 */
static __always_inline void tell_stack(void *ctx, bool of_file, __u32 site, __u64 cgroup, int wants)
{
	struct stack_event *e;
	__u64 id;

	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count_ring_full(cgroup);
		return;
	}
	id = bpf_get_current_pid_tgid();
	e->type = EVENT_STACK;
	e->site = site;
	e->cgroup = cgroup;
	e->ns = bpf_ktime_get_boot_ns();
	e->pid = id >> 32;
	e->tid = (__u32)id;
	e->caller = of_file && (wants & WANTS_CALLER) ? return_address(ctx) : 0;
	e->ids = bpf_get_stack(ctx, e->build_ids, sizeof(e->build_ids), BPF_F_USER_STACK | BPF_F_USER_BUILD_ID);
	e->addresses = bpf_get_stack(ctx, e->ips, sizeof(e->ips), BPF_F_USER_STACK);
	bpf_ringbuf_submit(e, 0);
}

#ifdef PAIRS
#include "pairs.h"
#else
static __always_inline bool is_return(__u64 cookie) { return false; }
static __always_inline void on_entry(void *ctx, bool of_file, __u64 cookie) {}
static __always_inline void on_return(void *ctx, bool of_file, __u64 cookie) {}
#endif

/*
 * A hit of a site in a file, or in the kernel. Only depths at which some
 * container is armed are looked at, so a neighbour on a probed inode pays for
 * one or two failed lookups besides the trap.
 *
 * By a site in the kernel everybody comes. It counts for the container's own
 * processes only, and not for the runtime's that works inside its cgroup.
 */
static __always_inline int on_place(void *ctx, bool of_file, __u64 cookie)
{
	__u64 cgroup, stack_of = 0;
	struct process *p = NULL;
	int all = 0, one;
	__u32 levels, i;

	if (!of_file) {
		p = current_process();
		if (!p)
			return 0;
	}
	if (is_return(cookie)) {
		on_return(ctx, of_file, cookie);
		return 0;
	}
	levels = armed_levels();
	for_each_armed(i, levels, cgroup) {
		if (!of_file && !is_containers(p, i))
			continue;
		one = account_hit(cgroup, (__u32)cookie);
		all |= one;
		if (one & WANTS_STACK)
			stack_of = cgroup;
	}
	if (stack_of)
		tell_stack(ctx, of_file, (__u32)cookie, stack_of, all);
	if (all)
		on_entry(ctx, of_file, cookie);
	return 0;
}

static __always_inline int on_hit(void *ctx, __u64 cookie)
{
	return on_place(ctx, true, cookie);
}

static __always_inline int on_kernel_hit(void *ctx, __u64 cookie)
{
	return on_place(ctx, false, cookie);
}

SEC("uprobe.multi")
int uprobe_multi(void *ctx)
{
	return on_hit(ctx, cookie_of(ctx));
}

SEC("uprobe")
int uprobe_single(void *ctx)
{
	return on_hit(ctx, cookie_of(ctx));
}

SEC("kprobe")
int kernel_probe(void *ctx)
{
	return on_kernel_hit(ctx, cookie_of(ctx));
}

SEC("tracepoint")
int kernel_tracepoint(void *ctx)
{
	return on_kernel_hit(ctx, cookie_of(ctx));
}

SEC("raw_tracepoint")
int kernel_raw_tracepoint(void *ctx)
{
	return on_kernel_hit(ctx, fixed_site);
}

/* What they attach to is chosen when they are loaded, one copy per function. */
SEC("fentry")
int function_entry(void *ctx)
{
	return on_kernel_hit(ctx, fixed_site);
}

SEC("fexit")
int function_return(void *ctx)
{
	return on_kernel_hit(ctx, fixed_site);
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
	return on_kernel_hit(ctx, fixed_site);
}

SEC("raw_tracepoint/sys_exit")
int syscall_exit_raw(struct bpf_raw_tracepoint_args *ctx)
{
	if (syscall_of((struct pt_regs *)ctx->args[0]) != fixed_syscall || is_compat_task())
		return 0;
	return on_kernel_hit(ctx, fixed_site);
}
