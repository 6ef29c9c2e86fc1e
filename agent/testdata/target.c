/* A program whose functions are probed. It waits for a byte on its standard
 * input, as a container waits at its barrier; then each argument calls one. */
#include <string.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone, used))

static volatile int sink;

NOINLINE void hello(void) { sink++; }
NOINLINE void never(void) { sink--; }

int main(int argc, char **argv)
{
	char c;

	if (read(0, &c, 1) != 1)
		return 1;
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "hello"))
			hello();
	/* Lives until its standard input is closed. */
	return read(0, &c, 1) != 0;
}
