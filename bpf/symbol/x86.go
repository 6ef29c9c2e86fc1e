package symbol

import "debug/elf"

// flow is where control goes after an instruction.
type flow uint8

const (
	flowNext     flow = iota // to the next one
	flowCall                 // to another function, and then to the next one
	flowBranch               // to target or to the next one
	flowJump                 // to target
	flowIndirect             // to an address that is computed
	flowRet                  // back to the caller
	flowStop                 // nowhere: it traps
)

// instr is what a walk needs to know of one instruction.
type instr struct {
	len    int
	flow   flow
	target uint64 // an address: of flowBranch, flowJump, and of flowCall if it is direct

	// ref is an address that the instruction computes or loads from, if the
	// instruction alone says so; kind tells which.
	ref  uint64
	kind refKind
	base uint8 // of refSlot
	reg  uint8 // the register that ref goes to; of flowIndirect, the one jumped through
	// scaled: of flowIndirect, the address is read from a table of 8-byte
	// entries. adds: it adds to reg.
	scaled, adds bool
	notrack      bool // of flowIndirect: marked by the compiler as one of a switch (CET)
	// opaque: it may give a register an address that nothing here says: it
	// loads 8 bytes, or is of the vector units.
	opaque bool
}

type refKind uint8

const (
	refNone    refKind = iota
	refAddress         // the address itself goes to reg
	refLoad            // what is stored there goes to reg
	refPage            // arm64: the page of the address, refAdd completes it
	refAdd             // arm64: reg and ref, a number, give an address
	refSlot            // arm64: what is stored at base and ref, a number, goes to reg
)

const noReg = 0xff

// decoder returns the function that decodes a machine's instructions: what
// begins at the start of code, which lies at address pc. It says false if that
// is no instruction, or none that it knows the length of.
func decoder(m elf.Machine) func(code []byte, pc uint64) (instr, bool) {
	switch m {
	case elf.EM_X86_64:
		return decodeX86
	case elf.EM_AARCH64:
		return decodeARM64
	}
	return nil
}

// What follows an opcode of x86-64 (Intel's SDM volume 2, appendix A). Lengths
// and jumps need no more than these tables. golang.org/x/arch/x86/x86asm
// v0.32.0 would decode too much and too little: it does not know endbr64, with
// which each function of a program built for CET begins (no function of
// Debian's libstdc++ is walked to its end by it, each one is by this).
//
//	.  nothing          m  ModRM          b  ModRM, byte       z  ModRM, 4 bytes (2 with 66)
//	1  byte             2  two bytes      3  three bytes       4  4 bytes (2 with 66)
//	j  byte, relative   J  4 bytes, rel.  v  4 bytes (8 with REX.W, 2 with 66)
//	o  address          p  prefix         x  other             !  no instruction in 64-bit mode
const oneByte = "" +
	"mmmm14!!mmmm14!x" + // 00
	"mmmm14!!mmmm14!!" + // 10
	"mmmm14p!mmmm14p!" + // 20
	"mmmm14p!mmmm14p!" + // 30
	"pppppppppppppppp" + // 40: REX
	"................" + // 50
	"!!xmpppp4z1b...." + // 60
	"jjjjjjjjjjjjjjjj" + // 70
	"bz!bmmmmmmmmmmmx" + // 80
	"..........!....." + // 90
	"oooo....14......" + // a0
	"11111111vvvvvvvv" + // b0
	"bb2.xxbz3.2..1!." + // c0
	"mmmm!!!.mmmmmmmm" + // d0
	"jjjj1111JJ!j...." + // e0
	"p.pp..xx......xx" //   f0

const twoByte = "" +
	"mmmm!....." + "!.!m.b" + // 00
	"mmmmmmmmmmmmmmmm" + // 10
	"mmmm!!!!mmmmmmmm" + // 20
	"......!.x!x!!!!!" + // 30
	"mmmmmmmmmmmmmmmm" + // 40
	"mmmmmmmmmmmmmmmm" + // 50
	"mmmmmmmmmmmmmmmm" + // 60
	"bbbbmmm.xm!!mmmm" + // 70
	"JJJJJJJJJJJJJJJJ" + // 80
	"mmmmmmmmmmmmmmmm" + // 90
	"...mbmmm...mbmmm" + // a0
	"mmmmmmmmmmbmmmmm" + // b0
	"mmbmbbbm........" + // c0
	"mmmmmmmmmmmmmmmm" + // d0
	"mmmmmmmmmmmmmmmm" + // e0
	"mmmmmmmmmmmmmmmm" //   f0

// The opcodes of the maps 0F 38 and 0F 3A that are assigned without a VEX
// prefix, as a range each.
var (
	map38 = [][2]byte{{0x00, 0x41}, {0x80, 0x82}, {0x8a, 0x8b}, {0xc8, 0xcf}, {0xd8, 0xdf}, {0xf0, 0xfc}}
	map3a = [][2]byte{{0x08, 0x0f}, {0x14, 0x17}, {0x20, 0x22}, {0x40, 0x44}, {0x60, 0x63}, {0xcc, 0xcf}, {0xdf, 0xdf}, {0xf0, 0xf0}}
)

func within(op byte, list [][2]byte) bool {
	for _, r := range list {
		if op >= r[0] && op <= r[1] {
			return true
		}
	}
	return false
}

const maxX86 = 15 // bytes of one instruction; the processor takes no more

// x86 is one instruction while it is decoded. A read behind the end makes it
// bad; the caller asks once, at the end.
type x86 struct {
	code []byte
	at   int
	bad  bool

	rex                 byte
	data16, addr32      bool
	repeat, repne, lock bool
	track               bool // the prefix 3e, notrack before an indirect jump
	wide                bool // REX.W

	hasOperand bool
	modrm      byte
	base       uint8 // of a memory operand; noReg if there is none
	index      bool
	scale      byte
	relative   bool // to the end of the instruction
	disp       int32
	imm        int32
}

func (x *x86) byte() byte {
	if x.at >= len(x.code) || x.at >= maxX86 {
		x.bad = true
		return 0
	}
	x.at++
	return x.code[x.at-1]
}

func (x *x86) skip(n int) {
	if x.at += n; x.at > len(x.code) || x.at > maxX86 {
		x.bad = true
	}
}

func (x *x86) int32() int32 {
	var v uint32
	for i := range 4 {
		v |= uint32(x.byte()) << (8 * i)
	}
	return int32(v)
}

// operand reads ModRM and what belongs to it.
func (x *x86) operand() {
	x.modrm, x.hasOperand = x.byte(), true
	x.base = noReg
	mod, rm := x.modrm>>6, x.modrm&7
	if mod == 3 {
		return
	}
	x.base = rm | x.rex&1<<3
	if rm == 4 {
		sib := x.byte()
		x.base = sib&7 | x.rex&1<<3
		x.index, x.scale = sib>>3&7|x.rex&2<<2 != 4, sib>>6
		if sib&7 == 5 && mod == 0 {
			x.base, x.disp = noReg, x.int32()
			return
		}
	}
	switch {
	case mod == 0 && rm == 5:
		x.base, x.relative, x.disp = noReg, true, x.int32()
	case mod == 1:
		x.disp = int32(int8(x.byte()))
	case mod == 2:
		x.disp = x.int32()
	}
}

// register is ModRM's second operand.
func (x *x86) register() uint8 { return x.modrm>>3&7 | x.rex&4<<1 }

func (x *x86) memory() bool { return x.modrm>>6 != 3 }

func decodeX86(code []byte, pc uint64) (instr, bool) {
	x := x86{code: code}
	in := instr{reg: noReg}
	var op byte
	for {
		op = x.byte()
		if x.bad {
			return in, false
		}
		if oneByte[op] != 'p' {
			break
		}
		if op>>4 != 4 {
			x.rex = 0 // counts only right before the opcode
		}
		switch op {
		case 0x66:
			x.data16 = true
		case 0x67:
			x.addr32 = true
		case 0xf0:
			x.lock = true
		case 0xf2:
			x.repne = true
		case 0xf3:
			x.repeat = true
		case 0x3e:
			x.track = true
		default:
			if op>>4 == 4 {
				x.rex = op
			}
		}
	}
	x.wide = x.rex&8 != 0
	ok := x.opcode(op, pc, &in)
	in.len = x.at
	in.opaque = in.opaque || x.wide && x.hasOperand && x.memory() && op != 0x8d
	if x.relative && in.kind != refNone {
		in.ref += pc + uint64(in.len)
	}
	return in, ok && !x.bad
}

// opcode decodes what an opcode of the first map begins.
func (x *x86) opcode(op byte, pc uint64, in *instr) bool {
	shape := oneByte[op]
	switch op {
	case 0x0f:
		return x.second(pc, in)
	case 0xc4, 0xc5, 0x62:
		in.opaque = true
		return x.vector(op)
	case 0x8f: // pop, or AMD's XOP
		in.opaque = true
		if x.at < len(x.code) && x.code[x.at]&0x1f >= 8 {
			return x.xop()
		}
		shape = 'm'
	case 0xf6, 0xf7:
		x.operand()
		switch {
		case x.modrm>>3&7 > 1:
		case op == 0xf6: // test
			x.skip(1)
		default:
			x.immediate('4')
		}
		return true
	case 0xfe:
		x.operand()
		return x.modrm>>3&7 < 2
	case 0xff:
		x.operand()
		return x.group5(in)
	case 0xc2, 0xc3:
		in.flow = flowRet
	case 0xca, 0xcb, 0xcf:
		return false // far: no function of a program returns so
	case 0xcc, 0xf4: // int3, hlt
		in.flow = flowStop
	case 0xa1, 0xa5, 0xac, 0xad, 0xd7: // loads without an operand that says so
		in.opaque = true
	}
	if !x.shape(shape, pc, in) {
		return false
	}
	switch {
	case op == 0x8d: // lea
		if !x.memory() {
			return false
		}
		x.refers(in, refAddress)
	case op == 0x8b && x.wide:
		x.refers(in, refLoad)
	case op>>3 == 0xb8>>3 && !x.data16 && !x.wide: // mov $imm32
		in.kind, in.ref, in.reg = refAddress, uint64(uint32(x.imm)), op&7|x.rex&1<<3
	case op == 0xc7 && !x.data16 && x.modrm>>3 == 3<<3: // mov $imm32, sign-extended
		in.kind, in.ref, in.reg = refAddress, uint64(int64(x.imm)), x.modrm&7|x.rex&1<<3
	case op == 0x01 && x.wide && !x.memory():
		in.adds, in.reg = true, x.modrm&7|x.rex&1<<3
	case op == 0x03 && x.wide:
		in.adds, in.reg = true, x.register()
	}
	switch {
	case op == 0xe8:
		in.flow = flowCall
	case op == 0xe9 || op == 0xeb:
		in.flow = flowJump
	case op>>4 == 7 || op >= 0xe0 && op <= 0xe3:
		in.flow = flowBranch
	}
	return true
}

// refers notes a memory operand whose address is known.
func (x *x86) refers(in *instr, kind refKind) {
	switch {
	case x.relative:
	case x.memory() && x.base == noReg && !x.index:
	default:
		return
	}
	in.kind, in.ref, in.reg = kind, uint64(int64(x.disp)), x.register()
}

// second decodes the opcodes behind 0F.
func (x *x86) second(pc uint64, in *instr) bool {
	op := x.byte()
	shape := twoByte[op]
	in.opaque = op >= 0x10 && op < 0x18 || op >= 0x28 && op < 0x40 || op >= 0x50 && op < 0x80 || op >= 0xc2 && op < 0xc8 || op >= 0xd0
	switch {
	case op == 0x38:
		op = x.byte()
		x.operand()
		return within(op, map38)
	case op == 0x3a:
		op = x.byte()
		x.operand()
		x.skip(1)
		return within(op, map3a)
	case op == 0x78: // vmread; SSE4a's extrq and insertq
		x.operand()
		if x.data16 || x.repne {
			x.skip(2)
		}
		return true
	case op == 0x0b: // ud2
		in.flow = flowStop
	case op>>4 == 8:
		in.flow = flowBranch
	case op == 0xb9 || op == 0xff: // ud1, ud0
		in.flow = flowStop
	case op == 0xb8 && !x.repeat: // popcnt has the prefix
		return false
	}
	if !x.shape(shape, pc, in) {
		return false
	}
	if op>>4 == 4 && x.wide { // cmov
		x.refers(in, refLoad)
	}
	return true
}

// shape skips what a table says; relative targets go to in.
func (x *x86) shape(shape byte, pc uint64, in *instr) bool {
	switch shape {
	case '!', 'x', 'p':
		return false
	case '.':
	case 'm':
		x.operand()
	case 'b':
		x.operand()
		x.skip(1)
	case 'z':
		x.operand()
		x.immediate('4')
	case 'j':
		in.target = uint64(int64(int8(x.byte())))
		in.target += pc + uint64(x.at)
	case 'J':
		if x.data16 && !x.wide {
			return false // 4 bytes on Intel's, 2 on AMD's
		}
		in.target = uint64(int64(x.int32()))
		in.target += pc + uint64(x.at)
	case 'o':
		if x.skip(4); !x.addr32 {
			x.skip(4)
		}
	default:
		x.immediate(shape)
	}
	return true
}

// immediate reads an immediate operand; the value of one of 4 bytes is kept.
func (x *x86) immediate(shape byte) {
	switch {
	case shape != '4' && shape != 'v':
		x.skip(int(shape - '0'))
	case shape == 'v' && x.wide:
		x.skip(8)
	case x.data16 && !x.wide:
		x.skip(2)
	default:
		x.imm = x.int32()
	}
}

// group5: inc, dec, call, far call, jmp, far jmp, push.
func (x *x86) group5(in *instr) bool {
	switch x.modrm >> 3 & 7 {
	case 2:
		in.flow = flowCall
	case 4:
		in.flow = flowIndirect
		in.notrack = x.track
		switch {
		case !x.memory():
			in.reg = x.modrm&7 | x.rex&1<<3
		case x.index && x.scale == 3:
			in.scaled = true
			if in.reg = x.base; x.base == noReg {
				in.kind, in.ref = refAddress, uint64(int64(x.disp))
			}
		}
	case 3, 5, 7:
		return false
	}
	return true
}

// vector decodes what a VEX or EVEX prefix begins. Both stand where REX would;
// no other prefix but that of a segment or of the address's size goes before.
func (x *x86) vector(prefix byte) bool {
	if x.rex != 0 || x.data16 || x.repeat || x.repne || x.lock {
		return false
	}
	maps := byte(1)
	switch prefix {
	case 0xc5:
		b := x.byte()
		x.rex = ^b >> 5 & 4
	case 0xc4:
		b := x.byte()
		x.rex, maps = ^b>>5&7, b&0x1f
		x.byte()
	default:
		b := x.byte()
		x.rex, maps = ^b>>5&7, b&7
		if b&8 != 0 || x.byte()&4 == 0 { // fixed bits, unless it is APX
			return false
		}
		x.byte()
	}
	op := x.byte()
	if maps == 1 && op == 0x77 && prefix != 0x62 { // vzeroupper, vzeroall
		return true
	}
	x.operand()
	switch maps {
	case 1:
		if op >= 0x70 && op <= 0x73 || op == 0xc2 || op >= 0xc4 && op <= 0xc6 {
			x.skip(1)
		}
		return twoByte[op] == 'm' || twoByte[op] == 'b' || op == 0x78
	case 3:
		x.skip(1)
		return true
	case 2:
		return true
	case 5, 6: // AVX512-FP16
		return prefix == 0x62
	}
	return false
}

// xop decodes AMD's XOP: three bytes like VEX, three maps of its own.
func (x *x86) xop() bool {
	b := x.byte()
	x.rex = ^b >> 5 & 7
	x.byte()
	x.byte()
	x.operand()
	switch b & 0x1f {
	case 8:
		x.skip(1)
	case 9:
	case 10:
		x.skip(4)
	default:
		return false
	}
	return true
}
