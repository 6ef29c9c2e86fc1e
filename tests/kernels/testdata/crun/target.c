/*
 * target [NAME COUNT]...: hello is a function; ustat a system call that no part of
 * an operating system makes by itself any more; await waits to be written to.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile int sink;

__attribute__((noinline, noclone, used)) void hello(int n) { sink += n; }

int main(int argc, char **argv)
{
	for (int i = 1; i + 1 < argc; i += 2)
		for (int n = atoi(argv[i + 1]); n > 0; n--) {
			if (!strcmp(argv[i], "hello"))
				hello(n);
			else if (!strcmp(argv[i], "ustat"))
				syscall(SYS_ustat, 0, 0);
			else if (!strcmp(argv[i], "await"))
				read(0, (char[1]){ 0 }, 1);
		}
	return 0;
}
