/* SPDX-License-Identifier: Apache-2.0
 *
 * The subject: a whole ELF program of one page, written out by hand, that the
 * agent runs to try probes on. It is made into subject_amd64.bin by go
 * generate. Offsets are the .org lines; subject.go has them too.
 *
 *	subject		calls the three functions; exits with the semaphore's count
 *	subject x	the same, under a filter that allows exit_group only
 *	subject x x	asks for the uretprobe system call outside a trampoline:
 *			exits with 0 if there is none, else the kernel kills it
 */
	.set	base, 0x400000
	.set	data, 0x410000	/* the same page once more, writable */
	.text
start:
	.ascii	"\177ELF"
	.byte	2, 1, 1, 0
	.quad	0
	.short	2, 62		/* ET_EXEC, EM_X86_64 */
	.long	1
	.quad	base + main - start
	.quad	0x40, 0		/* e_phoff, e_shoff */
	.long	0
	.short	0x40, 0x38, 4, 0, 0, 0
	.org	0x40
	.long	1, 5		/* PT_LOAD, R and X */
	.quad	0, base, base, end - start, end - start, 0x10000
	.long	1, 6		/* PT_LOAD, R and W */
	.quad	0, data, data, end - start, end - start, 0x10000
	.long	0x6474e551, 6	/* PT_GNU_STACK, not executable */
	.quad	0, 0, 0, 0, 0, 16
	.long	4, 4		/* PT_NOTE, a build-id */
	.quad	note - start, base + note - start, base + note - start, 0x24, 0x24, 4
	.org	0x140
function:
	lea	(%rdi), %eax
	ret
	.org	0x150
returning:
	lea	(%rdi), %eax
	ret
	.org	0x160
marker:
	nop
	ret
	.org	0x170
semaphore:
	.quad	0
	.org	0x178
note:
	.long	4, 20, 3
	.ascii	"GNU\0"
	.ascii	"probity subject\0\0\0\0\0"
	.balign	8
	.org	0x1a0
filter:				/* struct sock_filter */
	.short	0x20		/* load the number of the system call */
	.byte	0, 0
	.long	0
	.short	0x15		/* exit_group? */
	.byte	0, 1
	.long	231
	.short	0x06		/* SECCOMP_RET_ALLOW */
	.byte	0, 0
	.long	0x7fff0000
	.short	0x06		/* SECCOMP_RET_TRAP: SIGSYS, and not a line in the log as for a kill */
	.byte	0, 0
	.long	0x00030000
program:			/* struct sock_fprog */
	.quad	4
	.quad	base + filter - start
main:
	mov	(%rsp), %rbx	/* argc */
	mov	$157, %eax	/* prctl(PR_SET_DUMPABLE, 0): what dies here leaves no core file */
	mov	$4, %edi
	xor	%esi, %esi
	syscall
	cmp	$3, %rbx
	je	ask
	cmp	$2, %rbx
	jne	run
	mov	$157, %eax	/* prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) */
	mov	$38, %edi
	mov	$1, %esi
	xor	%edx, %edx
	xor	%r10d, %r10d
	xor	%r8d, %r8d
	syscall
	mov	$157, %eax	/* prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program) */
	mov	$22, %edi
	mov	$2, %esi
	mov	$base + program - start, %edx
	syscall
	mov	$70, %edi
	test	%rax, %rax
	jnz	exit
run:
	call	function
	call	returning
	call	marker
	movzwl	data + semaphore - start, %edi
exit:
	mov	$231, %eax	/* exit_group */
	syscall
ask:
	mov	$335, %eax	/* uretprobe */
	syscall
	xor	%edi, %edi
	cmp	$-38, %rax	/* ENOSYS */
	je	exit
	mov	$71, %edi
	jmp	exit
end:
