/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What a socket is, and the addresses of its two ends. */
#ifndef PROBITY_SOCKETS_H
#define PROBITY_SOCKETS_H

#include "entries.h"
#include "files.h"

#define AF_UNSPEC 0
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define AF_VSOCK 40
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262
#define TCP_SYN_SENT 2
#define MSG_FASTOPEN 0x20000000
#define UNIX_PATH 108	/* of sun_path */

struct in6_addr {
	__u8 bytes[16];
};

struct sock_common {
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport;	/* in network byte order */
	__u16 skc_num;
	__u16 skc_family;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
	__u16 sk_type;
	__u16 sk_protocol;
} __attribute__((preserve_access_index));

struct socket {
	struct sock *sk;
} __attribute__((preserve_access_index));

struct msghdr {
	void *msg_name;
	int msg_namelen;
	__u32 msg_flags;
} __attribute__((preserve_access_index));

struct unix_address {
	int len;
	char name[];	/* struct sockaddr_un */
} __attribute__((preserve_access_index));

struct unix_sock {
	struct unix_address *addr;
	struct sock *peer;
} __attribute__((preserve_access_index));

/* An address as a process gives it: sockaddr_in, _in6 or _vm. */
union given {
	__u16 family;
	struct {
		__u16 family;
		__u16 port;
		__u32 addr;
	} in;
	struct {
		__u16 family;
		__u16 port;
		__u32 flow;
		__u64 addr[2];
	} in6;
	struct {
		__u16 family;
		__u16 reserved;
		__u32 port;
		__u32 cid;
	} vm;	/* of a virtual machine's host */
	char all[32];	/* a power of two, for the verifier */
};

/* The socket that is open as fd in the current process, or NULL. */
static __always_inline struct sock *sock_of(long fd)
{
	struct file *f = file_of(fd);
	struct socket *s;

	if (!f || BPF_CORE_READ(f, f_inode, i_sb, s_magic) != SOCKFS_MAGIC)
		return 0;
	s = BPF_CORE_READ(f, private_data);
	return BPF_CORE_READ(s, sk);
}

static __always_inline bool is_inet(__u16 family)
{
	return family == AF_INET || family == AF_INET6;
}

/* An IPv4 address that a socket of IPv6 uses is an IPv4 address. */
static __always_inline void set_address6(struct set_key *k, const __u64 *addr)
{
	k->id[0] = addr[0];
	k->id[1] = addr[1];
	if (!addr[0] && (__u32)addr[1] == bpf_htonl(0xffff)) {
		k->family = AF_INET;
		k->id[0] = addr[1] >> 32;
		k->id[1] = 0;
	}
}

/* The name of a Unix socket, of which len bytes are at from. */
static __always_inline void set_path(struct draft *d, __u32 n, __s64 len, const void *from)
{
	if (len <= 0) /* it has none */
		return;
	if (len > UNIX_PATH)
		len = UNIX_PATH;
	len = bpf_probe_read_kernel(d->arg, len & (SET_ARG_LEN - 1), from) ? 0 : len;
	d->arg_len = len;
	trim_arg(n);
	d->texts = TEXTS_ALL;
}

#endif
