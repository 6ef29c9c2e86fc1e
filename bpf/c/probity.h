/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What the kernel side and the Go side share. This is the only definition:
 * the Go structs are generated from it by bpf2go (see ../gen.go).
 */
#ifndef PROBITY_H
#define PROBITY_H

#define COMM_LEN 16	/* TASK_COMM_LEN */
#define PATH_LEN 256	/* of an executable in an exec event; longer is cut */
#define MAX_LEVEL 32	/* depth of a container's cgroup below the root */

enum event_type {
	EVENT_HIT = 1,	/* first hit of a (container, site) */
	EVENT_EXEC = 2,	/* an execve in a container succeeded */
	EVENT_LOST = 3,	/* a process of a container left its cgroup subtree */
	EVENT_SET = 4,	/* a new entry of a set: see sets.h */
	EVENT_CALL = 5,	/* a system call that the container had not used before: sets.h */
};

/* How a process came into its container. */
enum session {
	SESSION_UNKNOWN = 0,	/* it has not called execve in there */
	SESSION_INIT = 1,	/* it is the first process or descends from it */
	SESSION_EXEC = 2,	/* of an exec session: put there from outside */
};

/* One counter: preallocated by the agent before the site is armed. */
struct slot_key {
	__u64 cgroup;	/* the container's cgroup id */
	__u32 site;	/* the site's number, as in the attach cookie */
	__u32 pad;
};

struct slot {
	__u64 count;
	__u64 first_ns;	/* CLOCK_BOOTTIME; 0 while count is 0 */
	__u64 last_ns;
};

/* What is known of one armed container. Key: its cgroup id. */
struct run {
	__u64 execs;
	__u64 first_exec_ns;	/* CLOCK_BOOTTIME */
	__u64 last_exec_ns;
	__u64 ring_full;	/* events of this container that the ring had no room for */
	__u64 left;		/* processes that left the cgroup subtree alive */
	__u64 untracked;	/* processes that the map of processes had no room for */
};

/*
 * One process of an armed container, since its execve there. Key: its tgid.
 * The innermost armed cgroup that it was in then, and its depth.
 */
struct process {
	__u64 cgroup;
	__u32 level;
	__u32 session;	/* enum session */
	__u32 fresh;	/* its last execve is the one by which it became the container's */
	__u32 pad;
};

struct settings {
	__u32 levels;	/* bit n: some armed container's cgroup has depth n */
	__u32 pad;
};

struct totals {
	__u64 ring_full;	/* events dropped for all containers: one place to poll */
};

struct hit_event {
	__u32 type;
	__u32 site;
	__u64 cgroup;
	__u64 ns;
	__u32 pid;	/* process (tgid) */
	__u32 tid;	/* thread */
	__u32 session;	/* enum session */
	__u32 pad;
	char comm[COMM_LEN];
};

struct exec_event {
	__u32 type;
	__u32 session;	/* enum session */
	__u64 cgroup;
	__u64 ns;
	__u32 pid;
	__u32 tid;
	char comm[COMM_LEN];
	char path[PATH_LEN];
};

struct lost_event {
	__u32 type;
	__u32 pad;
	__u64 cgroup;	/* of the container that it was in */
	__u64 ns;
	__u32 pid;
	__u32 tid;
};

#endif
