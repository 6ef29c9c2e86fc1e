/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Whose event it is. An event belongs to every armed container whose cgroup
 * subtree the task is in: its own, and those around it when containers are
 * nested.
 */
#ifndef PROBITY_ATTRIBUTION_H
#define PROBITY_ATTRIBUTION_H

#include "kernel_drift.h"
#include "maps.h"

/* The depths at which some container is armed, as a bit mask. */
static __always_inline __u32 armed_levels(void)
{
	struct settings *set;
	__u32 zero = 0;

	set = bpf_map_lookup_elem(&settings, &zero);
	return set ? set->levels : 0;
}

/*
 * Runs the statement that follows with id being the cgroup id of the current
 * task's ancestor at depth i, for each depth at which some container is armed.
 * Whether one is armed in that cgroup is the statement's to find out.
 */
#define for_each_armed(i, levels, id)						\
	for (i = 0; i < MAX_LEVEL && ((levels) >> i); i++)			\
		if (!(((levels) >> i) & 1))					\
			continue;						\
		else if (!((id) = current_ancestor_cgroup_id(i)))		\
			break;							\
		else

static __always_inline __u32 current_tgid(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

/* What is known of the current process, or NULL: it is no container's. */
static __always_inline struct process *current_process(void)
{
	__u32 tgid = current_tgid();

	return bpf_map_lookup_elem(&processes, &tgid);
}

/*
 * Whether the process, which is in the subtree of an armed cgroup at the given
 * depth, is the container's and not the runtime's: `runc init` works inside the
 * cgroup before it becomes the container by its execve. A process belongs to
 * the container in whose cgroup it called execve, and to those around it.
 */
static __always_inline int is_containers(const struct process *p, __u32 level)
{
	return p && level <= p->level &&
	       current_ancestor_cgroup_id(p->level) == p->cgroup;
}

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

#endif
