/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Sets: what a container did, each distinct thing once. This is what the
 * kernel side and the Go side share of them.
 */
#ifndef PROBITY_SETS_H
#define PROBITY_SETS_H

#include "probity.h"

#define SET_PATH_LEN 256	/* of a path; longer ones lose their beginning */
#define SET_ARG_LEN 128		/* of execve's argument, or of a socket's path; longer is cut */
#define SET_TEXT_LEN (SET_PATH_LEN + SET_ARG_LEN)
#define SET_CALLS 1024		/* system call numbers are below; what is not is counted */

enum set {
	SET_EXEC = 0,
	SET_LIBRARIES = 1,
	SET_SYSCALLS = 2,
	SET_NETWORK = 3,
	SET_FILES = 4,
	SETS = 5,
};

/* The ways into the kernel. Which architecture each is depends on the machine. */
enum abi {
	ABI_NATIVE = 0,	/* 64 bit */
	ABI_COMPAT = 1,	/* 32 bit */
	ABI_X32 = 2,	/* of x86-64: 64 bit registers, 32 bit pointers */
	ABIS = 3,
};

/* What was done with a file that was opened. */
enum access {
	ACCESS_READ = 1,
	ACCESS_WRITE = 2,
	ACCESS_EXEC = 3,
};

/* How a file was mapped. */
enum mapping {
	MAPPING_PRIVATE = 1,
	MAPPING_PRIVATE_WRITABLE = 2,
	MAPPING_SHARED = 3,
	MAPPING_SHARED_WRITABLE = 4,
};

enum operation {
	OP_CONNECT = 1,
	OP_ACCEPT = 2,
	OP_BIND = 3,
	OP_SEND = 4,	/* a datagram to an address that the socket is not connected to */
};

/* What is known of an entry's path. */
enum path_flags {
	PATH_WALKED = 1,	/* found by walking from the file to the process's root */
	PATH_GIVEN = 2,		/* the path or address is what the process gave, not what the kernel used */
	PATH_CUT = 4,		/* its beginning is missing */
	PATH_OUTSIDE = 8,	/* not in the process's mount namespace: from the root of its mounts on */
	PATH_DETACHED = 16,	/* a file without a place in any directory, such as a memfd */
	PATH_DELETED = 32,	/* no directory has the file any more */
	PATH_ARG_CUT = 64,	/* the end of the argument, the given path or the socket's path is missing */
	PATH_CHROOT = 128,	/* the process had another root than its mount namespace */
};

/*
 * Which entry it is. what is an access, a mapping, a session or an operation.
 * Of a file, id is (device | generation << 32, inode, hash), of a socket the
 * address, IPv4 in the first four bytes and IPv6 in sixteen; of a Unix socket it
 * is (0, 0, hash). The hash is a keyed one of the entry's texts, and in exec and
 * libraries of the file's change time and size: see hash_texts.
 */
struct set_key {
	__u8 set;
	__u8 what;
	__u8 family;	/* AF_... */
	__u8 type;	/* SOCK_... */
	__u16 protocol;	/* IPPROTO_... */
	__u16 port;	/* in the machine's byte order */
	__u64 id[3];
};

/* What is known of it. Everything but count and last_ns is of the first time. */
struct set_entry {
	__u64 count;
	__u64 first_ns;	/* CLOCK_BOOTTIME */
	__u64 last_ns;
	__s64 ctime_ns;	/* of the file: when its content or attributes changed last */
	__u64 size;	/* of the file */
	__u64 magic;	/* of its file system: statfs(2) */
	__u32 pid;
	__u32 tid;
	__u32 parent;	/* process that the first one descends from */
	__u32 session;	/* enum session */
	__u32 mode;	/* of the file: inode(7) */
	__u16 path_len;
	__u16 arg_len;
	__u32 path_flags;
	__u32 mnt_ns;	/* mount namespace of the process that the path begins in */
	char comm[COMM_LEN];
	char parent_comm[COMM_LEN];
	char text[SET_TEXT_LEN];	/* the path, then the argument */
};

/* Tells of a new entry. It ends after the text's used part. */
struct set_event {
	__u32 type;
	__u32 pad;
	__u64 cgroup;
	struct set_key key;
	struct set_entry entry;
};

struct call_event {
	__u32 type;
	__u32 abi;	/* enum abi */
	__u64 cgroup;
	__u64 ns;
	__u64 number;
};

/* One set of one container. */
struct set_count {
	__u32 quota;	/* entries that it may have; 0: it is not armed */
	__u32 used;	/* entries that it has */
	__u32 guests;	/* of these, what others cause: accepted connections */
	__u32 pad;
	__u64 full;	/* events that were no entry's and found the quota used up */
	__u64 lost;	/* events whose file or address could not be read, or that found no memory */
	__u64 around;	/* operations of io_uring that this way to see the set does not show */
};

/* The system calls of one ABI. A byte for each: setting one needs no atomics. */
struct set_calls {
	__u64 first_ns;
	__u64 last_ns;	/* of a number that was new */
	__u64 beyond;	/* a number not below SET_CALLS was used */
	__u8 seen[SET_CALLS];
};

/* One container. */
struct set_state {
	struct set_count sets[SETS];
	struct set_calls calls[ABIS];
};

#endif
