package symbol

// decodeARM64 decodes an instruction of A64: all are of 4 bytes, and each word
// is one (Arm ARM, C4.1). What does not change the flow is not looked at.
func decodeARM64(code []byte, pc uint64) (instr, bool) {
	if len(code) < 4 || pc%4 != 0 {
		return instr{}, false
	}
	w := le.Uint32(code)
	in := instr{len: 4, reg: noReg}
	rel := func(field uint32, width uint) uint64 {
		return pc + uint64(int64(int32(field<<(32-width)))>>(32-width)<<2)
	}
	switch {
	case w&0xfffffc1f == 0xd65f0000, w == 0xd65f0bff, w == 0xd65f0fff: // ret, retaa, retab
		in.flow = flowRet
	case w&0xfc000000 == 0x14000000: // b
		in.flow, in.target = flowJump, rel(w&0x03ffffff, 26)
	case w&0xfc000000 == 0x94000000: // bl
		in.flow, in.target = flowCall, rel(w&0x03ffffff, 26)
	case w&0xff000000 == 0x54000000, w&0x7e000000 == 0x34000000: // b.cond, bc.cond; cbz, cbnz
		in.flow, in.target = flowBranch, rel(w>>5&0x7ffff, 19)
	case w&0x7e000000 == 0x36000000: // tbz, tbnz
		in.flow, in.target = flowBranch, rel(w>>5&0x3fff, 14)
	case w&0xfffffc1f == 0xd61f0000, w&0xfffff800 == 0xd71f0800, w&0xfffff81f == 0xd61f081f: // br, braa, braaz and with key B
		in.flow, in.reg = flowIndirect, uint8(w>>5&31)
	case w&0xfffffc1f == 0xd63f0000, w&0xfffff800 == 0xd73f0800, w&0xfffff81f == 0xd63f081f: // blr and the like
		in.flow = flowCall
	case w&0xffff0000 == 0, w&0xffe0001f == 0xd4200000: // udf, brk
		in.flow = flowStop
	case w&0x9f000000 == 0x90000000: // adrp
		imm := int64(int32((w>>5&0x7ffff<<2|w>>29&3)<<11)) >> 11
		in.kind, in.ref, in.reg = refPage, pc&^0xfff+uint64(imm<<12), uint8(w&31)
	case w&0x9f000000 == 0x10000000: // adr
		imm := int64(int32((w>>5&0x7ffff<<2|w>>29&3)<<11)) >> 11
		in.kind, in.ref, in.reg = refAddress, pc+uint64(imm), uint8(w&31)
	case w&0xffc00000 == 0xf9400000: // ldr Xt, [Xn, #imm12 * 8]
		in.kind, in.ref, in.reg, in.base, in.opaque = refSlot, uint64(w>>10&0xfff)*8, uint8(w&31), uint8(w>>5&31), true
	case w&0xffc00000 == 0x91000000 && w&31 == w>>5&31: // add Xd, Xd, #imm12
		in.kind, in.ref, in.reg = refAdd, uint64(w>>10&0xfff), uint8(w&31)
	case w&0xff200000 == 0x8b000000, w&0xffe00000 == 0x8b200000: // add Xd, Xn, Xm or Wm, shifted or extended
		in.adds, in.reg = true, uint8(w&31)
	case w&0xffe00c00 == 0xf8600800 && w>>12&1 == 1: // ldr Xt, [Xn, Xm, lsl #3]
		in.scaled, in.reg, in.opaque = true, uint8(w&31), true
	case w&0x0a000000 == 0x08000000: // other loads and stores
		in.opaque = true
	}
	return in, true
}
