/* Functions that are chosen when the program starts, in the ways that it is done. */
#include <stdio.h>
#include <string.h>

static __attribute__((noinline)) int slow(int x) { __asm__ volatile(""); return x + 1; }
static __attribute__((noinline)) int fast(int x) { __asm__ volatile(""); return x + 2; }
int __attribute__((noinline)) shown(int x) { __asm__ volatile(""); return x + 3; }

static volatile int feature = 1;

static int (*pick(void))(int) { return feature ? fast : slow; }
int picked(int x) __attribute__((ifunc("pick")));

static int (*const table[])(int) = {slow, shown, shown};
static int (*volatile *volatile where)(int) = (int (*volatile *)(int))table;
static int (*look(void))(int) { return where[feature]; }
int looked(int x) __attribute__((ifunc("look")));

static int (*both(void))(int) { return feature ? where[2] : fast; }
int mixed(int x) __attribute__((ifunc("both")));

__attribute__((target_clones("avx2", "sse4.2", "default"))) int cloned(int *a, int n) {
	int sum = 0;
	for (int i = 0; i < n; i++)
		sum += a[i] * a[i];
	return sum;
}

int main(int argc, char **argv) {
	int a[] = {1, 2, 3};
	if (argc < 2)
		return 0;
	if (!strcmp(argv[1], "picked"))
		return picked(argc) == 0;
	if (!strcmp(argv[1], "looked"))
		return looked(argc) == 0;
	if (!strcmp(argv[1], "mixed"))
		return mixed(argc) == 0;
	if (!strcmp(argv[1], "cloned"))
		return cloned(a, 3) == 0;
	return 0;
}
