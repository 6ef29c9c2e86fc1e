/* A program whose functions are probed. Each argument calls one of them. */
#include <string.h>

#define NOINLINE __attribute__((noinline, noclone, used))

static volatile int sink;

NOINLINE void hello(void) { sink++; }
NOINLINE void goodbye(void) { sink--; }
NOINLINE void never(void) { sink = 9; }

/* The kernel refuses to probe an instruction with a lock prefix. */
__asm__(".text\n.globl locked\n.type locked,@function\n"
#if defined(__x86_64__)
	"locked: lock addl $1, sink_word(%rip)\n ret\n"
#else
	"locked: ldaxr w0, [sp]\n ret\n"
#endif
	".size locked, .-locked\n.data\n.balign 8\nsink_word: .quad 0\n.text\n");
void locked(void);

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "hello"))
			hello();
		else if (!strcmp(argv[i], "goodbye"))
			goodbye();
		else if (!strcmp(argv[i], "locked"))
			locked();
	}
	return 0;
}
