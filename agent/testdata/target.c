/* A program whose functions are probed. It waits for a byte on its standard
 * input, as a container waits at its barrier; then each argument calls one, or
 * drops the pages of all of them, and with them what was changed there. */
#define _DEFAULT_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone, used))

static volatile int sink;

NOINLINE void hello(void) { sink++; }
NOINLINE void never(void) { sink--; }

static void hide(void (*f)(void)) { madvise((void *)((uintptr_t)f & -4096UL), 4096, MADV_DONTNEED); }

/* Has more to say of what it has mapped than anybody reads: names as long as a
 * path may be, on every other page, so that the kernel cannot join them. */
static void maps(void)
{
	char path[4000] = "/tmp";

	for (int i = 0; i < 15; i++) {
		size_t n = strlen(path);
		path[n] = '/';
		memset(path + n + 1, 'x', 250);
		path[n + 251] = 0;
		mkdir(path, 0700);
	}
	strcat(path, "/x");
	int fd = open(path, O_CREAT | O_RDWR, 0700);
	if (fd < 0 || ftruncate(fd, 2 * 4096))
		return;
	for (int i = 0; i < 10000; i++)
		mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, i % 2 * 4096);
}

/* Runs a program for each line "PATH ARGUMENT", and says so. */
static int serve(void)
{
	char line[512], path[256], arg[64];
	int status;

	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "%255s %63s", path, arg) != 2)
			return 2;
		pid_t child = fork();
		if (!child) {
			execl(path, path, "now", arg, (char *)NULL);
			_exit(127);
		}
		if (waitpid(child, &status, 0) != child)
			return 3;
		printf("%s %d\n", path, WEXITSTATUS(status));
		fflush(stdout);
	}
	return 0;
}

int main(int argc, char **argv)
{
	char c;

	int now = argc > 1 && !strcmp(argv[1], "now");

	if (!now && read(0, &c, 1) != 1)
		return 1;
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "hello"))
			hello();
		else if (!strcmp(argv[i], "never"))
			never();
		else if (!strcmp(argv[i], "hide"))
			hide(hello), hide(never);
		else if (!strcmp(argv[i], "maps"))
			maps();
		else if (!strcmp(argv[i], "serve"))
			return serve();
	if (now)
		return 0;
	/* Lives until its standard input is closed. */
	return read(0, &c, 1) != 0;
}
