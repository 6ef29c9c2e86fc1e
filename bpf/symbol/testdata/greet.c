/* A library with every kind of function symbol that Read tells apart. */

static int one(int x) { return x + 1; }
static int two(int x) { return x + 2; }

__attribute__((noinline)) static int helper(int x) { __asm__ volatile(""); return x * 3; }

int greet_hello(int x) { return helper(x) + 1; }

/* Linkers let the second share the first one's tail. */
int prefix_greet_tail(int x) { __asm__ volatile(""); return x + 10; }
int greet_tail(int x) { __asm__ volatile(""); return x + 11; }

int greet_strong(int x) { __asm__ volatile(""); return x + 20; }
int greet_weak(int x) __attribute__((weak, alias("greet_strong")));

static int (*choose(void))(int) { return one(1) == 2 ? one : two; }
int greet_chosen(int x) __attribute__((ifunc("choose")));

int greet_old(int x) { __asm__ volatile(""); return x + 30; }
int greet_new(int x) { __asm__ volatile(""); return x + 31; }
__asm__(".symver greet_old,greet_versioned@GREET_1");
__asm__(".symver greet_new,greet_versioned@@GREET_2");

/* As assembler source often does it: no type, no size. */
__asm__(".text\n.globl greet_untyped\ngreet_untyped:\n\tret\n");

const int greet_data = 7;
extern int greet_missing(int);
int greet_caller(int x) { return greet_missing(x) + greet_data; }
