/* SPDX-License-Identifier: Apache-2.0
 *
 * The subject of subject_amd64.S for arm64, which has no uretprobe system call.
 */
	.set	base, 0x400000
	.set	data, 0x410000
	.text
start:
	.ascii	"\177ELF"
	.byte	2, 1, 1, 0
	.quad	0
	.short	2, 183		/* ET_EXEC, EM_AARCH64 */
	.long	1
	.quad	base + main - start
	.quad	0x40, 0
	.long	0
	.short	0x40, 0x38, 4, 0, 0, 0
	.org	0x40
	.long	1, 5
	.quad	0, base, base, end - start, end - start, 0x10000
	.long	1, 6
	.quad	0, data, data, end - start, end - start, 0x10000
	.long	0x6474e551, 6
	.quad	0, 0, 0, 0, 0, 16
	.long	4, 4
	.quad	note - start, base + note - start, base + note - start, 0x24, 0x24, 4
	.org	0x140
function:
	add	w0, w0, #0
	ret
	.org	0x150
returning:
	add	w0, w0, #0
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
filter:
	.short	0x20
	.byte	0, 0
	.long	0
	.short	0x15
	.byte	0, 1
	.long	94
	.short	0x06
	.byte	0, 0
	.long	0x7fff0000
	.short	0x06
	.byte	0, 0
	.long	0x00030000
program:
	.quad	4
	.quad	base + filter - start
main:
	ldr	x19, [sp]	/* argc */
	mov	x8, #167	/* prctl(PR_SET_DUMPABLE, 0) */
	mov	x0, #4
	mov	x1, #0
	svc	#0
	cmp	x19, #3
	b.eq	ask
	cmp	x19, #2
	b.ne	run
	mov	x8, #167	/* prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) */
	mov	x0, #38
	mov	x1, #1
	mov	x2, #0
	mov	x3, #0
	mov	x4, #0
	svc	#0
	mov	x8, #167	/* prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program) */
	mov	x0, #22
	mov	x1, #2
	adr	x2, program
	svc	#0
	cbz	x0, run
	mov	x0, #70
	b	exit
run:
	bl	function
	bl	returning
	bl	marker
	mov	x1, #data
	ldrh	w0, [x1, #semaphore - start]
exit:
	mov	x8, #94		/* exit_group */
	svc	#0
ask:
	mov	x0, #0
	b	exit
end:
