/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The time between a function's entry and its return, per thread or goroutine.
 *
 * Calls nest. Where the stack pointer is known the place of the frame tells
 * them apart: a frame that is left without a return being seen (longjmp, an
 * exception, a tail call) is found by the next call at its place or above it,
 * and counted as unmatched. Elsewhere the last entry is the first to return.
 */
#ifndef PROBITY_PAIRS_H
#define PROBITY_PAIRS_H

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct slot_key);
	__type(value, struct duration);
} durations SEC(".maps");

/* Whose calls: a thread's, or a goroutine's of a process. */
struct caller_key {
	__u64 who;	/* tgid and tid, or the address of the goroutine */
	__u32 tgid;	/* of a goroutine */
	__u32 site;
};

struct frame {
	__u64 ns;
	__u64 place;	/* grows with depth; 0 if it is not known */
};

struct calls {
	__u32 depth;	/* may be past MAX_NESTED: those above are not kept */
	__u32 pad;
	struct frame call[MAX_NESTED];
};

/*
 * Least recently used go first: what a thread left behind that ended within the
 * function. Who comes back to find its entry gone is counted as unmatched.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct caller_key);
	__type(value, struct calls);
} calls SEC(".maps");

static __always_inline bool is_return(__u64 cookie)
{
	return (cookie >> 32) & COOKIE_RETURN;
}

static __always_inline void whose(void *ctx, bool of_file, __u64 cookie, struct caller_key *k, __u64 *place)
{
	__u32 bits = cookie >> 32;
	__u64 top = 0, sp;

	k->site = (__u32)cookie;
	k->who = bpf_get_current_pid_tgid();
	*place = 0;
	if (!of_file || !(bits & COOKIE_STACKED))
		return;
	sp = user_reg(ctx, REG_SP);
	if (bits & COOKIE_POPPED)
		sp -= sizeof(__u64);
	if (bits & COOKIE_GO) {
		/*
		 * runtime.g begins with the bounds of the stack, which is moved
		 * when it grows: the distance from its top stays.
		 */
		k->tgid = k->who >> 32;
		k->who = user_reg(ctx, REG_G);
		bpf_probe_read_user(&top, sizeof(top), (void *)(k->who + sizeof(__u64)));
	}
	*place = top - sp; /* without a top: the complement, which grows downwards as well */
}

/*
 * The frame at an index. The compiler knows where it checked the index itself,
 * and would drop a mask that the verifier needs to see.
 */
static __always_inline struct frame *frame_at(struct calls *c, __u64 i)
{
	asm volatile("%0 &= %1" : "+r"(i) : "i"(MAX_NESTED - 1));
	return &c->call[i];
}

/* Forgets the frames that were left: those at the place or further in. */
static __always_inline __u32 forget(struct calls *c, __u64 place, bool same)
{
	__u32 i, gone = 0;

	for (i = 0; i < MAX_NESTED; i++) {
		if (!c->depth || c->depth > MAX_NESTED)
			break;
		if (frame_at(c, c->depth - 1)->place < place + !same)
			break;
		c->depth--;
		gone++;
	}
	return gone;
}

static __always_inline __u32 log2_of(__u64 v)
{
	__u32 n = 0;

	if (v >> 32) { v >>= 32; n += 32; }
	if (v >> 16) { v >>= 16; n += 16; }
	if (v >> 8) { v >>= 8; n += 8; }
	if (v >> 4) { v >>= 4; n += 4; }
	if (v >> 2) { v >>= 2; n += 2; }
	if (v >> 1) n += 1;
	return n;
}

/*
 * Tells one container: ns of a pair, or ~0 of none, and how many calls cannot
 * be paired. Functions of their own as account_hit is.
 */
__attribute__((noinline)) int count_pair_in(__u64 cgroup, __u32 site, __u64 ns, __u64 unmatched)
{
	struct slot_key key = {};
	struct duration *d;
	struct slot *s;

	key.cgroup = cgroup;
	key.site = site;
	s = bpf_map_lookup_elem(&slots, &key);
	if (!s || s->stood_ns)
		return 0; /* while it stands down nothing is entered either */
	d = bpf_map_lookup_elem(&durations, &key);
	if (!d)
		return 0;
	if (unmatched)
		__sync_fetch_and_add(&d->unmatched, unmatched);
	if (ns == ~0ULL)
		return 0;
	__sync_fetch_and_add(&d->buckets[log2_of(ns) & (BUCKETS - 1)], 1);
	__sync_fetch_and_add(&d->sum_ns, ns);
	__sync_fetch_and_add(&d->count, 1);
	return 0;
}

__attribute__((noinline)) int count_pair(__u32 site, __u64 ns, __u64 unmatched)
{
	__u32 levels, i;
	__u64 cgroup;

	levels = armed_levels();
	for_each_armed(i, levels, cgroup)
		count_pair_in(cgroup, site, ns, unmatched);
	return 0;
}

/* Remembers a call. */
__attribute__((noinline)) int enter(__u64 who, __u32 tgid, __u32 site, __u64 place)
{
	struct caller_key k = {};
	struct calls *c, fresh;
	__u64 lost = 0, now;

	k.who = who;
	k.tgid = tgid;
	k.site = site;
	now = bpf_ktime_get_boot_ns();
	c = bpf_map_lookup_elem(&calls, &k);
	if (!c) {
		__builtin_memset(&fresh, 0, sizeof(fresh));
		fresh.depth = 1;
		fresh.call[0].ns = now;
		fresh.call[0].place = place;
		if (bpf_map_update_elem(&calls, &k, &fresh, BPF_ANY))
			count_pair(site, ~0ULL, 1);
		return 0;
	}
	if (place)
		lost = forget(c, place, true);
	if (c->depth < MAX_NESTED) {
		frame_at(c, c->depth)->ns = now;
		frame_at(c, c->depth)->place = place;
	} else {
		lost++;
	}
	c->depth++;
	if (lost)
		count_pair(site, ~0ULL, lost);
	return 0;
}

/*
 * Finds the call that returns. Those that were too deep were counted when they
 * were entered.
 */
__attribute__((noinline)) int leave(__u64 who, __u32 tgid, __u32 site, __u64 place)
{
	struct caller_key k = {};
	__u64 lost = 0, now;
	struct calls *c;

	k.who = who;
	k.tgid = tgid;
	k.site = site;
	now = bpf_ktime_get_boot_ns();
	c = bpf_map_lookup_elem(&calls, &k);
	if (!c)
		return count_pair(site, ~0ULL, 1);
	if (c->depth > MAX_NESTED) {
		c->depth--;
		return 0;
	}
	if (place)
		lost = forget(c, place, false);
	if (!c->depth || (place && frame_at(c, c->depth - 1)->place != place))
		return count_pair(site, ~0ULL, lost + 1);
	c->depth--;
	now -= frame_at(c, c->depth)->ns;
	if (!c->depth)
		bpf_map_delete_elem(&calls, &k);
	return count_pair(site, now, lost);
}

static __always_inline void on_entry(void *ctx, bool of_file, __u64 cookie)
{
	struct caller_key k = {};
	__u64 place;

	whose(ctx, of_file, cookie, &k, &place);
	enter(k.who, k.tgid, k.site, place);
}

static __always_inline void on_return(void *ctx, bool of_file, __u64 cookie)
{
	struct caller_key k = {};
	__u64 place;

	whose(ctx, of_file, cookie, &k, &place);
	leave(k.who, k.tgid, k.site, place);
}

#endif
