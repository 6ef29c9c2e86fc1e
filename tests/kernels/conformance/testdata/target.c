/*
 * A program that makes each kind of event happen as often as it is told:
 * target [NAME COUNT].... It comes with three hundred more functions, so that many
 * sites can be armed in one file.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
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

static void act(const char *name, int count)
{
	for (int i = 0; i < count; i++) {
		if (!strcmp(name, "hello") || !strcmp(name, "leave"))
			hello(i);
		else if (!strcmp(name, "await"))
			read(0, (char[1]){ 0 }, 1); /* until it is written to */
		else if (!strcmp(name, "marked"))
			marked();
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
