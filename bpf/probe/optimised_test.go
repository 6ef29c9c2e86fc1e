package probe

import (
	"fmt"
	"strings"
	"testing"

	"probity/bpf"
	"probity/tests/need"
)

// fiveNops begins with a nop of five bytes, as functions do that tracers patch
// and as USDT markers are. It is called a few times; one way
// then writes a call of its own over it.
const fiveNops = `
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
__asm__(".globl fivenop\n.type fivenop,@function\n.p2align 6\nfivenop: .byte 0x0f,0x1f,0x44,0x00,0x00\n ret\n.size fivenop,.-fivenop\n");
void fivenop(void);
static void hold(void)
{
	char c;
	puts("held");
	fflush(stdout);
	while (read(0, &c, 1) > 0)
		;
}
int main(int argc, char **argv)
{
	for (int i = 0; i < 5; i++)
		fivenop();
	if (!strcmp(argv[1], "forge")) {
		unsigned char call[5] = { 0xe8, 1, 0, 0, 0 };
		int fd = open("/proc/self/mem", O_RDWR);
		if (pwrite(fd, call, 5, (uintptr_t)fivenop) != 5)
			return 1;
	}
	hold();
}
`

// A kernel that makes a breakpoint on a five-byte nop a call of its own is not
// taken for a process that takes breakpoints out; one that writes another call
// there is.
func TestOptimised(t *testing.T) {
	need.Machine(t, "amd64")
	lower := newLower(t)
	compiled(t, lower, "target", fiveNops, "gcc", "-O2", "-static")
	b := newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("fivenop"))
	got, err := h.Look(b.hold("call"))
	must(t, err)
	if len(got.Troubles) != 0 {
		t.Errorf("%+v", got.Troubles)
	}
	if n := count(t, h, h.Sites[0]); n != 5 {
		t.Errorf("counted %d, want 5", n)
	}
	got, err = h.Look(b.hold("forge"))
	must(t, err)
	if len(got.Troubles) != 1 || !strings.Contains(fmt.Sprint(got.Troubles[0]), "taken out of its own memory") {
		t.Errorf("a forged call: %+v", got.Troubles)
	}
}
