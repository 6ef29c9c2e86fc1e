// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Sets: the distinct things that a container did. See sets.h for what they are
 * and docs/sets.md for which hook sees what.
 *
 * The maps are the truth: each container has a map of entries of its own, which
 * nobody else can fill, and a state that counts what found no room. The ring
 * buffer only tells of new entries: whoever reads the map misses none.
 *
 * A set begins at the container's first execve, and at that of each exec
 * session: see is_containers.
 */
#include <linux/types.h>
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include "files.h"
#include "pending.h"
#include "sockets.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const struct set_event *unused_set_event __attribute__((unused));
const struct call_event *unused_call_event __attribute__((unused));
const struct set_state *unused_set_state __attribute__((unused));
const enum set *unused_set __attribute__((unused));
const enum abi *unused_abi __attribute__((unused));
const enum access *unused_access __attribute__((unused));
const enum mapping *unused_mapping __attribute__((unused));
const enum operation *unused_operation __attribute__((unused));
const enum path_flags *unused_path_flags __attribute__((unused));

#define NOT_PASSED (~0ULL)

/*
 * One step from the file to the root of the process's mount namespace, which is
 * the container's: the root of the process is its own choice (chroot). Returns
 * whether it was the last. What a step begins with is in memory, so that the verifier, which does
 * not look there, takes all steps for the same one.
 */
__noinline int walk_step(__u32 n)
{
	struct mount *m, *above;
	struct vfsmount *mnt;
	struct dentry *dentry;
	struct step s = {};
	struct draft *d;
	__u64 off, len;

	d = bpf_map_lookup_elem(&drafts, &n);
	if (!d)
		return 1;
	dentry = d->dentry;
	mnt = d->mnt;
	if (dentry == d->root_dentry && mnt == d->root_mnt)
		d->root_off = d->off;
	if (dentry == d->mnt_root) {
		m = (void *)mnt - bpf_core_field_offset(struct mount, mnt);
		above = BPF_CORE_READ(m, mnt_parent);
		if (above == m || !above) {
			if (m != d->top)
				d->event.entry.path_flags |= PATH_OUTSIDE;
			return 1;
		}
		d->dentry = BPF_CORE_READ(m, mnt_mountpoint);
		mnt = (void *)above + bpf_core_field_offset(struct mount, mnt);
		d->mnt = mnt;
		d->mnt_root = BPF_CORE_READ(mnt, mnt_root);
		return 0;
	}
	read_step(&s, dentry);
	off = d->off;
	len = s.len;
	if (!len || len >= WALK_LEN || off > WALK_LEN || off < len + 1) {
		d->event.entry.path_flags |= PATH_CUT;
		return 1;
	}
	off -= len;
	bpf_probe_read_kernel(&d->walk[off & (WALK_LEN - 1)], len & (WALK_LEN - 1), s.name);
	if (dentry == s.parent) {
		d->off = off;
		d->event.entry.path_flags |= PATH_DETACHED;
		return 1;
	}
	off--;
	d->walk[off & (WALK_LEN - 1)] = '/';
	d->off = off;
	d->dentry = s.parent;
	return 0;
}

__noinline int walk_path(__u32 n)
{
	struct task_struct *task;
	struct vfsmount *mnt;
	struct draft *d;
	__u64 off, len;
	__u32 i;

	d = bpf_map_lookup_elem(&drafts, &n);
	if (!d)
		return 0;
	task = (struct task_struct *)bpf_get_current_task();
	d->root_dentry = BPF_CORE_READ(task, fs, root.dentry);
	d->root_mnt = BPF_CORE_READ(task, fs, root.mnt);
	d->top = BPF_CORE_READ(task, nsproxy, mnt_ns, root);
	d->event.entry.mnt_ns = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);
	mnt = d->mnt;
	d->mnt_root = BPF_CORE_READ(mnt, mnt_root);
	d->off = WALK_LEN;
	d->root_off = NOT_PASSED;
	d->event.entry.path_flags |= PATH_WALKED;
	for (i = 0; i < MAX_NAMES; i++)
		if (walk_step(n))
			break;
	if (i == MAX_NAMES)
		d->event.entry.path_flags |= PATH_CUT;
	off = d->off;
	if (d->root_off != NOT_PASSED ? d->root_off != off : !(d->event.entry.path_flags & (PATH_CUT | PATH_DETACHED | PATH_OUTSIDE)))
		d->event.entry.path_flags |= PATH_CHROOT;
	if (off == WALK_LEN && !(d->event.entry.path_flags & PATH_CUT)) { /* the root itself */
		off = WALK_LEN - 1;
		d->walk[off] = '/';
	}
	len = WALK_LEN - off;
	barrier_var(len);
	if (len > SET_PATH_LEN)
		return 0;
	bpf_probe_read_kernel(d->event.entry.text, len, &d->walk[off & (WALK_LEN - 1)]);
	d->event.entry.path_len = len;
	return 0;
}

static __always_inline void find_path(struct draft *d, __u32 n)
{
	if (d->dentry)
		walk_path(n);
}

static __always_inline void describe_more(struct draft *d)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct set_entry *e = &d->event.entry;

	task = BPF_CORE_READ(task, real_parent);
	e->parent = BPF_CORE_READ(task, tgid);
	bpf_probe_read_kernel_str(e->parent_comm, sizeof(e->parent_comm), task->comm);
}

static __always_inline void set_file(struct draft *d, struct file *f)
{
	struct inode *inode = BPF_CORE_READ(f, f_inode), *written;
	struct set_entry *e = &d->event.entry;
	struct path *path = path_of(f);

	d->event.key.id[0] = device_of(inode) | (__u64)BPF_CORE_READ(inode, i_generation) << 32;
	d->event.key.id[1] = BPF_CORE_READ(inode, i_ino);
	e->magic = BPF_CORE_READ(inode, i_sb, s_magic);
	e->mode = BPF_CORE_READ(inode, i_mode);
	written = e->magic == OVERLAYFS_MAGIC ? upper_of(inode) : inode;
	e->ctime_ns = ctime_of(written);
	e->size = BPF_CORE_READ(written, i_size);
	d->texts = d->event.key.set == SET_FILES ? TEXTS_ALL : TEXTS_CONTENT;
	if (!BPF_CORE_READ(inode, i_nlink))
		e->path_flags |= PATH_DELETED;
	d->dentry = BPF_CORE_READ(path, dentry);
	d->mnt = BPF_CORE_READ(path, mnt);
}

/* exec */

/*
 * The lineage's program on the same event is attached earlier and so runs
 * earlier: the process is known here.
 */
SEC("raw_tracepoint/sched_process_exec")
int set_exec_raw(struct bpf_raw_tracepoint_args *ctx)
{
	struct linux_binprm *bprm = (struct linux_binprm *)ctx->args[2];
	struct draft *d;

	d = begin(D_EXEC, SET_EXEC);
	if (!d)
		return 0;
	d->event.key.what = d->event.entry.session;
	set_file(d, BPF_CORE_READ(bprm, file));
	set_arg(d, BPF_CORE_READ(bprm, filename));
	count(D_EXEC, NOTED);
	return 0;
}

/* libraries */

#define VM_WRITE 0x2
#define VM_EXEC 0x4
#define VM_MAYSHARE 0x80	/* VM_SHARED is taken away where the file is read-only */

struct vm_area_struct {
	unsigned long vm_end;
	unsigned long vm_flags;
	struct file *vm_file;
} __attribute__((preserve_access_index));

static __always_inline void on_flags(__u32 n, struct vm_area_struct *vma, __u64 flags)
{
	struct file *f = BPF_CORE_READ(vma, vm_file);
	struct draft *d;

	if (!f || !(flags & VM_EXEC))
		return;
	d = begin(n, SET_LIBRARIES);
	if (!d)
		return;
	d->event.key.what = flags & VM_MAYSHARE ?
		(flags & VM_WRITE ? MAPPING_SHARED_WRITABLE : MAPPING_SHARED) :
		(flags & VM_WRITE ? MAPPING_PRIVATE_WRITABLE : MAPPING_PRIVATE);
	set_file(d, f);
	count(n, NOTED);
}

static __always_inline void on_mapping(__u32 n, struct vm_area_struct *vma)
{
	on_flags(n, vma, BPF_CORE_READ(vma, vm_flags));
}

/*
 * perf_event_mmap is told of every mapping that came to be or changed its
 * protection, by any call, execve included.
 */
SEC("fentry/perf_event_mmap")
int set_libraries_fentry(__u64 *ctx)
{
	on_mapping(D_LIBRARY, (struct vm_area_struct *)ctx[0]);
	return 0;
}

#if defined(__TARGET_ARCH_x86)
#define FIRST_PARM di
#define SECOND_PARM si
#define THIRD_PARM dx
#define RESULT ax
struct kprobe_regs {
	__u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
};
#elif defined(__TARGET_ARCH_arm64)
#define FIRST_PARM regs[0]
#define SECOND_PARM regs[1]
#define THIRD_PARM regs[2]
#define RESULT regs[0]
struct kprobe_regs {
	__u64 regs[31];
};
#endif

SEC("kprobe/perf_event_mmap")
int set_libraries_kprobe(struct kprobe_regs *ctx)
{
	on_mapping(D_LIBRARY, (struct vm_area_struct *)ctx->FIRST_PARM);
	return 0;
}

/*
 * Where perf_event_mmap is compiled so that it cannot be traced (5.10),
 * uprobe_mmap is told of new mappings of files, and this of changed ones.
 */
static __always_inline int on_mprotect(struct vm_area_struct *vma, __u64 prot)
{
	__u64 flags = BPF_CORE_READ(vma, vm_flags) & VM_MAYSHARE;

	if (!(prot & VM_EXEC))
		return 0;
	on_flags(D_MPROTECT, vma, flags | (prot & (VM_WRITE | VM_EXEC))); /* PROT_x is VM_x */
	return 0;
}

SEC("fentry/security_file_mprotect")
int set_mprotect_fentry(__u64 *ctx)
{
	return on_mprotect((struct vm_area_struct *)ctx[0], ctx[2]);
}

SEC("kprobe/security_file_mprotect")
int set_mprotect_kprobe(struct kprobe_regs *ctx)
{
	return on_mprotect((struct vm_area_struct *)ctx->FIRST_PARM, ctx->THIRD_PARM);
}

/*
 * Without either, the results of the system calls are looked up: what is mapped
 * at the address now. That needs bpf_find_vma (5.17).
 */
struct looked_up {
	__u32 draft;
	__u32 pad;
	__u64 end;	/* of the mapping that was found */
};

static long on_vma(struct task_struct *task, struct vm_area_struct *vma, struct looked_up *l)
{
	l->end = BPF_CORE_READ(vma, vm_end);
	if (l->draft == D_LIBRARY_EXEC)
		on_mapping(D_LIBRARY_EXEC, vma);
	else
		on_mapping(D_LIBRARY, vma);
	return 0;
}

#define PROT_READ 1
#define PROT_EXEC 4
#define READ_IMPLIES_EXEC 0x0400000	/* personality(2) */
#define SHM_EXEC 0100000
#define MAP_ANONYMOUS 0x20
#define MAX_VMAS 8	/* that one mprotect makes executable */
#define ENOENT 2

/* Whether a mapping that is asked for with such a protection is executable. */
static __always_inline bool wants_exec(__u64 prot)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return (prot & PROT_EXEC) || ((prot & PROT_READ) && (BPF_CORE_READ(task, personality) & READ_IMPLIES_EXEC));
}

/* Somebody else may hold the lock of the address space, and then it is lost. */
static __always_inline long look_up(__u64 addr, struct looked_up *l)
{
	return bpf_find_vma(bpf_get_current_task_btf(), addr, on_vma, l, 0);
}

SEC("raw_tracepoint/sys_exit")
int set_libraries_call(struct bpf_raw_tracepoint_args *ctx)
{
	struct pt_regs *regs = (struct pt_regs *)ctx->args[0];
	__u64 nr = syscall_of(regs);
	__s64 ret = ctx->args[1];
	struct looked_up l = { .draft = D_LIBRARY };
	__u64 addr, end, prot, flags;
	enum call call;
	__u32 abi, i;
	long err;

	if (!current_process())
		return 0;
	abi = abi_of(nr, is_compat_task());
	call = call_of(number_of(nr, abi), abi);
	if (ret < 0 && ret > -4096)
		return 0;
	switch (call) {
	case CALL_MMAP:
		prot = arg_of(regs, abi, 2);
		flags = arg_of(regs, abi, 3);
		if (!wants_exec(prot) || (flags & MAP_ANONYMOUS))
			return 0;
		if (abi == ABI_COMPAT)
			ret = (__u32)ret;
		err = look_up(ret, &l);
		if (err && err != -ENOENT)
			lose(D_LIBRARY, SET_LIBRARIES);
		return 0;
	case CALL_SHMAT:
		flags = arg_of(regs, abi, 2);
		if (!(flags & SHM_EXEC))
			return 0;
		err = look_up(abi == ABI_COMPAT ? (__u32)ret : ret, &l);
		if (err && err != -ENOENT)
			lose(D_LIBRARY, SET_LIBRARIES);
		return 0;
	case CALL_MMAP_OLD:
		if (look_up((__u32)ret, &l))
			lose(D_LIBRARY, SET_LIBRARIES);
		return 0;
	case CALL_MPROTECT:
		prot = arg_of(regs, abi, 2);
		if (!wants_exec(prot))
			return 0;
		addr = arg_of(regs, abi, 0);
		end = addr + arg_of(regs, abi, 1);
		for (i = 0; i < MAX_VMAS && addr < end; i++) {
			l.end = 0;
			err = look_up(addr, &l);
			if (err == -ENOENT)
				return 0;
			if (err || l.end <= addr)
				break;
			addr = l.end;
		}
		if (addr < end)
			lose(D_LIBRARY, SET_LIBRARIES);
		return 0;
	default:
		return 0;
	}
}

struct mm_struct {
	unsigned long start_code;
} __attribute__((preserve_access_index));

struct task_struct___mm {
	struct mm_struct *mm;
	void *stack;
} __attribute__((preserve_access_index));

/*
 * execve maps the program and its interpreter. The first instruction lies in
 * the one or the other.
 */
SEC("raw_tracepoint/sched_process_exec")
int set_libraries_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct looked_up l = { .draft = D_LIBRARY_EXEC };
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs;
	__u64 start, ip;
	bool failed;

	if (!is_due())
		return 0;
	start = BPF_CORE_READ((struct task_struct___mm *)task, mm, start_code);
	regs = (struct pt_regs *)bpf_task_pt_regs(task);
#if defined(__TARGET_ARCH_x86)
	ip = BPF_CORE_READ(regs, ip);
#else
	ip = BPF_CORE_READ(regs, pc);
#endif
	failed = look_up(start, &l) != 0;
	failed |= look_up(ip, &l) != 0;
	if (failed)
		lose(D_LIBRARY_EXEC, SET_LIBRARIES);
	return 0;
}

/*
 * The same before bpf_find_vma: until 6.0 the mappings are a list. Nobody else
 * can change it yet. They are told one by one, for the verifier's sake.
 */
struct vm_area_struct___list {
	struct vm_area_struct *vm_next;
} __attribute__((preserve_access_index));

struct mm_struct___list {
	struct vm_area_struct *mmap;
} __attribute__((preserve_access_index));

#define MAX_FIRST 24	/* mappings that are looked at: program, interpreter, stack, vdso */

__noinline __u64 next_vma(__u64 at)
{
	struct vm_area_struct *vma = (struct vm_area_struct *)at;

	on_mapping(D_LIBRARY_EXEC, vma);
	return (__u64)BPF_CORE_READ((struct vm_area_struct___list *)vma, vm_next);
}

SEC("raw_tracepoint/sched_process_exec")
int set_libraries_list(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct___mm *task = (struct task_struct___mm *)bpf_get_current_task();
	struct mm_struct___list *mm;
	__u64 vma;
	__u32 i;

	if (!is_due())
		return 0;
	mm = (struct mm_struct___list *)BPF_CORE_READ(task, mm);
	vma = (__u64)BPF_CORE_READ(mm, mmap);
	for (i = 0; i < MAX_FIRST && vma; i++)
		vma = next_vma(vma);
	if (vma)
		lose(D_LIBRARY_EXEC, SET_LIBRARIES);
	return 0;
}

/* syscalls */

SEC("raw_tracepoint/sys_enter")
int set_syscalls_raw(struct bpf_raw_tracepoint_args *ctx)
{
	if (current_process())
		on_call(ctx->args[1], is_compat_task());
	return 0;
}

/* files */

struct open_flags {
	int open_flag;
} __attribute__((preserve_access_index));

/* emptied: it was opened with O_TRUNC, which needs no other sign of writing. */
static __always_inline void on_open(__u32 n, struct file *f, bool emptied)
{
	struct draft *d;
	__u32 mode;

	mode = BPF_CORE_READ(f, f_mode);
	if (mode & FMODE_PATH)
		return;
	d = begin(n, SET_FILES);
	if (!d)
		return;
	set_file(d, f);
	if ((d->event.entry.mode & S_IFMT) == S_IFDIR)
		return;
	if (BPF_CORE_READ(f, f_flags) & FMODE_EXEC) {
		d->event.key.what = ACCESS_EXEC;
		count(n, NOTED);
		return;
	}
	if (mode & FMODE_READ) {
		d->event.key.what = ACCESS_READ;
		count(n, NOTED);
	}
	if ((mode & FMODE_WRITE) || emptied) {
		d->event.key.what = ACCESS_WRITE;
		count(n, NOTED);
	}
}

static __always_inline bool is_file(__u64 ret)
{
	return ret && ret < (__u64)-4095;
}

static __always_inline bool empties(struct open_flags *op)
{
	return BPF_CORE_READ(op, open_flag) & O_TRUNC;
}

/*
 * do_filp_open, which is do_file_open in 7.x, has three arguments and returns a
 * file or an error.
 */
SEC("fexit/do_filp_open")
int set_files_fexit(__u64 *ctx)
{
	if (is_file(ctx[3]))
		on_open(D_FILE, (struct file *)ctx[3], empties((struct open_flags *)ctx[2]));
	return 0;
}

/*
 * By a handle a file is opened without do_filp_open: open_by_handle_at(2). The
 * function has four arguments until 5.12 and three from 5.13 on; the Go side
 * takes the right one of these, by the kernel's types.
 */
SEC("fexit/do_file_open_root")
int set_root_fexit(__u64 *ctx)
{
	if (is_file(ctx[3]))
		on_open(D_FILE_ROOT, (struct file *)ctx[3], empties((struct open_flags *)ctx[2]));
	return 0;
}

SEC("fexit/do_file_open_root")
int set_root4_fexit(__u64 *ctx)
{
	if (is_file(ctx[4]))
		on_open(D_FILE_ROOT, (struct file *)ctx[4], empties((struct open_flags *)ctx[3]));
	return 0;
}

/* Its arguments are gone when a function returns, and with them O_TRUNC. */
SEC("kretprobe/do_filp_open")
int set_files_kretprobe(struct kprobe_regs *ctx)
{
	if (is_file(ctx->RESULT))
		on_open(D_FILE, (struct file *)ctx->RESULT, false);
	return 0;
}

SEC("kretprobe/do_file_open_root")
int set_root_kretprobe(struct kprobe_regs *ctx)
{
	if (is_file(ctx->RESULT))
		on_open(D_FILE_ROOT, (struct file *)ctx->RESULT, false);
	return 0;
}

/* What sys_enter says of a call: its ABI, and which of those that we look at. */
static __always_inline enum call entered(struct bpf_raw_tracepoint_args *ctx, __u32 *abi)
{
	*abi = abi_of(ctx->args[1], is_compat_task());
	return call_of(number_of(ctx->args[1], *abi), *abi);
}

static __always_inline void set_args(struct pending *p, struct pt_regs *regs)
{
	p->args[0] = arg_of(regs, p->abi, 0);
	p->args[1] = arg_of(regs, p->abi, 1);
	p->args[2] = arg_of(regs, p->abi, 2);
	p->args[3] = arg_of(regs, p->abi, 3);
	p->args[4] = arg_of(regs, p->abi, 4);
	p->args[5] = arg_of(regs, p->abi, 5);
}

SEC("raw_tracepoint/sys_enter")
int set_files_enter(struct bpf_raw_tracepoint_args *ctx)
{
	struct draft *d;
	enum call call;
	__u32 abi;

	if (!current_process())
		return 0;
	call = entered(ctx, &abi);
	if (!is_open(call))
		return 0;
	d = begin(D_FILE_ENTER, SET_FILES);
	if (!d)
		return 0;
	d->call.call = call;
	d->call.abi = abi;
	set_args(&d->call, (struct pt_regs *)ctx->args[0]);
	pend_open(d);
	return 0;
}

/*
 * Another thread may have closed the file between the call's return and here,
 * or put another in its place.
 */
SEC("raw_tracepoint/sys_exit")
int set_files_call(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 nr = syscall_of((struct pt_regs *)ctx->args[0]);
	__s64 ret = ctx->args[1];
	struct pending *p;
	enum call call;
	struct file *f;
	__u32 abi;

	if (!current_process())
		return 0;
	abi = abi_of(nr, is_compat_task());
	call = call_of(number_of(nr, abi), abi);
	if (call == CALL_URING && ret >= 0) {
		if (begin(D_FILE, SET_FILES))
			count(D_FILE, AROUND);
		return 0;
	}
	if (!is_open(call))
		return 0;
	if (ret < 0) {
		forget(SET_FILES);
		return 0;
	}
	p = finish(D_FILE, SET_FILES);
	f = p ? file_of(ret) : 0;
	if (f)
		on_open(D_FILE, f, open_flags_of(p) & O_TRUNC);
	else
		lose(D_FILE, SET_FILES);
	return 0;
}

/*
 * Beside set_files_call, which sees no file that the kernel opens to execute it,
 * and for what the others see before the process is the container's.
 */
SEC("raw_tracepoint/sched_process_exec")
int set_files_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct linux_binprm *bprm = (struct linux_binprm *)ctx->args[2];

	if (is_due())
		on_open(D_FILE_EXEC, BPF_CORE_READ(bprm, file), false);
	return 0;
}

/* network */

static __always_inline void set_socket(struct set_key *k, struct sock *sk, __u32 op)
{
	k->what = op;
	k->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	k->type = BPF_CORE_READ(sk, sk_type);
	k->protocol = BPF_CORE_READ(sk, sk_protocol);
}

/*
 * An entry about an address that the process gave, of which there is a copy at
 * from: the kernel's, or one of our own, which may not be what the kernel used.
 */
static __always_inline void on_given(__u32 n, __u32 op, struct sock *sk, const void *from, __u32 len, bool own)
{
	union given a = {};
	struct set_key *k;
	struct draft *d;
	__u32 size;

	d = begin(n, SET_NETWORK);
	if (!d)
		return;
	if (own)
		d->event.entry.path_flags |= PATH_GIVEN;
	k = &d->event.key;
	set_socket(k, sk, op);
	size = len < sizeof(a) ? len : sizeof(a) - 1;
	barrier_var(size);
	if (bpf_probe_read_kernel(&a, size & (sizeof(a) - 1), from)) {
		count(n, LOST);
		return;
	}
	/*
	 * AF_UNSPEC dissolves a connection, and a socket of IPv6 ignores it. But one
	 * of IPv4 sends to such an address as if it were its own, and binds to it.
	 */
	if (a.family == AF_UNSPEC && op != OP_BIND && !(op == OP_SEND && k->family == AF_INET))
		return;
	/* Another family's address is refused, but for IPv4 where the socket is of IPv6. */
	if (a.family != AF_UNSPEC && a.family != k->family) {
		if (k->family == AF_UNIX || (is_inet(k->family) && !is_inet(a.family)))
			return;
		if (is_inet(a.family))
			k->family = a.family;
	}
	if (k->family == AF_INET) {
		k->port = bpf_ntohs(a.in.port);
		k->id[0] = a.in.addr;
	} else if (k->family == AF_INET6) {
		__u64 addr[2];

		__builtin_memcpy(addr, (char *)&a + 8, sizeof(addr));
		k->port = bpf_ntohs(a.in6.port);
		set_address6(k, addr);
	} else if (k->family == AF_UNIX) {
		set_path(d, n, (__s64)len - 2, from + 2);
	} else if (k->family == AF_VSOCK) {
		k->id[0] = a.vm.cid;
		k->id[1] = a.vm.port;
	}
	count(n, NOTED);
}

/*
 * An entry about a socket's ends, as the kernel has them: the other end's
 * address, but the own port of what was accepted; the own ones of bind.
 */
static __always_inline void on_sock(__u32 n, __u32 op, struct sock *sk)
{
	bool own = op == OP_BIND;
	struct unix_address *ua;
	struct set_key *k;
	struct draft *d;
	__u64 addr[2];

	d = begin(n, SET_NETWORK);
	if (!d)
		return;
	k = &d->event.key;
	set_socket(k, sk, op);
	if (k->family == AF_INET) {
		k->id[0] = own ? BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr) : BPF_CORE_READ(sk, __sk_common.skc_daddr);
	} else if (k->family == AF_INET6) {
		if (own)
			BPF_CORE_READ_INTO(&addr, sk, __sk_common.skc_v6_rcv_saddr);
		else
			BPF_CORE_READ_INTO(&addr, sk, __sk_common.skc_v6_daddr);
		set_address6(k, addr);
	} else if (k->family == AF_UNIX) {
		if (op == OP_CONNECT) /* who connects has no name as a rule */
			sk = BPF_CORE_READ((struct unix_sock *)sk, peer);
		ua = sk ? BPF_CORE_READ((struct unix_sock *)sk, addr) : 0;
		if (ua)
			set_path(d, n, (__s64)BPF_CORE_READ(ua, len) - 2, (void *)ua + bpf_core_field_offset(struct unix_address, name) + 2);
	}
	if (is_inet(BPF_CORE_READ(sk, __sk_common.skc_family)))
		k->port = op != OP_CONNECT ? BPF_CORE_READ(sk, __sk_common.skc_num) : bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	count(n, NOTED);
}

/*
 * A name in a message matters to datagrams; of TCP it means that the first
 * data comes with the connection.
 */
static __always_inline void on_message(__u32 n, struct sock *sk, const void *name, __s32 len, __u32 flags, bool own)
{
	__u16 type;

	if (!name || len < 2)
		return;
	type = BPF_CORE_READ(sk, sk_type);
	if (type != SOCK_STREAM)
		on_given(n, OP_SEND, sk, name, len, own);
	else if (flags & MSG_FASTOPEN)
		on_given(n, OP_CONNECT, sk, name, len, own);
}

static __always_inline int on_connect(struct socket *s, void *address, int len)
{
	on_given(D_CONNECT, OP_CONNECT, BPF_CORE_READ(s, sk), address, len, false);
	return 0;
}

static __always_inline int on_bind(struct socket *s, void *address, int len)
{
	on_given(D_BIND, OP_BIND, BPF_CORE_READ(s, sk), address, len, false);
	return 0;
}

static __always_inline int on_sendmsg(struct socket *s, struct msghdr *m)
{
	void *name = BPF_CORE_READ(m, msg_name);

	if (name)
		on_message(D_SEND, BPF_CORE_READ(s, sk), name, BPF_CORE_READ(m, msg_namelen), BPF_CORE_READ(m, msg_flags), false);
	return 0;
}

SEC("fentry/security_socket_connect")
int set_connect_fentry(__u64 *ctx)
{
	return on_connect((void *)ctx[0], (void *)ctx[1], ctx[2]);
}

SEC("fentry/security_socket_bind")
int set_bind_fentry(__u64 *ctx)
{
	return on_bind((void *)ctx[0], (void *)ctx[1], ctx[2]);
}

SEC("fentry/security_socket_sendmsg")
int set_send_fentry(__u64 *ctx)
{
	return on_sendmsg((void *)ctx[0], (void *)ctx[1]);
}

/* Called for every connection that a process accepts, of any family. */
SEC("fentry/security_sock_graft")
int set_accept_fentry(__u64 *ctx)
{
	on_sock(D_ACCEPT, OP_ACCEPT, (void *)ctx[0]);
	return 0;
}

SEC("kprobe/security_socket_connect")
int set_connect_kprobe(struct kprobe_regs *ctx)
{
	return on_connect((void *)ctx->FIRST_PARM, (void *)ctx->SECOND_PARM, ctx->THIRD_PARM);
}

SEC("kprobe/security_socket_bind")
int set_bind_kprobe(struct kprobe_regs *ctx)
{
	return on_bind((void *)ctx->FIRST_PARM, (void *)ctx->SECOND_PARM, ctx->THIRD_PARM);
}

SEC("kprobe/security_socket_sendmsg")
int set_send_kprobe(struct kprobe_regs *ctx)
{
	return on_sendmsg((void *)ctx->FIRST_PARM, (void *)ctx->SECOND_PARM);
}

SEC("kprobe/security_sock_graft")
int set_accept_kprobe(struct kprobe_regs *ctx)
{
	on_sock(D_ACCEPT, OP_ACCEPT, (void *)ctx->FIRST_PARM);
	return 0;
}

/*
 * A TCP connection is begun in the process that asks for it. That of MPTCP is
 * of several, of which each tells for itself.
 */
SEC("raw_tracepoint/inet_sock_set_state")
int set_connect_raw(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];

	if ((int)ctx->args[2] == TCP_SYN_SENT && BPF_CORE_READ(sk, sk_protocol) != IPPROTO_MPTCP)
		on_sock(D_CONNECT, OP_CONNECT, sk);
	return 0;
}

SEC("raw_tracepoint/sys_enter")
int set_network_enter(struct bpf_raw_tracepoint_args *ctx)
{
	struct draft *d;
	__u32 abi, call;

	if (!current_process())
		return 0;
	call = entered(ctx, &abi);
	if (!is_of_sockets(call))
		return 0;
	d = begin(D_CALL_ENTER, SET_NETWORK);
	if (!d)
		return 0;
	d->call.call = call;
	d->call.abi = abi;
	set_args(&d->call, (struct pt_regs *)ctx->args[0]);
	pend_socket(d);
	return 0;
}

/* One of sendmmsg's messages; a function of its own for the reason that
 * bare.bpf.c gives. */
static __noinline int on_one_message(struct pending *p, struct sock *sk, __u64 at)
{
	if (find_name(p, at) || read_name(p))
		lose(D_CALL, SET_NETWORK);
	else
		on_message(D_CALL, sk, p->given, p->given_len, 0, true);
	return 0;
}

/*
 * What a system call of sockets did. Where the kernel's own copy of an address
 * says the same, it is read; a datagram's is only in the process's memory, which
 * another thread may have changed before the kernel read it.
 */
static __always_inline void on_socket_call(struct pending *p, __s64 ret)
{
	__u16 protocol, family;
	struct sock *sk;
	__u32 i, size;

	sk = sock_of(p->call == CALL_ACCEPT ? ret : (__s32)p->args[0]);
	if (!sk) {
		lose(D_CALL, SET_NETWORK);
		return;
	}
	protocol = BPF_CORE_READ(sk, sk_protocol);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	switch (p->call) {
	case CALL_CONNECT:
		/* inet_sock_set_state tells of those of TCP, when they begin. */
		if ((protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP) && is_inet(family))
			return;
		/* fall through */
	case CALL_BIND:
		if (family == AF_VSOCK) /* a module's structure */
			on_given(D_CALL, p->call == CALL_BIND ? OP_BIND : OP_CONNECT, sk, p->given, p->given_len, true);
		else
			on_sock(D_CALL, p->call == CALL_BIND ? OP_BIND : OP_CONNECT, sk);
		return;
	case CALL_ACCEPT:
		on_sock(D_CALL, OP_ACCEPT, sk);
		return;
	case CALL_SENDTO:
	case CALL_SENDMSG:
		on_message(D_CALL, sk, p->given, p->given_len, 0, true);
		return;
	case CALL_SENDMMSG:
		size = p->abi == ABI_NATIVE ? MMSGHDR : MMSGHDR32;
		for (i = 0; i < MAX_MESSAGES && i < ret; i++)
			on_one_message(p, sk, p->args[1] + i * size);
		if (ret > MAX_MESSAGES)
			lose(D_CALL, SET_NETWORK);
		return;
	}
}

SEC("raw_tracepoint/sys_exit")
int set_network_call(struct bpf_raw_tracepoint_args *ctx)
{
	struct pt_regs *regs = (struct pt_regs *)ctx->args[0];
	__u64 nr = syscall_of(regs);
	__s64 ret = ctx->args[1];
	struct pending *p;
	__u32 abi, call;

	if (!current_process())
		return 0;
	abi = abi_of(nr, is_compat_task());
	call = call_of(number_of(nr, abi), abi);
	if (call == CALL_URING && ret >= 0) {
		if (begin(D_CALL, SET_NETWORK))
			count(D_CALL, AROUND);
		return 0;
	}
	if (!is_of_sockets(call) || (call == CALL_SOCKET && of_socketcall(arg_of(regs, abi, 0)) == CALL_OTHER))
		return 0;
	if (ret < 0) {
		forget(SET_NETWORK);
		return 0;
	}
	p = finish_socket(D_CALL);
	if (p)
		on_socket_call(p, ret);
	else
		lose(D_CALL, SET_NETWORK);
	return 0;
}
