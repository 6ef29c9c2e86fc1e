/* Functions that end in each way that a function can. */
#include <stdlib.h>

extern int other(int);
extern void sink(int);
volatile int v;

int returns_once(int x) { return x + 1; }

int returns_early(int x) {
	if (x == 7) {
		sink(1);
		return v;
	}
	sink(2);
	if (x > 9) {
		v = 4;
		sink(3);
		return v + 1;
	}
	sink(v);
	return 0;
}

int returns_switch(int x) {
	switch (x) {
	case 0: v = 31; break;
	case 1: sink(1); break;
	case 2: v = 7; sink(3); break;
	case 3: v++; break;
	case 4: sink(9); v = 1; break;
	case 5: v = v * 3; break;
	case 6: sink(v + 5); break;
	case 7: v = v - 3; break;
	}
	return v;
}

__attribute__((noreturn)) void returns_never(void) { sink(1); abort(); }

int returns_tail(int x) { v = x; return other(x + 1); }

static int (*const table[8])(int) = {other, returns_once, returns_early, returns_switch, other, other, other, other};
int returns_through_table(int x) { return table[x & 7](x); }

struct object { int (*method)(struct object *); };
int returns_virtual(struct object *o) { return o->method(o); }

__attribute__((cold, noinline)) int unlikely_path(int x) { sink(x); sink(x + 1); return x; }

int returns_cold(int x) {
	if (__builtin_expect(x == 77, 0)) {
		v = unlikely_path(x);
		if (v == 3)
			return unlikely_path(v) + 2;
		unlikely_path(v + 9);
		abort();
	}
	sink(x);
	return v + 2;
}

typedef float vector __attribute__((vector_size(32)));
__attribute__((target("avx2,fma"))) void returns_vector(vector *a, vector *b, int n) {
	for (int i = 0; i < n; i++)
		a[i] = a[i] * b[i] + a[i];
}

__attribute__((noinline)) int other(int x) { __asm__ volatile(""); return x * 3; }
__attribute__((noinline)) void sink(int x) { v += x; }
