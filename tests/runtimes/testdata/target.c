/*
 * A program whose functions are probed. Each argument is an order:
 * a function to call, or
 *	wait		until the file /go is there
 *	go		make it
 *	mark		the file /mark
 *	say		"said"
 *	touch		this program's own file
 *	copy		this program's file to /tool, and to /fast/tool where there is a /fast
 *	sparse		make /odd/sparse
 *	orphan		leave a child behind that calls hello after init has ended
 *	exit N		end with this code
 *	crash		by a null pointer
 *	eat		memory, up to 256 MiB
 *	names A		leave a name server behind at address A, which says 192.0.2.1 to everything
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone, used))

static volatile int sink;

NOINLINE void hello(void) { sink++; }
NOINLINE void goodbye(void) { sink--; }
NOINLINE void never(void) { sink = 9; }

/* The kernel refuses to probe an instruction with a lock prefix. */
__asm__(".text\n.globl locked\n.type locked,@function\n"
	"locked: lock addl $1, sink_word(%rip)\n ret\n"
	".size locked, .-locked\n.data\n.balign 8\nsink_word: .quad 0\n.text\n");
void locked(void);

/* Until the file /go is there. */
static void wait_for_go(void)
{
	struct stat st;

	while (stat("/go", &st))
		usleep(1000);
}

/* An ELF header, and zeros up to an apparent gigabyte. */
static void sparse(const char *self)
{
	char head[64];
	int in = open(self, O_RDONLY), out = open("/odd/sparse", O_CREAT | O_WRONLY, 0755);

	if (read(in, head, sizeof(head)) != sizeof(head) || write(out, head, sizeof(head)) != sizeof(head) || ftruncate(out, 1 << 30))
		_exit(1);
	close(in);
	close(out);
}

static void copy(const char *self, const char *to)
{
	char buf[65536];
	ssize_t n;
	int in = open(self, O_RDONLY), out = open(to, O_CREAT | O_WRONLY, 0755);

	if (out < 0)
		return;
	while ((n = read(in, buf, sizeof(buf))) > 0)
		if (write(out, buf, n) != n)
			_exit(1);
	close(in);
	close(out);
}

static void names(const char *address)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(53) }, from;
	static const unsigned char answer[] = { 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1 };
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	unsigned char b[1024];
	socklen_t len;
	ssize_t n;

	inet_pton(AF_INET, address, &at.sin_addr);
	if (bind(s, (struct sockaddr *)&at, sizeof(at)))
		_exit(1);
	if (fork())
		return;
	while (len = sizeof(from), (n = recvfrom(s, b, 512, 0, (struct sockaddr *)&from, &len)) >= 17) {
		b[2] = 0x81; /* an answer */
		b[3] = 0x80;
		b[11] = 0; /* without the additional records of the question */
		for (n = 12; b[n] && n < 256; n += b[n] + 1)
			;
		n += 5; /* the name's end, type and class */
		if (b[n - 3] == 1) { /* asked for an IPv4 address */
			b[7] = 1;
			memcpy(b + n, answer, sizeof(answer));
			n += sizeof(answer);
		}
		sendto(s, b, n, 0, (struct sockaddr *)&from, len);
	}
	_exit(1);
}

static void orphan(void)
{
	pid_t init = getpid();
	int end[2];
	char c;

	if (pipe(end))
		_exit(1);
	if (fork())
		return;
	close(end[1]);
	/*
	 * At once: the runtime kills what init leaves behind as soon as it hears of
	 * its end, which init's files are closed before. Who sleeps until then is run
	 * next, and who had spun might have to wait for others.
	 */
	if (read(end[0], &c, 1))
		_exit(1);
	while (getppid() == init)
		sched_yield();
	for (int i = 0; i < 3; i++)
		hello();
	_exit(0);
}

static void child(void)
{
	pid_t init = getpid();
	int done[2];
	char c;

	if (pipe(done))
		_exit(1);
	if (!fork()) {
		for (int i = 0; i < 3; i++)
			hello();
		close(done[0]);
		close(done[1]);
		while (getppid() == init)
			usleep(1000);
		_exit(0);
	}
	close(done[1]);
	if (read(done[0], &c, 1))
		_exit(1);
}

static void eat(void)
{
	char *volatile p;

	for (int i = 0; i < 256; i++) {
		p = malloc(1 << 20);
		if (!p)
			return;
		memset(p, i | 1, 1 << 20);
	}
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "hello"))
			hello();
		else if (!strcmp(argv[i], "goodbye"))
			goodbye();
		else if (!strcmp(argv[i], "locked"))
			locked();
		else if (!strcmp(argv[i], "say")) {
			if (write(1, "said\n", 5) != 5)
				return 1;
		}
		else if (!strcmp(argv[i], "wait"))
			wait_for_go();
		else if (!strcmp(argv[i], "touch"))
			utimensat(AT_FDCWD, argv[0], NULL, 0);
		else if (!strcmp(argv[i], "copy"))
			copy(argv[0], "/tool"), copy(argv[0], "/fast/tool");
		else if (!strcmp(argv[i], "go"))
			close(open("/go", O_CREAT | O_WRONLY, 0644));
		else if (!strcmp(argv[i], "mark"))
			close(open("/mark", O_CREAT | O_WRONLY, 0644));
		else if (!strcmp(argv[i], "sparse"))
			sparse(argv[0]);
		else if (!strcmp(argv[i], "orphan"))
			orphan();
		else if (!strcmp(argv[i], "child"))
			child();
		else if (!strcmp(argv[i], "exit") && i + 1 < argc)
			return atoi(argv[i + 1]);
		else if (!strcmp(argv[i], "crash"))
			*(volatile int *volatile)NULL = 0;
		else if (!strcmp(argv[i], "eat"))
			eat();
		else if (!strcmp(argv[i], "names") && i + 1 < argc)
			names(argv[++i]);
	}
	return 0;
}
