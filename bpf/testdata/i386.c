/*
 * Calls by the table of i386 from a 64-bit program. The addresses are below 4
 * GiB because the program is not position independent.
 */
static struct {
	unsigned short family, port;
	unsigned int addr;
	char zero[8];
} to = { 2, 0, 0x0600007f };	/* 127.0.0.6 */
static unsigned int args[6];

static long call(long nr, long a, long b, long c, long d, long e)
{
	long ret;

	__asm__ volatile("int $0x80" : "=a"(ret) : "a"(nr), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory", "r8", "r9", "r10", "r11");
	return (int)ret;
}

void _start(void)
{
	int fd = call(359, 2, 2, 0, 0, 0);	/* socket(AF_INET, SOCK_DGRAM, 0) */

	if (fd < 0)
		call(1, 1, 0, 0, 0, 0);	/* exit */
	to.port = 0xed03;	/* 1005 */
	args[0] = fd;
	args[1] = (unsigned int)(long)&to;
	args[2] = 1;
	args[4] = (unsigned int)(long)&to;
	args[5] = sizeof(to);
	if (call(102, 11, (long)args, 0, 0, 0) != 1)	/* socketcall: sendto */
		call(1, 2, 0, 0, 0, 0);
	to.port = 0xee03;	/* 1006 */
	if (call(362, fd, (long)&to, sizeof(to), 0, 0))	/* connect */
		call(1, 3, 0, 0, 0, 0);
	call(1, 0, 0, 0, 0, 0);
}
