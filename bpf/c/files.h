/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Which file a struct file is, and where. A path is found by walking from the
 * file's directory entry up to the root of the mount namespace, across mounts: unlike
 * the argument of a system call, nobody can change it between the kernel's use
 * and ours.
 */
#ifndef PROBITY_FILES_H
#define PROBITY_FILES_H

#include "kernel_drift.h"

#define MAX_NAMES 48	/* of a path: directories and mounts together */

#define FMODE_READ 0x1
#define FMODE_WRITE 0x2
#define FMODE_PATH 0x4000	/* opened with O_PATH: neither read nor written */
#define FMODE_EXEC 0x20		/* in f_flags: opened to be executed */
#define S_IFMT 0170000
#define S_IFDIR 0040000
#define OVERLAYFS_MAGIC 0x794c7630
#define SOCKFS_MAGIC 0x534f434b

struct qstr {
	__u32 len;
	const unsigned char *name;
} __attribute__((preserve_access_index));

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	struct super_block *d_sb;
} __attribute__((preserve_access_index));

struct vfsmount {
	struct dentry *mnt_root;
	struct super_block *mnt_sb;
} __attribute__((preserve_access_index));

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
} __attribute__((preserve_access_index));

struct super_block {
	__u32 s_dev;
	unsigned long s_magic;
} __attribute__((preserve_access_index));

struct inode {
	__u16 i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
	__u32 i_nlink;
	__s64 i_size;
	__u32 i_generation;
} __attribute__((preserve_access_index));

struct file {
	__u32 f_mode;
	__u32 f_flags;
	struct inode *f_inode;
	struct path f_path;
	void *private_data;
} __attribute__((preserve_access_index));

struct fdtable {
	__u32 max_fds;
	struct file **fd;
} __attribute__((preserve_access_index));

struct files_struct {
	struct fdtable *fdt;
} __attribute__((preserve_access_index));

struct fs_struct {
	struct path root;
} __attribute__((preserve_access_index));

struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct mnt_namespace {
	struct ns_common ns;
	struct mount *root;
} __attribute__((preserve_access_index));

struct nsproxy {
	struct mnt_namespace *mnt_ns;
} __attribute__((preserve_access_index));

/* What of a directory entry a path is found by. */
struct step {
	struct dentry *parent;
	__u32 hash;
	__u32 len;
	const unsigned char *name;
};

/* At once where the kernel has them as they are here, which all do so far: it is done for every name of a path. */
static __always_inline void read_step(struct step *s, struct dentry *at)
{
	__u32 parent = bpf_core_field_offset(struct dentry, d_parent);

	if (bpf_core_field_offset(struct dentry, d_name) == parent + 8 &&
	    bpf_core_field_offset(struct qstr, len) == 4 && bpf_core_field_offset(struct qstr, name) == 8) {
		bpf_probe_read_kernel(s, sizeof(*s), (void *)at + parent);
		return;
	}
	s->parent = BPF_CORE_READ(at, d_parent);
	s->len = BPF_CORE_READ(at, d_name.len);
	s->name = BPF_CORE_READ(at, d_name.name);
}

/* The file that is open as fd in the current process, or NULL. */
static __always_inline struct file *file_of(long fd)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *fdt;
	struct file *f = 0;
	struct file **at;

	fdt = BPF_CORE_READ(task, files, fdt);
	if (fd < 0 || fd >= BPF_CORE_READ(fdt, max_fds))
		return 0;
	at = BPF_CORE_READ(fdt, fd);
	if (bpf_probe_read_kernel(&f, sizeof(f), at + fd))
		return 0;
	return f;
}

/* Linux has 20 bits of a device's number for its minor. */
static __always_inline __u64 device_of(struct inode *inode)
{
	return BPF_CORE_READ(inode, i_sb, s_dev);
}

static __always_inline __s64 ctime_of(struct inode *inode)
{
	__s64 sec, nsec;

	if (bpf_core_field_exists(struct inode___6_11, i_ctime_sec)) {
		sec = BPF_CORE_READ((struct inode___6_11 *)inode, i_ctime_sec);
		nsec = BPF_CORE_READ((struct inode___6_11 *)inode, i_ctime_nsec) & 0x7fffffff;
	} else if (bpf_core_field_exists(struct inode___6_6, __i_ctime)) {
		sec = BPF_CORE_READ((struct inode___6_6 *)inode, __i_ctime.tv_sec);
		nsec = BPF_CORE_READ((struct inode___6_6 *)inode, __i_ctime.tv_nsec);
	} else {
		sec = BPF_CORE_READ((struct inode___old *)inode, i_ctime.tv_sec);
		nsec = BPF_CORE_READ((struct inode___old *)inode, i_ctime.tv_nsec);
	}
	return sec * 1000000000 + nsec;
}

/*
 * The inode of an overlay's writable layer that holds the content, or the inode
 * itself: what is mapped through an overlay is the layer's file, and who stores
 * into that changes its change time and not the overlay's. In struct ovl_inode
 * the directory entry of the writable layer, or NULL, has always come after the
 * inode; the type itself is often a module's. What is not a file of another file
 * system is not taken for one.
 */
static __always_inline struct inode *upper_of(struct inode *inode)
{
	struct inode *real = 0;
	struct dentry *upper;

	if (bpf_probe_read_kernel(&upper, sizeof(upper), (void *)inode + bpf_core_type_size(struct inode)) || !upper)
		return inode;
	if (bpf_core_read(&real, sizeof(real), &upper->d_inode) || !real || BPF_CORE_READ(real, i_sb) == BPF_CORE_READ(inode, i_sb) ||
	    (BPF_CORE_READ(real, i_mode) & S_IFMT) != (BPF_CORE_READ(inode, i_mode) & S_IFMT))
		return inode;
	return real;
}

/*
 * Where the path of a file begins, as its user sees it. The mark of a backing
 * file is not enough to go by, so what is beside it must be a path.
 */
static __always_inline struct path *path_of(struct file *f)
{
	struct super_block *sb;
	struct path *user;

	if (bpf_core_field_exists(struct backing_file, user_path) &&
	    (BPF_CORE_READ(f, f_mode) & (FMODE_BACKING_6_5 | FMODE_BACKING_6_14))) {
		user = (void *)f + bpf_core_field_offset(struct backing_file, user_path);
		sb = BPF_CORE_READ(user, mnt, mnt_sb);
		if (sb && sb == BPF_CORE_READ(user, dentry, d_sb))
			return user;
	}
	return (void *)f + bpf_core_field_offset(struct file, f_path);
}

#endif
