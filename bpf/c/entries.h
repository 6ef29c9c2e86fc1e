/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Entries of sets: how an event becomes one, or is counted. What sees events is
 * not here: sets.bpf.c reads the kernel's structures, bare.bpf.c does without
 * their types. Nothing here needs them.
 *
 * Whoever includes this says in find_path where the path of an entry comes from,
 * and in describe_more what it knows beyond what every program is told.
 */
#ifndef PROBITY_ENTRIES_H
#define PROBITY_ENTRIES_H

#include "attribution.h"
#include "sets.h"

/* The states of the containers, by cgroup id. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_ARRAY);
		__uint(max_entries, 1);
		__uint(key_size, sizeof(__u32));
		__uint(value_size, sizeof(struct set_state));
	});
} set_states SEC(".maps");

/* Their entries. The agent decides whether memory is taken before or on use. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_HASH);
		__uint(max_entries, 1);
		__uint(key_size, sizeof(struct set_key));
		__uint(value_size, sizeof(struct set_entry));
	});
} set_entries SEC(".maps");

/*
 * An entry in the making, which is too large for the stack. Each program has
 * its own: one may be preempted and another run on the same processor, while
 * the kernel never runs the same one twice at a time there.
 */
enum {
	D_EXEC, D_LIBRARY, D_LIBRARY_EXEC, D_MPROTECT,
	D_FILE, D_FILE_EXEC, D_FILE_ROOT, D_FILE_ENTER,
	D_CONNECT, D_BIND, D_ACCEPT, D_SEND, D_CALL, D_CALL_ENTER,
	DRAFTS
};

#define WALK_LEN SET_PATH_LEN

/* What of an entry tells it from others beside the other fields of its key. */
enum texts {
	TEXTS_NONE,	/* nothing */
	TEXTS_ALL,	/* its path and argument */
	TEXTS_CONTENT,	/* these, and its file's change time and size: what it says of the content is sworn to */
};

/*
 * A system call that is being carried out, as it was when it began. An address
 * or a name is what the process's memory held then: the kernel copies it later.
 */
struct pending {
	__u32 call;	/* enum call */
	__u32 abi;
	__u64 args[6];
	__u32 began;	/* a TCP connection began in it */
	__u32 unread;	/* what it gives could not be read when it began */
	__u32 given_len;
	__u32 pad;
	char given[SET_PATH_LEN];
};

struct draft {
	struct set_event event;
	struct pending call;
	struct dentry *dentry;	/* where the path begins, or NULL */
	struct vfsmount *mnt;
	struct dentry *mnt_root;	/* of mnt */
	struct dentry *root_dentry;
	struct vfsmount *root_mnt;
	struct mount *top;	/* of the process's mount namespace */
	__u64 off;	/* in walk, where what was found of the path begins */
	__u64 root_off;	/* and where it begins if it is to end at the process's root */
	__u32 described;
	__u32 spelt;
	__u32 texts;	/* enum texts */
	__u32 arg_len;
	char arg[SET_ARG_LEN];
	char walk[2 * WALK_LEN];	/* twice, so that the verifier sees that a name fits */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DRAFTS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct draft));
} drafts SEC(".maps");

/*
 * What a process did in its execve is over when lineage learns that the execve
 * made it the container's. Hooks that see such things as they happen have one
 * beside them that makes up for those, and looks at nothing else.
 */
const volatile bool fresh_only = false;

static __always_inline bool is_due(void)
{
	struct process *p = current_process();

	return p && (!fresh_only || p->fresh);
}

/* What is to be counted for the containers that a process is in. */
enum outcome { NOTED, LOST, AROUND };

/* Begins an entry, if the current process is a container's. */
static __always_inline struct draft *begin(__u32 n, __u32 set)
{
	struct set_entry *e;
	struct process *p;
	struct draft *d;

	p = current_process();
	if (!p)
		return 0;
	d = bpf_map_lookup_elem(&drafts, &n);
	if (!d)
		return 0;
	__builtin_memset(&d->event.key, 0, sizeof(d->event.key));
	d->event.key.set = set;
	e = &d->event.entry;
	e->session = p->session;
	e->ctime_ns = 0;
	e->size = 0;
	e->magic = 0;
	e->mode = 0;
	e->path_flags = 0;
	e->path_len = 0;
	e->arg_len = 0;
	e->mnt_ns = 0;
	d->dentry = 0;
	d->described = 0;
	d->spelt = 0;
	d->texts = TEXTS_NONE;
	d->arg_len = 0;
	return d;
}

/*
 * Calls that are being carried out, by thread and set: what is answered without
 * being carried out (by seccomp, by a tracer) has an end and no beginning. Who
 * dies in a call leaves it here, so the oldest goes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct pending);
} pending SEC(".maps");

/* A process's number has 22 bits. */
static __always_inline __u64 pending_key(__u32 set)
{
	return bpf_get_current_pid_tgid() | (__u64)set << 60;
}

static __always_inline struct draft *draft_of(__u32 n)
{
	return bpf_map_lookup_elem(&drafts, &n);
}

/* The call that ends, which is no more pending, or NULL: it was not carried out. */
static __always_inline struct pending *finish(__u32 n, __u32 set)
{
	__u64 key = pending_key(set);
	struct pending *p;
	struct draft *d;

	p = bpf_map_lookup_elem(&pending, &key);
	d = draft_of(n);
	if (!p || !d)
		return 0;
	bpf_probe_read_kernel(&d->call, sizeof(d->call), p);
	bpf_map_delete_elem(&pending, &key);
	return &d->call;
}

static __always_inline void forget(__u32 set)
{
	__u64 key = pending_key(set);

	bpf_map_delete_elem(&pending, &key);
}

/* Leaves the path, as far as this object knows it, in the entry. */
static __always_inline void find_path(struct draft *d, __u32 n);

/* What this object knows of a new entry's process beyond what every program is told. */
static __always_inline void describe_more(struct draft *d);

/*
 * SipHash-2-4 (Aumasson, Bernstein 2012). Its key is the agent's, made anew at
 * each start: a container chooses the texts, but cannot choose two that hash
 * alike.
 */
const volatile __u64 hash_key[2] = {};

struct sip {
	__u64 v0, v1, v2, v3;
};

static __always_inline __u64 rotl(__u64 x, __u32 n)
{
	return x << n | x >> (64 - n);
}

static __always_inline void sip_round(struct sip *s)
{
	s->v0 += s->v1;
	s->v1 = rotl(s->v1, 13) ^ s->v0;
	s->v0 = rotl(s->v0, 32);
	s->v2 += s->v3;
	s->v3 = rotl(s->v3, 16) ^ s->v2;
	s->v0 += s->v3;
	s->v3 = rotl(s->v3, 21) ^ s->v0;
	s->v2 += s->v1;
	s->v1 = rotl(s->v1, 17) ^ s->v2;
	s->v2 = rotl(s->v2, 32);
}

static __always_inline void sip_word(struct sip *s, __u64 m)
{
	s->v3 ^= m;
	sip_round(s);
	sip_round(s);
	s->v0 ^= m;
}

#define TEXT_WORDS (SET_TEXT_LEN / 8)

/*
 * Of three words (the lengths of the texts, the file's change time and its size)
 * and the texts, filled up with NUL to a whole word.
 */
__noinline __u64 hash_texts(__u32 n)
{
	struct sip s = {
		.v0 = hash_key[0] ^ 0x736f6d6570736575,
		.v1 = hash_key[1] ^ 0x646f72616e646f6d,
		.v2 = hash_key[0] ^ 0x6c7967656e657261,
		.v3 = hash_key[1] ^ 0x7465646279746573,
	};
	struct set_entry *e;
	struct draft *d;
	__u32 i, len;
	bool content;
	__u64 m;

	d = bpf_map_lookup_elem(&drafts, &n);
	if (!d)
		return 0;
	e = &d->event.entry;
	len = e->path_len + e->arg_len;
	content = d->texts == TEXTS_CONTENT;
	sip_word(&s, e->path_len | (__u64)e->arg_len << 32);
	sip_word(&s, content ? e->ctime_ns : 0);
	sip_word(&s, content ? e->size : 0);
	for (i = 0; i < TEXT_WORDS; i++) {
		if (i * 8 >= len)
			break;
		m = *(__u64 *)&e->text[i * 8];
		if (len - i * 8 < 8)
			m &= (1ULL << (len - i * 8) * 8) - 1;
		sip_word(&s, m);
	}
	sip_word(&s, (__u64)((len + 31) & ~7U) << 56); /* as many bytes as were hashed */
	s.v2 ^= 0xff;
	sip_round(&s);
	sip_round(&s);
	sip_round(&s);
	sip_round(&s);
	return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}

/*
 * Puts the texts together, and their hash into the key. It takes as long as the
 * path is deep, so it is done only if a container has the set.
 */
__noinline int spell(__u32 n)
{
	struct set_entry *e;
	struct draft *d;
	__u64 at, len;

	d = bpf_map_lookup_elem(&drafts, &n);
	if (!d)
		return 0;
	d->spelt = 1;
	if (d->texts == TEXTS_NONE)
		return 0;
	find_path(d, n);
	e = &d->event.entry;
	at = e->path_len;
	len = d->arg_len;
	barrier_var(at);
	barrier_var(len);
	if (at > SET_PATH_LEN || len > SET_ARG_LEN)
		return 0;
	bpf_probe_read_kernel(&e->text[at], len, d->arg);
	e->arg_len = len;
	d->event.key.id[2] = hash_texts(n);
	return 0;
}

/* Fills in what only a new entry needs. */
__noinline int describe(__u32 n)
{
	struct set_entry *e;
	struct draft *d;
	__u64 id;

	d = bpf_map_lookup_elem(&drafts, &n);
	if (!d)
		return 0;
	e = &d->event.entry;
	e->parent = 0;
	__builtin_memset(e->parent_comm, 0, sizeof(e->parent_comm));
	describe_more(d);
	id = bpf_get_current_pid_tgid();
	e->pid = id >> 32;
	e->tid = (__u32)id;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	d->described = 1;
	return 0;
}

static __always_inline void tell(struct draft *d, __u64 cgroup)
{
	__u64 len = d->event.entry.path_len + d->event.entry.arg_len;

	d->event.type = EVENT_SET;
	d->event.pad = 0;
	d->event.cgroup = cgroup;
	barrier_var(len); /* the verifier is to see the bound on what is used */
	if (len > SET_TEXT_LEN)
		return;
	len += sizeof(d->event) - SET_TEXT_LEN;
	if (bpf_ringbuf_output(&events, &d->event, len, 0))
		count_ring_full(cgroup);
}

/* Counts an event for one container. */
__noinline int account(__u32 n, __u64 cgroup, __u32 outcome)
{
	struct set_entry *e;
	struct set_state *st;
	struct set_count *c;
	__u32 zero = 0, set;
	struct draft *d;
	void *inner;
	bool guest;
	long err;

	d = bpf_map_lookup_elem(&drafts, &n);
	if (!d)
		return 0;
	set = d->event.key.set;
	if (set >= SETS)
		return 0;
	inner = bpf_map_lookup_elem(&set_states, &cgroup);
	if (!inner)
		return 0;
	st = bpf_map_lookup_elem(inner, &zero);
	if (!st)
		return 0;
	c = &st->sets[set];
	if (!c->quota)
		return 0;
	if (outcome == LOST) {
		__sync_fetch_and_add(&c->lost, 1);
		return 0;
	}
	if (outcome == AROUND) {
		__sync_fetch_and_add(&c->around, 1);
		return 0;
	}
	inner = bpf_map_lookup_elem(&set_entries, &cgroup);
	if (!inner)
		return 0;
	if (!d->spelt)
		spell(n);
	e = bpf_map_lookup_elem(inner, &d->event.key);
	if (e)
		goto again;
	/*
	 * Processors that race here go past the quota, by one entry each at most.
	 * Others decide who connects to a container: they get half of its share.
	 */
	guest = set == SET_NETWORK && d->event.key.what == OP_ACCEPT;
	if (c->used >= c->quota || (guest && c->guests >= c->quota / 2)) {
		__sync_fetch_and_add(&c->full, 1);
		return 0;
	}
	if (!d->described)
		describe(n);
	e = &d->event.entry;
	e->count = 1;
	e->first_ns = bpf_ktime_get_boot_ns();
	e->last_ns = e->first_ns;
	err = bpf_map_update_elem(inner, &d->event.key, e, BPF_NOEXIST);
	if (!err) {
		__sync_fetch_and_add(&c->used, 1);
		if (guest)
			__sync_fetch_and_add(&c->guests, 1);
		tell(d, cgroup);
		return 0;
	}
	/* Another processor was faster, or there was no memory. */
	e = bpf_map_lookup_elem(inner, &d->event.key);
	if (!e) {
		__sync_fetch_and_add(&c->lost, 1);
		return 0;
	}
again:
	__sync_fetch_and_add(&e->count, 1);
	e->last_ns = bpf_ktime_get_boot_ns();
	return 0;
}

/*
 * Counts an event for each container that the current process is in. Verified
 * once per program, so not inlined.
 */
__noinline int count(__u32 n, __u32 outcome)
{
	struct process *p = current_process();
	__u32 levels = armed_levels(), i;
	__u64 cgroup;

	for_each_armed(i, levels, cgroup) {
		if (is_containers(p, i))
			account(n, cgroup, outcome);
	}
	return 0;
}

/* A name of a socket is spelt with NUL at its end or without, unless it begins with one. */
__noinline int trim_arg(__u32 n)
{
	struct draft *d;
	__u32 i;

	d = bpf_map_lookup_elem(&drafts, &n);
	if (!d || !d->arg[0])
		return 0;
	for (i = 0; i < SET_ARG_LEN; i++) {
		if (i >= d->arg_len)
			return 0;
		if (!d->arg[i])
			break;
	}
	d->arg_len = i;
	return 0;
}

static __always_inline void set_arg(struct draft *d, const char *filename)
{
	long len;

	len = bpf_probe_read_kernel_str(d->arg, sizeof(d->arg), filename);
	d->arg_len = len > 0 ? len - 1 : 0;
	if (len == sizeof(d->arg))
		d->event.entry.path_flags |= PATH_ARG_CUT;
}

static __always_inline void lose(__u32 n, __u32 set)
{
	if (begin(n, set))
		count(n, LOST);
}

#endif
