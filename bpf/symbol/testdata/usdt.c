/* What the macros of SystemTap's sys/sdt.h expand to: a nop, and a note that says where it is. */
#define NOTE(provider, name, semaphore, args) \
	".pushsection .note.stapsdt,\"?\",\"note\"\n" \
	".balign 4\n" \
	".4byte 992f-991f, 994f-993f, 3\n" \
	"991: .asciz \"stapsdt\"\n" \
	"992: .balign 4\n" \
	"993: .8byte 990b\n" \
	".8byte _.stapsdt.base\n" \
	".8byte " semaphore "\n" \
	".asciz \"" provider "\"\n" \
	".asciz \"" name "\"\n" \
	".asciz \"" args "\"\n" \
	"994: .balign 4\n" \
	".popsection\n" \
	".ifndef _.stapsdt.base\n" \
	".pushsection .stapsdt.base,\"aG\",\"progbits\",.stapsdt.base,comdat\n" \
	".weak _.stapsdt.base\n" \
	".hidden _.stapsdt.base\n" \
	"_.stapsdt.base: .space 1\n" \
	".size _.stapsdt.base, 1\n" \
	".popsection\n" \
	".endif\n"
#define MARK(provider, name, semaphore, args) __asm__ volatile("990: nop\n" NOTE(provider, name, semaphore, args))

__attribute__((section(".probes"), used)) unsigned short shop_sold_semaphore = 0;

static inline void twice(void) { MARK("shop", "asked", "0", ""); }

int wanted(int x) {
	MARK("shop", "opened", "0", "-4@%edi 8@(%rsp)");
	twice();
	if (x)
		twice();
	MARK("shop", "sold", "shop_sold_semaphore", "-4@$7");
	MARK("other", "opened", "0", "");
	return x;
}
