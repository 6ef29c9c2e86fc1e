/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * System calls from their beginning to their end. sys_enter comes when a call
 * is carried out, after seccomp and tracers had their say; sys_exit comes with
 * the result, also of what they answered themselves. Only both together say
 * that the kernel did it.
 */
#ifndef PROBITY_PENDING_H
#define PROBITY_PENDING_H

#include "calls.h"
#include "entries.h"

/* Notes a call for one container. */
__noinline int note_call(__u64 cgroup, __u64 abi, __u64 nr)
{
	struct set_calls *calls;
	struct set_state *st;
	struct call_event *e;
	__u32 zero = 0;
	void *inner;

	inner = bpf_map_lookup_elem(&set_states, &cgroup);
	if (!inner)
		return 0;
	st = bpf_map_lookup_elem(inner, &zero);
	if (!st || !st->sets[SET_SYSCALLS].quota)
		return 0;
	calls = abi == ABI_NATIVE ? &st->calls[ABI_NATIVE] : abi == ABI_COMPAT ? &st->calls[ABI_COMPAT] : &st->calls[ABI_X32];
	barrier_var(nr);
	if (nr < SET_CALLS) {
		if (calls->seen[nr])
			return 0;
		calls->seen[nr] = 1;
	} else {
		if (calls->beyond)
			return 0;
		calls->beyond = 1;
	}
	calls->last_ns = bpf_ktime_get_boot_ns();
	if (!calls->first_ns)
		calls->first_ns = calls->last_ns;
	__sync_fetch_and_add(&st->sets[SET_SYSCALLS].used, 1);
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count_ring_full(cgroup);
		return 0;
	}
	e->type = EVENT_CALL;
	e->abi = abi;
	e->cgroup = cgroup;
	e->ns = calls->last_ns;
	e->number = nr;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* Notes a call for each container that the current process is in. */
static __always_inline void on_call(__u64 nr, bool compat)
{
	struct process *p = current_process();
	__u32 levels = armed_levels(), i;
	__u64 cgroup, abi;

	abi = abi_of(nr, compat);
	nr = number_of(nr, abi);
	for_each_armed(i, levels, cgroup) {
		if (is_containers(p, i))
			note_call(cgroup, abi, nr);
	}
}

static __always_inline bool is_open(__u32 call)
{
	return call >= CALL_OPEN && call <= CALL_OPEN_HANDLE;
}

static __always_inline bool is_of_sockets(__u32 call)
{
	return call >= CALL_CONNECT && call <= CALL_SOCKET;
}

static __always_inline void pend(struct draft *d, __u32 set)
{
	__u64 key = pending_key(set);

	bpf_map_update_elem(&pending, &key, &d->call, BPF_ANY);
}

/* open(2)'s flags, the same on all of our machines. */
#define O_ACCMODE 3
#define O_WRONLY 1
#define O_RDWR 2
#define O_TRUNC 01000
#define O_PATH 010000000

/* The flags of an open. Those of openat2 are in memory: they were read when it began. */
static __always_inline __u64 open_flags_of(const struct pending *p)
{
	if (p->call == CALL_CREAT)
		return O_WRONLY | O_TRUNC;
	return p->call == CALL_OPEN ? p->args[1] : p->args[2];
}

static __always_inline void pend_open(struct draft *d)
{
	struct pending *p = &d->call;
	__u64 flags = 0;

	if (p->call == CALL_OPENAT2) {
		bpf_probe_read_user(&flags, sizeof(flags), (void *)p->args[2]);
		p->args[2] = flags;
	}
	pend(d, SET_FILES);
}

/* The calls within socketcall(2). */
#define SYS_BIND 2
#define SYS_CONNECT 3
#define SYS_ACCEPT 5
#define SYS_SENDTO 11
#define SYS_SENDMSG 16
#define SYS_ACCEPT4 18
#define SYS_SENDMMSG 20

static __always_inline __u32 of_socketcall(__u64 n)
{
	switch (n) {
	case SYS_BIND: return CALL_BIND;
	case SYS_CONNECT: return CALL_CONNECT;
	case SYS_ACCEPT: case SYS_ACCEPT4: return CALL_ACCEPT;
	case SYS_SENDTO: return CALL_SENDTO;
	case SYS_SENDMSG: return CALL_SENDMSG;
	case SYS_SENDMMSG: return CALL_SENDMMSG;
	}
	return CALL_OTHER;
}

/* A struct msghdr of user space; that of 32 bits has 32-bit pointers. */
struct user_msghdr {
	__u64 name;
	__s32 namelen;
};

struct user_msghdr32 {
	__u32 name;
	__s32 namelen;
};

#define MMSGHDR 64	/* size of a struct mmsghdr */
#define MMSGHDR32 32
#define MAX_MESSAGES 8	/* of one sendmmsg that are looked at */

/* Where the address of a call is: in arguments 4 and 5 from here on. */
static __always_inline int find_name(struct pending *p, __u64 at)
{
	struct user_msghdr m = {};
	struct user_msghdr32 m32 = {};

	if (p->abi == ABI_NATIVE) {
		if (bpf_probe_read_user(&m, sizeof(m), (void *)at))
			return -1;
	} else {
		if (bpf_probe_read_user(&m32, sizeof(m32), (void *)at))
			return -1;
		m.name = m32.name;
		m.namelen = m32.namelen;
	}
	p->args[4] = m.name;
	p->args[5] = m.name ? m.namelen : 0;
	return 0;
}

/* Reads the address. Memory that is not there yet is read when the call is over. */
static __always_inline int read_name(struct pending *p)
{
	__s32 len = p->args[5];

	p->given_len = 0;
	if (!p->args[4] || len < 2)
		return 0;
	if (len > SET_ARG_LEN - 1)
		len = SET_ARG_LEN - 1;
	barrier_var(len);
	if (bpf_probe_read_user(p->given, len & (SET_ARG_LEN - 1), (void *)p->args[4]))
		return -1;
	p->given_len = len;
	return 0;
}

static __always_inline int read_address(struct pending *p)
{
	switch (p->call) {
	case CALL_CONNECT:
	case CALL_BIND:
		p->args[4] = p->args[1];
		p->args[5] = p->args[2];
		return read_name(p);
	case CALL_SENDTO:
		return read_name(p);
	case CALL_SENDMSG:
		return find_name(p, p->args[1]) || read_name(p);
	}
	p->given_len = 0;
	return 0;
}

/* Begins a call about sockets, if it is one that we look at. */
static __always_inline void pend_socket(struct draft *d)
{
	struct pending *p = &d->call;
	__u32 args[6] = {}, i;

	p->began = 0;
	p->unread = 0;
	if (p->call == CALL_SOCKET) {
		p->call = of_socketcall(p->args[0]);
		if (p->call == CALL_OTHER)
			return;
		if (bpf_probe_read_user(args, sizeof(args), (void *)p->args[1]))
			p->unread = 1;
		for (i = 0; i < 6; i++)
			p->args[i] = args[i];
	}
	if (read_address(p))
		p->unread = 1;
	pend(d, SET_NETWORK);
}

/* The call about sockets that has ended, or NULL: it was not carried out, or it failed. */
static __always_inline struct pending *finish_socket(__u32 n)
{
	struct pending *p;

	p = finish(n, SET_NETWORK);
	if (p && p->unread && read_address(p))
		return 0;
	return p;
}

#endif
