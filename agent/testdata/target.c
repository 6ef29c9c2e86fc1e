/* A program whose functions are probed. It waits for a byte on its standard
 * input, as a container waits at its barrier; then each argument calls one, or
 * drops the pages of all of them, and with them what was changed there. */
#define _DEFAULT_SOURCE
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone, used))

static volatile int sink;

NOINLINE void hello(void) { sink++; }
NOINLINE void never(void) { sink--; }

static void hide(void (*f)(void)) { madvise((void *)((uintptr_t)f & -4096UL), 4096, MADV_DONTNEED); }

int main(int argc, char **argv)
{
	char c;

	if (read(0, &c, 1) != 1)
		return 1;
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "hello"))
			hello();
		else if (!strcmp(argv[i], "never"))
			never();
		else if (!strcmp(argv[i], "hide"))
			hide(hello), hide(never);
	/* Lives until its standard input is closed. */
	return read(0, &c, 1) != 0;
}
