/* A program whose functions are probed. Each argument calls one of them. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone, used))

static volatile int sink;

NOINLINE void hello(void) { sink++; }
NOINLINE void goodbye(void) { sink--; }
NOINLINE void never(void) { sink = 9; }

/* Takes a millisecond at least, and returns in more than one place. */
NOINLINE int slow(int how)
{
	struct timespec t = { .tv_nsec = 1000000 };

	nanosleep(&t, 0);
	if (how)
		return sink;
	nanosleep(&t, 0);
	return 1;
}

/* Calls itself, and is left from the middle if jump is given. */
static jmp_buf out;
NOINLINE int nested(int depth, int jump)
{
	if (depth > 1)
		return nested(depth - 1, jump) + sink;
	if (jump)
		longjmp(out, 1);
	return sink;
}

/* A stack of three. Who wants to look at the process finds it waiting. */
NOINLINE int inner(int wait)
{
	char c;

	if (wait)
		return read(0, &c, 1);
	return sink;
}
NOINLINE int middle(int wait) { return inner(wait) + sink; }
NOINLINE int outer(int wait) { return middle(wait) + sink; }

/* A USDT marker that is only passed when somebody counts its semaphore up. */
unsigned short semaphore __attribute__((section(".probes"), used)) = 0;
NOINLINE void marked(void)
{
	if (*(volatile unsigned short *)&semaphore)
		__asm__ volatile(".globl marker\nmarker: nop");
}

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
		else if (!strcmp(argv[i], "getppid"))
			syscall(SYS_getppid);
		else if (!strcmp(argv[i], "rename"))
			prctl(PR_SET_NAME, "renamed");
		else if (!strcmp(argv[i], "slow"))
			slow(i & 1);
		else if (!strncmp(argv[i], "nested", 6))
			nested(atoi(argv[i] + 6), 0);
		else if (!strncmp(argv[i], "jump", 4)) {
			if (!setjmp(out))
				nested(atoi(argv[i] + 4), 1);
		} else if (!strncmp(argv[i], "hello*", 6))
			for (long n = atol(argv[i] + 6); n > 0; n--)
				hello();
		else if (!strcmp(argv[i], "deep"))
			outer(0);
		else if (!strcmp(argv[i], "wait"))
			outer(1);
		else if (!strcmp(argv[i], "marked"))
			marked();
	}
	return 0;
}
