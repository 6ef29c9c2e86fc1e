/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * System calls as raw_syscalls:sys_enter and sys_exit have them: which ABI,
 * which call, which arguments.
 */
#ifndef PROBITY_CALLS_H
#define PROBITY_CALLS_H

#include "kernel_drift.h"
#include "sets.h"

/* The calls that sets look at. */
enum call {
	CALL_OTHER = 0,
	CALL_OPEN,	/* open: arguments 0 and 1: path, flags */
	CALL_OPENAT,	/* arguments 1 and 2 */
	CALL_OPENAT2,	/* arguments 1 and 2: path, struct open_how */
	CALL_CREAT,
	CALL_OPEN_HANDLE,	/* argument 2: flags */
	CALL_MMAP,	/* arguments 2, 3 and 4: protection, flags, file */
	CALL_MMAP_OLD,	/* of i386: its arguments are in memory */
	CALL_MPROTECT,
	CALL_SHMAT,	/* argument 2: flags */
	CALL_CONNECT,
	CALL_ACCEPT,
	CALL_BIND,
	CALL_SENDTO,
	CALL_SENDMSG,
	CALL_SENDMMSG,
	CALL_SOCKET,	/* of i386: one call for all of the above */
	CALL_URING,	/* sets up a ring, or hands operations to it */
};

/* The same everywhere: numbers from 424 on are. */
#define CASES_COMMON				\
	case 425: case 426: return CALL_URING;	\
	case 437: return CALL_OPENAT2;

#if defined(__TARGET_ARCH_x86)

#define X32_BIT 0x40000000

/* A negative number is nobody's: the bit of x32 is in it by chance. */
static __always_inline __u32 abi_of(__u64 nr, bool compat)
{
	if (compat)
		return ABI_COMPAT;
	return (nr & X32_BIT) && (__s32)nr >= 0 ? ABI_X32 : ABI_NATIVE;
}

static __always_inline __u64 number_of(__u64 nr, __u32 abi)
{
	return abi == ABI_X32 ? nr & ~(__u64)X32_BIT : nr;
}

static __always_inline enum call call_of(__u64 nr, __u32 abi)
{
	if (abi == ABI_COMPAT) {
		switch (nr) {
		case 5: return CALL_OPEN;
		case 8: return CALL_CREAT;
		case 295: return CALL_OPENAT;
		case 342: return CALL_OPEN_HANDLE;
		case 90: return CALL_MMAP_OLD;
		case 192: return CALL_MMAP;
		case 125: case 380: return CALL_MPROTECT;
		case 397: return CALL_SHMAT;
		case 102: return CALL_SOCKET;
		case 362: return CALL_CONNECT;
		case 364: return CALL_ACCEPT;
		case 361: return CALL_BIND;
		case 369: return CALL_SENDTO;
		case 370: return CALL_SENDMSG;
		case 345: return CALL_SENDMMSG;
		CASES_COMMON
		}
		return CALL_OTHER;
	}
	switch (nr) {
	case 2: return CALL_OPEN;
	case 85: return CALL_CREAT;
	case 257: return CALL_OPENAT;
	case 304: return CALL_OPEN_HANDLE;
	case 9: return CALL_MMAP;
	case 10: case 329: return CALL_MPROTECT;
	case 30: return CALL_SHMAT;
	case 42: return CALL_CONNECT;
	case 43: case 288: return CALL_ACCEPT;
	case 49: return CALL_BIND;
	case 44: return CALL_SENDTO;
	case 46: case 518: return CALL_SENDMSG;		/* 518 and 538: of x32 */
	case 307: case 538: return CALL_SENDMMSG;
	CASES_COMMON
	}
	return CALL_OTHER;
}

/* Argument n of the system call that the registers are of. */
static __always_inline __u64 arg_of(struct pt_regs *regs, __u32 abi, __u32 n)
{
	if (abi == ABI_COMPAT)
		return (__u32)(n == 0 ? BPF_CORE_READ(regs, bx) : n == 1 ? BPF_CORE_READ(regs, cx) :
			n == 2 ? BPF_CORE_READ(regs, dx) : n == 3 ? BPF_CORE_READ(regs, si) :
			n == 4 ? BPF_CORE_READ(regs, di) : BPF_CORE_READ(regs, bp));
	return n == 0 ? BPF_CORE_READ(regs, di) : n == 1 ? BPF_CORE_READ(regs, si) :
		n == 2 ? BPF_CORE_READ(regs, dx) : n == 3 ? BPF_CORE_READ(regs, r10) :
		n == 4 ? BPF_CORE_READ(regs, r8) : BPF_CORE_READ(regs, r9);
}

#elif defined(__TARGET_ARCH_arm64)

static __always_inline __u32 abi_of(__u64 nr, bool compat)
{
	return compat ? ABI_COMPAT : ABI_NATIVE;
}

static __always_inline __u64 number_of(__u64 nr, __u32 abi)
{
	return nr;
}

static __always_inline enum call call_of(__u64 nr, __u32 abi)
{
	if (abi == ABI_COMPAT) {
		switch (nr) {
		case 5: return CALL_OPEN;
		case 8: return CALL_CREAT;
		case 322: return CALL_OPENAT;
		case 371: return CALL_OPEN_HANDLE;
		case 192: return CALL_MMAP;
		case 125: case 394: return CALL_MPROTECT;
		case 305: return CALL_SHMAT;
		case 283: return CALL_CONNECT;
		case 285: case 366: return CALL_ACCEPT;
		case 282: return CALL_BIND;
		case 290: return CALL_SENDTO;
		case 296: return CALL_SENDMSG;
		case 374: return CALL_SENDMMSG;
		CASES_COMMON
		}
		return CALL_OTHER;
	}
	switch (nr) {
	case 56: return CALL_OPENAT;
	case 265: return CALL_OPEN_HANDLE;
	case 222: return CALL_MMAP;
	case 226: case 288: return CALL_MPROTECT;
	case 196: return CALL_SHMAT;
	case 203: return CALL_CONNECT;
	case 202: case 242: return CALL_ACCEPT;
	case 200: return CALL_BIND;
	case 206: return CALL_SENDTO;
	case 211: return CALL_SENDMSG;
	case 269: return CALL_SENDMMSG;
	CASES_COMMON
	}
	return CALL_OTHER;
}

/* The first argument's register holds the result when the call is over. */
static __always_inline __u64 arg_of(struct pt_regs *regs, __u32 abi, __u32 n)
{
	__u64 v = 0;

	if (n == 0)
		v = BPF_CORE_READ(regs, orig_x0);
	else
		bpf_probe_read_kernel(&v, sizeof(v), (void *)regs + bpf_core_field_offset(struct pt_regs, regs) + n * sizeof(v));
	return abi == ABI_COMPAT ? (__u32)v : v;
}

#endif

#endif
