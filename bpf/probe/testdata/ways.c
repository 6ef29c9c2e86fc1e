/*
 * Ways to run one function of a file. Called as: ways WAY [FILE]. Each runs
 * leaf once, through a mapping of FILE (this program itself by default) or
 * through a copy, and ends with 0 if leaf did what it does. With HOLD in its
 * environment it says so first and waits for the end of its input.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096

/* Touches nothing but its argument, so that a copy of it works anywhere. */
__attribute__((noinline, noclone, used, aligned(PAGE))) int leaf(int x) { return x * 3 + 1; }
__attribute__((noinline, noclone, used, aligned(PAGE))) int after_leaf(int x) { return x; }

typedef int (*fn)(int);

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int check(fn f)
{
	int ok = f(5) == 16 ? 0 : 2;
	char c;

	if (getenv("HOLD")) {
		if (write(1, "held\n", 5) != 5)
			die("write");
		while (read(0, &c, 1) > 0)
			;
	}
	return ok;
}

/* Where leaf is in the file: this program is linked so that it can be told. */
static off_t leaf_offset(void)
{
	char line[512];
	unsigned long lo, hi, off, at = (unsigned long)leaf;
	FILE *m = fopen("/proc/self/maps", "r");

	if (!m)
		die("maps");
	while (fgets(line, sizeof(line), m))
		if (sscanf(line, "%lx-%lx %*s %lx", &lo, &hi, &off) == 3 && at >= lo && at < hi) {
			fclose(m);
			return at - lo + off;
		}
	die("leaf is not mapped");
	return 0;
}

static void *map(int fd, int prot, int flags)
{
	void *p = mmap(NULL, PAGE, prot, flags, fd, leaf_offset());

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static int self_mem(void *to, const void *from, size_t n)
{
	int fd = open("/proc/self/mem", O_RDWR);

	if (fd < 0)
		die("/proc/self/mem");
	if (pwrite(fd, from, n, (off_t)(uintptr_t)to) != (ssize_t)n)
		die("write /proc/self/mem");
	close(fd);
	return 0;
}

/* The first bytes of leaf as they are in the file. */
static void original(int fd, unsigned char *b, size_t n)
{
	if (pread(fd, b, n, leaf_offset()) != (ssize_t)n)
		die("read the file");
}

static void *thread(void *f) { return (void *)(intptr_t)check((fn)f); }

int main(int argc, char **argv)
{
	const char *way = argc > 1 ? argv[1] : "call";
	int fd = open(argc > 2 ? argv[2] : "/proc/self/exe", O_RDONLY), status;
	unsigned char code[PAGE];
	pthread_t t;
	void *p, *r;
	pid_t child;

	if (fd < 0)
		die("open");
	if (!strcmp(way, "call"))
		return check(leaf);
	if (!strcmp(way, "nothing"))
		return 0;
	if (!strcmp(way, "thread")) {
		if (pthread_create(&t, NULL, thread, (void *)leaf) || pthread_join(t, &r))
			die("thread");
		return (int)(intptr_t)r;
	}
	if (!strcmp(way, "fork") || !strcmp(way, "vfork")) {
		child = way[0] == 'v' ? vfork() : fork();
		if (!child)
			_exit(check(leaf));
		waitpid(child, &status, 0);
		return WEXITSTATUS(status);
	}
	if (!strcmp(way, "private"))
		return check(map(fd, PROT_READ | PROT_EXEC, MAP_PRIVATE));
	if (!strcmp(way, "mprotect")) {
		p = map(fd, PROT_READ, MAP_PRIVATE);
		if (mprotect(p, PAGE, PROT_READ | PROT_EXEC))
			die("mprotect");
		return check(p);
	}
	if (!strcmp(way, "mremap")) {
		p = map(fd, PROT_READ | PROT_EXEC, MAP_PRIVATE);
		r = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		p = mremap(p, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, r);
		return p == MAP_FAILED ? 1 : check(p);
	}
	if (!strcmp(way, "shared"))
		return check(map(fd, PROT_READ | PROT_EXEC, MAP_SHARED));
	if (!strcmp(way, "rwx"))
		return check(map(fd, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE));
	if (!strcmp(way, "rw-rx") || !strcmp(way, "rw-rx-written")) {
		p = map(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE);
		if (way[5])
			((volatile unsigned char *)p)[PAGE - 1] = 0;
		if (mprotect(p, PAGE, PROT_READ | PROT_EXEC))
			die("mprotect");
		return check(p);
	}
	if (!strcmp(way, "copy")) {
		p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		original(fd, p, PAGE);
		if (mprotect(p, PAGE, PROT_READ | PROT_EXEC))
			die("mprotect");
		return check(p);
	}
	if (!strcmp(way, "memfd")) {
		int m = memfd_create("copy", 0);

		original(fd, code, PAGE);
		if (m < 0 || write(m, code, PAGE) != PAGE)
			die("memfd");
		p = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, m, 0);
		return p == MAP_FAILED ? 1 : check(p);
	}
	if (!strcmp(way, "dontneed")) {
		p = map(fd, PROT_READ | PROT_EXEC, MAP_PRIVATE);
		if (madvise(p, PAGE, MADV_DONTNEED))
			die("madvise");
		return check(p);
	}
	if (!strcmp(way, "dontneed-text")) {
		if (madvise((void *)leaf, PAGE, MADV_DONTNEED))
			die("madvise");
		return check(leaf);
	}
	if (!strcmp(way, "self-mem")) {
		original(fd, code, 16);
		self_mem((void *)leaf, code, 16);
		return check(leaf);
	}
	if (!strcmp(way, "ptrace")) {
		child = fork();
		if (!child) {
			ptrace(PTRACE_TRACEME, 0, 0, 0);
			raise(SIGSTOP);
			_exit(check(leaf));
		}
		waitpid(child, &status, 0);
		original(fd, code, sizeof(long));
		if (ptrace(PTRACE_POKETEXT, child, (void *)leaf, *(long *)code))
			die("poketext");
		ptrace(PTRACE_CONT, child, 0, 0);
		waitpid(child, &status, 0);
		return WEXITSTATUS(status);
	}
	if (!strcmp(way, "sees-it")) {
		/* A program can see the breakpoint, and go another way. */
		original(fd, code, 1);
		return *(unsigned char *)leaf == code[0] ? 3 : 0;
	}
	if (!strcmp(way, "middle")) {
		/* Past the first instruction, with what it would have left. */
#if defined(__x86_64__)
		int x = 5, got;

		original(fd, code, 5);
		if (code[0] != 0x8d || code[4] != 0xc3) /* lea 1(%rdi,%rdi,2), %eax; ret */
			return 4;
		__asm__ volatile("lea 1(%%rdi,%%rdi,2), %%eax\n call *%2" : "=&a"(got) : "D"(x), "r"((char *)leaf + 4) : "memory");
		return got == 16 ? 0 : 2;
#else
		return 0;
#endif
	}
	fprintf(stderr, "no such way: %s\n", way);
	return 1;
}
