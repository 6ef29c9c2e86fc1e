/* A program whose functions are probed. Each argument calls one of them. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone, used))

static volatile int sink;

NOINLINE void hello(void) { sink++; }
NOINLINE void goodbye(void) { sink--; }
NOINLINE void never(void) { sink = 9; }

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
		else if (!strcmp(argv[i], "marked"))
			marked();
	}
	return 0;
}
