/*
 * A program that makes each kind of event happen as often as it is told:
 * target [NAME COUNT].... It comes with three hundred more functions, so that many
 * sites can be armed in one file. It is compiled with frame pointers.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone, used))

static volatile int sink;

/* It returns, but for the last time: entries and returns are not as many. */
NOINLINE int hello(int n)
{
	if (n < 0)
		_exit(0);
	sink += n;
	return sink;
}

/*
 * A USDT marker as systemtap's <sys/sdt.h> makes it, with a semaphore: the body
 * of marked() is skipped until somebody listens.
 */
__attribute__((section(".probes"), used)) unsigned short conformance_tick_semaphore;

NOINLINE void marked(void)
{
	if (!*(volatile unsigned short *)&conformance_tick_semaphore)
		return;
	__asm__ volatile(
		"990: nop\n"
		".pushsection .note.stapsdt,\"\",\"note\"\n"
		".balign 4\n"
		".4byte 992f-991f, 994f-993f, 3\n"
		"991: .asciz \"stapsdt\"\n"
		"992: .balign 4\n"
		"993: .8byte 990b\n"
		".8byte _.stapsdt.base\n"
		".8byte conformance_tick_semaphore\n"
		".asciz \"conformance\"\n"
		".asciz \"tick\"\n"
		".asciz \"\"\n"
		".balign 4\n"
		"994: .popsection\n"
		".ifndef _.stapsdt.base\n"
		".pushsection .stapsdt.base,\"aG\",\"progbits\",.stapsdt.base,comdat\n"
		".weak _.stapsdt.base\n"
		".hidden _.stapsdt.base\n"
		"_.stapsdt.base: .space 1\n"
		".size _.stapsdt.base, 1\n"
		".popsection\n"
		".endif\n");
}

#define F1(n) NOINLINE void many_##n(void) { sink++; }
#define F10(n) F1(n##0) F1(n##1) F1(n##2) F1(n##3) F1(n##4) F1(n##5) F1(n##6) F1(n##7) F1(n##8) F1(n##9)
#define F100(n) F10(n##0) F10(n##1) F10(n##2) F10(n##3) F10(n##4) F10(n##5) F10(n##6) F10(n##7) F10(n##8) F10(n##9)
F100(1) F100(2) F100(3)

/* Their addresses, in the order of their names. */
#define A1(n) many_##n,
#define A10(n) A1(n##0) A1(n##1) A1(n##2) A1(n##3) A1(n##4) A1(n##5) A1(n##6) A1(n##7) A1(n##8) A1(n##9)
#define A100(n) A10(n##0) A10(n##1) A10(n##2) A10(n##3) A10(n##4) A10(n##5) A10(n##6) A10(n##7) A10(n##8) A10(n##9)
static void (*const all_of_them[])(void) = { A100(1) A100(2) A100(3) };

/* Each by another number of times than its neighbours. */
static void many(void)
{
	for (unsigned i = 0; i < sizeof(all_of_them) / sizeof(*all_of_them); i++)
		for (unsigned times = i % 7 + 1; times; times--)
			all_of_them[i]();
}

/* Calls that keep their frames, down to a system call. */
NOINLINE void inner(void) { syscall(SYS_umask, 022); sink++; }
NOINLINE void middle(void) { inner(); sink++; }
NOINLINE void outer(void) { middle(); sink++; }

static void check(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

/* The program once more, in a process of its own. */
static void again(void)
{
	pid_t pid = fork();
	int status;

	check(pid >= 0, "fork");
	if (!pid) {
		execl("/proc/self/exe", "again", (char *)NULL);
		_exit(127);
	}
	check(waitpid(pid, &status, 0) == pid && !status, "wait for myself");
}

static void map_shared(void)
{
	int fd = open("/proc/self/exe", O_RDONLY);
	void *p = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);

	check(p != MAP_FAILED, "map myself");
	munmap(p, 4096);
	close(fd);
}

static void open_files(void)
{
	int in = open("/dev/null", O_RDONLY), out = open("/tmp/conformance.out", O_WRONLY | O_CREAT, 0600);

	check(in >= 0 && out >= 0, "open");
	close(in);
	close(out);
}

static struct sockaddr_in address(const char *ip, int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, ip, &a.sin_addr);
	return a;
}

static void speak(void)
{
	struct sockaddr_in own = address("127.0.0.1", 7778), name = address("127.0.0.1", 53), other = address("127.0.0.1", 5353);
	int listener = socket(AF_INET, SOCK_STREAM, 0), caller = socket(AF_INET, SOCK_STREAM, 0), called;
	int asker = socket(AF_INET, SOCK_DGRAM, 0), talker = socket(AF_INET, SOCK_DGRAM, 0), on = 1;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	check(!bind(listener, (void *)&own, sizeof(own)) && !listen(listener, 1), "listen");
	check(!connect(caller, (void *)&own, sizeof(own)), "connect");
	called = accept(listener, NULL, NULL);
	check(called >= 0, "accept");
	sendto(asker, "?", 1, 0, (void *)&name, sizeof(name)); /* nobody answers */
	check(!connect(talker, (void *)&other, sizeof(other)), "connect a datagram socket");
	close(called);
	close(caller);
	close(listener);
	close(asker);
	close(talker);
}

NOINLINE void act(const char *name, int count)
{
	for (int i = 0; i < count; i++) {
		if (!strcmp(name, "hello") || !strcmp(name, "leave"))
			hello(i);
		else if (!strcmp(name, "await"))
			read(0, (char[1]){ 0 }, 1); /* until it is written to */
		else if (!strcmp(name, "marked"))
			marked();
		else if (!strcmp(name, "many"))
			many();
		else if (!strcmp(name, "outer"))
			outer();
		else if (!strcmp(name, "again"))
			again();
		else if (!strcmp(name, "share"))
			map_shared();
		else if (!strcmp(name, "files"))
			open_files();
		else if (!strcmp(name, "speak"))
			speak();
		else if (!strcmp(name, "umask"))
			/* a system call that neither libc nor the kernel makes for us */
			syscall(SYS_umask, 022);
	}
	if (count && !strcmp(name, "leave"))
		hello(-1);
}

int main(int argc, char **argv)
{
	for (int i = 1; i + 1 < argc; i += 2)
		act(argv[i], atoi(argv[i + 1]));
	return 0;
}
