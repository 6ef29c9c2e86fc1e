/* Functions that compilers copy, split and move away, and functions that are one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

volatile int v;
__attribute__((noipa)) void sink(int x) { v += x; }

/* Only ever called with 3: constprop. */
static __attribute__((noinline)) int constant(int x, int how) {
	for (int i = 0; i < how; i++)
		sink(x * how);
	return x + v;
}

/* Only ever reads a part of what it is given: isra. */
struct big { int a, b, c, d[40]; };
static __attribute__((noinline)) int parts(const struct big *b) { int n = b->b; sink(n); return n * 3; }

/* Has a path that hardly ever runs: its part is split off, or moved away. */
__attribute__((noipa, cold)) void rare(int x) { sink(x); sink(x + 1); }
__attribute__((noinline)) int mostly(int x) {
	if (__builtin_expect(x == 77, 0)) {
		rare(x); rare(x + 1); rare(x * 2); rare(v);
		abort();
	}
	sink(x);
	return v;
}

__attribute__((noipa)) int via_constant(int x) { return constant(x, 3) + 1; }
__attribute__((noipa)) int via_parts(struct big *b) { return parts(b) + 2; }

/* The same code twice, under names that have nothing to do with each other. */
__attribute__((noinline, optimize("no-ipa-icf"))) int sell(int x) { sink(x); return x * 17 + v; }
__attribute__((noinline, optimize("no-ipa-icf"))) int destroy(int x) { sink(x); return x * 17 + v; }

/* One function under several names. */
__attribute__((noinline)) int __shop_open(int x) { sink(x); return x * 19; }
extern int shop_open(int) __attribute__((alias("__shop_open")));
__attribute__((noinline)) int really_close(int x) { sink(x); return x * 23; }
extern int close_shop(int) __attribute__((weak, alias("really_close")));
__attribute__((noinline)) int first_name(int x) { sink(x); return x * 29; }
extern int second(int) __attribute__((alias("first_name")));

int main(int argc, char **argv) {
	struct big b = {1, argc, 3, {0}};
	if (argc < 2)
		return 0;
	if (!strcmp(argv[1], "constant"))
		return via_constant(argc) == 0;
	if (!strcmp(argv[1], "parts"))
		return via_parts(&b) == 0;
	if (!strcmp(argv[1], "mostly"))
		return mostly(argc) == 1;
	if (!strcmp(argv[1], "folded"))
		return sell(argc) + destroy(argc) == 0;
	if (!strcmp(argv[1], "open"))
		return shop_open(argc) + close_shop(argc) + second(argc) == 0;
	return 0;
}
