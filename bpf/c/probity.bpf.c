// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Sites: count hits per (container, site) and tell of the first one.
 *
 * Counters are the truth, the ring buffer carries detail only: a full ring
 * costs the detail, is counted, and never costs a count.
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "attribution.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Emitted so that bpf2go finds the types of ring buffer records. */
const enum event_type *unused_event_type __attribute__((unused));
const struct hit_event *unused_hit_event __attribute__((unused));
const struct exec_event *unused_exec_event __attribute__((unused));
const struct lost_event *unused_lost_event __attribute__((unused));
const enum session *unused_session __attribute__((unused));

/*
 * bpf_get_attach_cookie (since 5.15 for perf links, 6.6 for uprobe_multi) is
 * absent from older kernels, where one copy of the program is loaded per site
 * with its number in fixed_site. The verifier prunes the other branch, so the
 * unknown helper is never looked at.
 */
const volatile __u32 fixed_site = 0;

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
 * Only depths at which some container is armed are looked at, so a neighbour on
 * a probed inode pays for one or two failed lookups besides the trap.
 */
static __always_inline int on_hit(void *ctx)
{
	struct slot_key key = {};
	__u32 levels, i;
	__u64 now = 0;

	levels = armed_levels();
	key.site = fixed_site;
	if (!key.site)
		key.site = (__u32)bpf_get_attach_cookie(ctx);
	for_each_armed(i, levels, key.cgroup)
		account_hit(&key, &now);
	return 0;
}

SEC("uprobe.multi")
int uprobe_multi(void *ctx)
{
	return on_hit(ctx);
}

SEC("uprobe")
int uprobe_single(void *ctx)
{
	return on_hit(ctx);
}
