/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What the kernel side and the Go side share. This is the only definition:
 * the Go structs are generated from it by bpf2go (see ../gen.go).
 */
#ifndef PROBITY_H
#define PROBITY_H

#define COMM_LEN 16	/* TASK_COMM_LEN */
#define PATH_LEN 256	/* of an executable in an exec event; longer is cut */
#define INTERP_LEN 128	/* of its interpreter; longer is cut */
#define NAME_LEN 64	/* of an executed file's name; longer is cut */
#define MAX_LEVEL 32	/* depth of a container's cgroup below the root */
#define MAX_FRAMES 64	/* of a user stack */
#define MAX_NESTED 8	/* calls of one function in one thread whose times are kept */
#define BUCKETS 64	/* of a histogram of durations: one per power of two ns */

enum event_type {
	EVENT_HIT = 1,	/* first hit of a (container, site) */
	EVENT_EXEC = 2,	/* an execve in a container succeeded */
	EVENT_LOST = 3,	/* a process of a container left its cgroup subtree */
	EVENT_SET = 4,	/* a new entry of a set: see sets.h */
	EVENT_CALL = 5,	/* a system call that the container had not used before: sets.h */
	EVENT_STACK = 6,	/* the user stack of a first hit */
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

/* Why a slot does not count. */
enum standing {
	STANDING_ARMED = 0,	/* it does */
	STANDING_ANSWERED = 1,	/* stop_after hits were counted */
	STANDING_TOO_OFTEN = 2,	/* more than max_rate hits came within a second */
};

/* What to do at the first hit. */
enum slot_flags {
	SLOT_STACK = 1,		/* tell the user stack */
	SLOT_CALLER = 2,	/* at this instruction the return address is where the caller put it */
};

/*
 * Once it exists only the kernel side writes it, so that no count is lost. It
 * stands down and is armed again there; the agent looks at it.
 */
struct slot {
	__u64 count;
	__u64 first_ns;	/* CLOCK_BOOTTIME; 0 while count is 0 */
	__u64 last_ns;
	__u64 stood_ns;	/* since when it does not count; 0: it does */
	__u64 base;	/* count when it was last armed */
	__u64 second_ns;	/* when the current second began */
	__u64 second_base;	/* and count then */
	__u64 stop_after;	/* stand down after so many hits; 0: never */
	__u64 rearm_ns;	/* count again so long after standing down; 0: not */
	__u32 max_rate;	/* stand down past so many hits within a second; 0: never */
	__u32 stood;	/* how often it stood down */
	__u32 standing;	/* enum standing: of the last time */
	__u32 flags;	/* enum slot_flags */
};

/* The times between entry and return of one (container, site). */
struct duration {
	__u64 sum_ns;
	__u64 count;	/* returns with their entry */
	__u64 unmatched;	/* entries without a return, returns without an entry, too deep or too many at once */
	__u64 buckets[BUCKETS];	/* [i]: of 2^i to 2^(i+1)-1 ns; [0] has 0 too */
};

/*
 * The cookie of a link: the site's number, and what of it this place is. Only
 * the programs for durations know more than the number.
 */
enum cookie_bits {
	COOKIE_RETURN = 1,	/* << 32: a return of the site's function */
	COOKIE_STACKED = 2,	/* the place of the frame on the stack tells calls apart */
	COOKIE_POPPED = 4,	/* the return address is off the stack already */
	COOKIE_GO = 8,		/* calls belong to goroutines and not to threads */
};

/* What is known of one armed container. Key: its cgroup id. */
struct run {
	__u64 execs;
	__u64 first_exec_ns;	/* CLOCK_BOOTTIME */
	__u64 last_exec_ns;
	__u64 ring_full;	/* events of this container that the ring had no room for */
	__u64 execs_lost;	/* of these, execs: nobody knows what file was executed */
	__u64 left;		/* processes that left the cgroup subtree alive */
	__u64 untracked;	/* processes that found no room in the map of processes, or past the run's share of it */
	__u64 stood;		/* how often a slot stood down */
	__u64 processes;	/* that are in the map for it, of its share */
	__u64 init;		/* tgid of its first process; 0: not known */
};

/*
 * One process of an armed container, since its execve there. Key: its tgid.
 * The innermost armed cgroup that it was in then, and its depth.
 */
struct process {
	__u64 cgroup;
	__u64 counted;	/* the run in whose processes it is counted; 0: the agent added it */
	__u32 level;
	__u32 session;	/* enum session */
	__u8 fresh;	/* its last execve is the one by which it became the container's */
	__u8 ending;	/* its last thread is in exit: known until it is freed */
	__u8 pad[6];
};

struct settings {
	__u32 levels;	/* bit n: some armed container's cgroup has depth n */
	__u32 share;	/* processes that one container may have in the map of processes */
};

struct totals {
	__u64 ring_full;	/* events dropped for all containers: one place to poll */
	__u64 stood;		/* how often a slot stood down, likewise */
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

/*
 * A user stack, innermost frame first. Each frame has the address, and, where
 * the kernel could read it, the file's build id and the offset in the file.
 */
struct stack_event {
	__u32 type;
	__u32 site;
	__u64 cgroup;
	__u64 ns;
	__u32 pid;
	__u32 tid;
	__u64 caller;	/* the return address of the function that was hit; 0 if it is not known */
	__s32 ids;	/* bytes of build_ids that are filled, or a negative errno */
	__s32 addresses;	/* and of ips */
	struct bpf_stack_build_id build_ids[MAX_FRAMES];
	__u64 ips[MAX_FRAMES];
};

/*
 * The executed file is the one that the process runs: a script's is its
 * interpreter. An inode of 0 says that it is not known, because the kernel's
 * types are not.
 */
struct exec_event {
	__u32 type;
	__u32 session;	/* enum session */
	__u64 cgroup;
	__u64 ns;
	__u32 pid;
	__u32 tid;
	__u64 device;	/* of the executed file, as the kernel has it: 20 bits of it are its minor */
	__u64 inode;
	__s64 ctime;	/* nanoseconds */
	__s64 size;
	char comm[COMM_LEN];
	char path[PATH_LEN];	/* as passed to execve */
	char interp[INTERP_LEN];	/* what the kernel executed for it, if that is another path */
	char name[NAME_LEN];	/* of the file; empty if it may have several: a mount of its own, hard links */
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
