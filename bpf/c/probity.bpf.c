// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * The kernel side of Probity: count hits per (container, site) and tell of the
 * first one; count execs per container and tell of each.
 *
 * Counters are the truth, the ring buffer carries detail only: a full ring
 * costs the detail, is counted, and never costs a count.
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "probity.h"
#include "kernel_drift.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Emitted so that bpf2go finds the types of ring buffer records. */
const enum event_type *unused_event_type __attribute__((unused));
const struct hit_event *unused_hit_event __attribute__((unused));
const struct exec_event *unused_exec_event __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, struct slot_key);
	__type(value, struct slot);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct run);
} runs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct totals);
} totals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

static __always_inline void count_ring_full(__u64 cgroup)
{
	struct totals *t;
	struct run *r;
	__u32 zero = 0;

	r = bpf_map_lookup_elem(&runs, &cgroup);
	if (r)
		__sync_fetch_and_add(&r->ring_full, 1);
	t = bpf_map_lookup_elem(&totals, &zero);
	if (t)
		__sync_fetch_and_add(&t->ring_full, 1);
}

static __always_inline void account_hit(struct slot_key *key, __u64 *now)
{
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
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	bpf_ringbuf_submit(e, 0);
}

/*
 * A hit belongs to every armed container whose cgroup subtree the task is in:
 * its own, and those around it when containers are nested. Only depths at
 * which some container is armed are looked at, so a neighbour on a probed
 * inode pays for one or two failed lookups besides the trap.
 */
static __always_inline int on_hit(void *ctx)
{
	struct slot_key key = {};
	struct settings *set;
	__u32 zero = 0, levels, i;
	__u64 now = 0;

	set = bpf_map_lookup_elem(&settings, &zero);
	if (!set)
		return 0;
	key.site = fixed_site;
	if (!key.site)
		key.site = (__u32)bpf_get_attach_cookie(ctx);
	levels = set->levels;
	for (i = 0; i < MAX_LEVEL; i++) {
		if (!levels)
			break;
		if (levels & 1) {
			key.cgroup = bpf_get_current_ancestor_cgroup_id(i);
			if (!key.cgroup)
				break;
			account_hit(&key, &now);
		}
		levels >>= 1;
	}
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

static __always_inline void account_exec(__u64 cgroup, const char *filename)
{
	struct exec_event *e;
	struct run *r;
	__u64 id, now;

	r = bpf_map_lookup_elem(&runs, &cgroup);
	if (!r)
		return;
	now = bpf_ktime_get_boot_ns();
	if (!r->first_exec_ns)
		r->first_exec_ns = now;
	r->last_exec_ns = now;
	__sync_fetch_and_add(&r->execs, 1);
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count_ring_full(cgroup);
		return;
	}
	id = bpf_get_current_pid_tgid();
	e->type = EVENT_EXEC;
	e->pad = 0;
	e->cgroup = cgroup;
	e->ns = now;
	e->pid = id >> 32;
	e->tid = (__u32)id;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	e->path[0] = 0;
	if (bpf_probe_read_kernel_str(e->path, sizeof(e->path), filename) < 0)
		e->path[0] = 0;
	bpf_ringbuf_submit(e, 0);
}

static __always_inline int on_exec(const char *filename)
{
	struct settings *set;
	__u32 zero = 0, levels, i;
	__u64 cgroup;

	set = bpf_map_lookup_elem(&settings, &zero);
	if (!set)
		return 0;
	levels = set->levels;
	for (i = 0; i < MAX_LEVEL; i++) {
		if (!levels)
			break;
		if (levels & 1) {
			cgroup = bpf_get_current_ancestor_cgroup_id(i);
			if (!cgroup)
				break;
			account_exec(cgroup, filename);
		}
		levels >>= 1;
	}
	return 0;
}

SEC("tracepoint/sched/sched_process_exec")
int exec_tracepoint(struct sched_process_exec_record *ctx)
{
	return on_exec((const char *)ctx + (ctx->filename_loc & 0xffff));
}

/* Where tracefs cannot be reached: the same event, through its raw arguments. */
SEC("raw_tracepoint/sched_process_exec")
int exec_raw(struct bpf_raw_tracepoint_args *ctx)
{
	struct linux_binprm *bprm = (struct linux_binprm *)ctx->args[2];

	return on_exec(BPF_CORE_READ(bprm, filename));
}
