// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Sets on a kernel that does not tell its types: by the records of tracepoints,
 * as tracefs describes them, which is all that there is. Which file a path leads
 * to and which address a call used is the kernel's to know; what is noted here
 * is what the process gave (PATH_GIVEN), but for TCP connections, of which a
 * record tells. What is mapped cannot be seen: there is no set of libraries.
 */
#include <linux/types.h>
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include "pending.h"
#include "sockets.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* A path as the process gave it, of which there is a copy in the draft's call. */
static __always_inline void find_path(struct draft *d, __u32 n)
{
	__u64 len = d->call.given_len;

	barrier_var(len);
	if (d->event.key.set == SET_NETWORK || len > SET_PATH_LEN)
		return;
	bpf_probe_read_kernel(d->event.entry.text, len, d->call.given);
	d->event.entry.path_len = len;
}

static __always_inline void describe_more(struct draft *d)
{
}

static __always_inline void set_given(struct draft *d)
{
	d->event.entry.path_flags |= PATH_GIVEN;
	if (d->call.given_len == SET_PATH_LEN - 1)
		d->event.entry.path_flags |= PATH_ARG_CUT;
	d->texts = TEXTS_ALL;
}

static __always_inline struct draft *begin_exec(__u32 n, __u32 set, struct sched_process_exec_record *ctx)
{
	struct draft *d = begin(n, set);
	long len;

	if (!d)
		return 0;
	len = bpf_probe_read_kernel_str(d->call.given, sizeof(d->call.given), (char *)ctx + (ctx->filename_loc & 0xffff));
	d->call.given_len = len > 0 ? len - 1 : 0;
	set_given(d);
	return d;
}

SEC("tracepoint/sched/sched_process_exec")
int bare_exec(struct sched_process_exec_record *ctx)
{
	struct draft *d = begin_exec(D_EXEC, SET_EXEC, ctx);

	if (!d)
		return 0;
	d->event.key.what = d->event.entry.session;
	count(D_EXEC, NOTED);
	return 0;
}

SEC("tracepoint/sched/sched_process_exec")
int bare_files_exec(struct sched_process_exec_record *ctx)
{
	struct draft *d = begin_exec(D_FILE_EXEC, SET_FILES, ctx);

	if (!d)
		return 0;
	d->event.key.what = ACCESS_EXEC;
	count(D_FILE_EXEC, NOTED);
	return 0;
}

struct sys_enter_record {
	__u64 common;
	__s64 id;
	__u64 args[6];
};

struct sys_exit_record {
	__u64 common;
	__s64 id;
	__s64 ret;
};

SEC("tracepoint/raw_syscalls/sys_enter")
int bare_syscalls(struct sys_enter_record *ctx)
{
	if (current_process())
		on_call(ctx->id, is_compat_task_bare());
	return 0;
}

static __always_inline enum call called(__s64 id, __u32 *abi)
{
	*abi = abi_of(id, is_compat_task_bare());
	return call_of(number_of(id, *abi), *abi);
}

static __always_inline struct draft *begin_call(struct sys_enter_record *ctx, __u32 n, __u32 set, __u32 call, __u32 abi)
{
	struct draft *d = begin(n, set);
	struct pending *p;

	if (!d)
		return 0;
	p = &d->call;
	p->call = call;
	p->abi = abi;
	p->unread = 0;
	p->args[0] = ctx->args[0];
	p->args[1] = ctx->args[1];
	p->args[2] = ctx->args[2];
	p->args[3] = ctx->args[3];
	p->args[4] = ctx->args[4];
	p->args[5] = ctx->args[5];
	return d;
}

static __always_inline int read_path(struct pending *p)
{
	__u64 at = p->call == CALL_OPEN || p->call == CALL_CREAT ? p->args[0] : p->args[1];
	long len;

	p->given_len = 0;
	if (p->call == CALL_OPEN_HANDLE)
		return -1;
	len = bpf_probe_read_user_str(p->given, sizeof(p->given), (void *)at);
	if (len <= 0)
		return -1;
	p->given_len = len - 1;
	return 0;
}

SEC("tracepoint/raw_syscalls/sys_enter")
int bare_files_enter(struct sys_enter_record *ctx)
{
	struct draft *d;
	__u32 abi, call;

	if (!current_process())
		return 0;
	call = called(ctx->id, &abi);
	if (!is_open(call))
		return 0;
	d = begin_call(ctx, D_FILE_ENTER, SET_FILES, call, abi);
	if (!d)
		return 0;
	if (read_path(&d->call))
		d->call.unread = 1;
	pend_open(d);
	return 0;
}

static __always_inline void on_given_file(__u32 what)
{
	struct draft *d = begin(D_FILE, SET_FILES);

	if (!d)
		return;
	set_given(d);
	d->event.key.what = what;
	count(D_FILE, NOTED);
}

SEC("tracepoint/raw_syscalls/sys_exit")
int bare_files_exit(struct sys_exit_record *ctx)
{
	struct pending *p;
	__u32 abi, call;
	__u64 flags;

	if (!current_process())
		return 0;
	call = called(ctx->id, &abi);
	if (call == CALL_URING && ctx->ret >= 0) {
		if (begin(D_FILE, SET_FILES))
			count(D_FILE, AROUND);
		return 0;
	}
	if (!is_open(call))
		return 0;
	if (ctx->ret < 0) {
		forget(SET_FILES);
		return 0;
	}
	p = finish(D_FILE, SET_FILES);
	if (!p || (p->unread && read_path(p))) {
		lose(D_FILE, SET_FILES);
		return 0;
	}
	flags = open_flags_of(p);
	if (flags & O_PATH)
		return 0;
	if ((flags & O_ACCMODE) == 0 || (flags & O_ACCMODE) == O_RDWR)
		on_given_file(ACCESS_READ);
	if ((flags & O_ACCMODE) == O_WRONLY || (flags & O_ACCMODE) == O_RDWR || (flags & O_TRUNC))
		on_given_file(ACCESS_WRITE);
	return 0;
}

/* Since 5.7 with 16 bits of protocol. */
struct set_state_record {
	__u64 common;
	__u64 skaddr;
	__s32 oldstate;
	__s32 newstate;
	__u16 sport;
	__u16 dport;	/* in the machine's byte order */
	__u16 family;
	__u16 protocol;
	__u32 saddr;
	__u32 daddr;
	__u64 saddr_v6[2];
	__u64 daddr_v6[2];
};

SEC("tracepoint/sock/inet_sock_set_state")
int bare_connect(struct set_state_record *ctx)
{
	__u64 key = pending_key(SET_NETWORK), addr[2];
	struct pending *p;
	struct set_key *k;
	struct draft *d;

	if (ctx->newstate != TCP_SYN_SENT || !current_process())
		return 0;
	p = bpf_map_lookup_elem(&pending, &key);
	if (p)
		p->began = 1;
	if (ctx->protocol == IPPROTO_MPTCP) /* its parts tell for themselves */
		return 0;
	d = begin(D_CONNECT, SET_NETWORK);
	if (!d)
		return 0;
	k = &d->event.key;
	k->what = OP_CONNECT;
	k->family = ctx->family;
	k->type = SOCK_STREAM;
	k->protocol = ctx->protocol;
	k->port = ctx->dport;
	if (k->family == AF_INET) {
		k->id[0] = ctx->daddr;
	} else {
		addr[0] = ctx->daddr_v6[0];
		addr[1] = ctx->daddr_v6[1];
		set_address6(k, addr);
	}
	count(D_CONNECT, NOTED);
	return 0;
}

SEC("tracepoint/raw_syscalls/sys_enter")
int bare_network_enter(struct sys_enter_record *ctx)
{
	struct draft *d;
	__u32 abi, call;

	if (!current_process())
		return 0;
	call = called(ctx->id, &abi);
	if (!is_of_sockets(call))
		return 0;
	d = begin_call(ctx, D_CALL_ENTER, SET_NETWORK, call, abi);
	if (d)
		pend_socket(d);
	return 0;
}

/*
 * An entry about an address of which there is a copy in the draft's call. What
 * kind of socket it is for is not known, so neither is what AF_UNSPEC means.
 */
static __always_inline void on_address(__u32 op)
{
	union given a = {};
	struct set_key *k;
	struct draft *d;
	__u64 addr[2];
	__u32 len;

	d = begin(D_CALL, SET_NETWORK);
	if (!d)
		return;
	len = d->call.given_len;
	if (len > sizeof(a) - 1)
		len = sizeof(a) - 1;
	barrier_var(len);
	bpf_probe_read_kernel(&a, len & (sizeof(a) - 1), d->call.given);
	if (a.family == AF_UNSPEC) {
		if (op != OP_CONNECT)
			count(D_CALL, LOST);
		return;
	}
	d->event.entry.path_flags |= PATH_GIVEN;
	k = &d->event.key;
	k->what = op;
	k->family = a.family;
	if (a.family == AF_INET) {
		k->port = bpf_ntohs(a.in.port);
		k->id[0] = a.in.addr;
	} else if (a.family == AF_INET6) {
		k->port = bpf_ntohs(a.in6.port);
		__builtin_memcpy(addr, (char *)&a + 8, sizeof(addr));
		set_address6(k, addr);
	} else if (a.family == AF_UNIX) {
		set_path(d, D_CALL, (__s64)d->call.given_len - 2, d->call.given + 2);
	} else if (a.family == AF_VSOCK) {
		k->id[0] = a.vm.cid;
		k->id[1] = a.vm.port;
	}
	if (op == OP_ACCEPT) /* the own port is what is said of those, and not known */
		k->port = 0;
	count(D_CALL, NOTED);
}

/* One of sendmmsg's messages. It is a function of its own for kernels before 5.13,
 * which refuse a loop whose end falls through into its beginning: what the compiler
 * makes of a loop with all of this in it. */
static __noinline int on_one_message(struct pending *p, __u64 at)
{
	if (find_name(p, at) || read_name(p))
		lose(D_CALL, SET_NETWORK);
	else if (p->given_len)
		on_address(OP_SEND);
	return 0;
}

static __always_inline void on_bare_call(struct pending *p, __s64 ret)
{
	__u32 i, size, len = 0;

	switch (p->call) {
	case CALL_CONNECT:
		if (!p->began)
			on_address(OP_CONNECT);
		return;
	case CALL_BIND:
		on_address(OP_BIND);
		return;
	case CALL_ACCEPT:
		/* Where the kernel wrote who it is, if it was asked to. */
		p->args[4] = p->args[1];
		if (!p->args[1] || bpf_probe_read_user(&len, sizeof(len), (void *)p->args[2])) {
			lose(D_CALL, SET_NETWORK);
			return;
		}
		p->args[5] = len;
		if (read_name(p) || !p->given_len)
			lose(D_CALL, SET_NETWORK);
		else
			on_address(OP_ACCEPT);
		return;
	case CALL_SENDTO:
	case CALL_SENDMSG:
		if (p->given_len && !p->began)
			on_address(OP_SEND);
		return;
	case CALL_SENDMMSG:
		size = p->abi == ABI_NATIVE ? MMSGHDR : MMSGHDR32;
		for (i = 0; i < MAX_MESSAGES && i < ret; i++)
			on_one_message(p, p->args[1] + i * size);
		if (ret > MAX_MESSAGES)
			lose(D_CALL, SET_NETWORK);
		return;
	}
}

SEC("tracepoint/raw_syscalls/sys_exit")
int bare_network_exit(struct sys_exit_record *ctx)
{
	__u64 key = pending_key(SET_NETWORK);
	__s64 ret = ctx->ret;
	struct pending *p;
	__u32 abi, call;

	if (!current_process())
		return 0;
	call = called(ctx->id, &abi);
	if (call == CALL_URING && ret >= 0) {
		if (begin(D_CALL, SET_NETWORK))
			count(D_CALL, AROUND);
		return 0;
	}
	if (!is_of_sockets(call))
		return 0;
	if (ret < 0) {
		forget(SET_NETWORK);
		return 0;
	}
	/* Of socketcall the record has no argument at the end. */
	if (call == CALL_SOCKET && !bpf_map_lookup_elem(&pending, &key))
		return 0;
	p = finish_socket(D_CALL);
	if (p)
		on_bare_call(p, ret);
	else
		lose(D_CALL, SET_NETWORK);
	return 0;
}
