// The program of the demo image. What it calls depends on its argument, so
// that two containers of one image differ in exactly one function.
#include <stdio.h>
#include <string.h>

#include "greet.h"

#define KEPT __attribute__((noinline, noclone, used, externally_visible))

KEPT int caller_work(int n)
{
	return n * 2 + 1;
}

// Never called: there for the probe that must see nothing.
KEPT int caller_never(int n)
{
	return n * 3 + 1;
}

int main(int argc, char **argv)
{
	int n = caller_work(argc);

	printf("caller: libgreet %d, work %d\n", greet_version(), n);
	if (argc > 1 && strcmp(argv[1], "call") == 0)
		puts(greet_hello(n));
	return 0;
}
