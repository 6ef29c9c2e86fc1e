/* Functions that are inlined, have a body, or both. main runs the path that is asked for. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "inline.h"

int step(int n);
volatile int sunk;

/* leaf has a body, for its address is taken, and is inlined. */
static inline int leaf(int n) {
	if (n & 1)
		n = step(n) * 3;
	return n - 1 + sunk;
}

int (*volatile variable)(int) = leaf;

/* nested is only ever inlined, and leaf into it. */
static inline __attribute__((always_inline)) int nested(int n) { sunk += 3; return leaf(n) * step(n); }

/* exported has a body since others may call it, and is inlined. */
int exported(int n) { sunk = n; return n * sunk; }

static inline __attribute__((always_inline)) int never(int n) { sunk = 9; return step(n) - 9; }

__attribute__((noinline)) int plain(int n) { return step(n) + 40; }

__attribute__((noinline)) int via_leaf(int n) { return leaf(n) ^ 5; }
__attribute__((noinline)) int via_nested(int n) { return nested(n) ^ 6; }
__attribute__((noinline)) int via_loop(int n) {
	int sum = 0;
	for (int i = 0; i < n; i++)
		if (i % 2 == 0)
			sum += leaf(i);
	return sum;
}
__attribute__((noinline)) int via_variable(int n) { return variable(n); }
__attribute__((noinline)) int via_exported(int n) { return exported(n) + 1; }
__attribute__((noinline)) int via_never(int n) { return never(n); }
__attribute__((noinline)) int via_header(int n) { return header(n) + 4; }
__attribute__((noinline)) int via_nothing(int n) { return n + 2; }

int main(int argc, char **argv) {
	static const struct { const char *name; int (*run)(int); } paths[] = {
		{"leaf", via_leaf}, {"nested", via_nested}, {"loop", via_loop}, {"variable", via_variable}, {"exported", via_exported}, {"never", via_never},
		{"header", via_header}, {"header2", via_header2}, {"plain", plain}, {"nothing", via_nothing},
	};
	for (unsigned i = 0; i < sizeof paths / sizeof paths[0]; i++)
		if (!strcmp(argv[1], paths[i].name))
			return printf("%d\n", paths[i].run(argc + 2)) < 0;
	return 77;
}
