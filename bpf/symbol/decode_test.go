package symbol

import (
	"bytes"
	"debug/elf"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

// Encodings that are easily taken for something else; lengths from Intel's SDM
// volume 2 and AMD's volume 3 and 6.
func TestDecodeX86(t *testing.T) {
	for _, c := range []struct {
		code string
		len  int // 0: no instruction
		flow flow
	}{
		{"c3", 1, flowRet}, {"f3 c3", 2, flowRet}, {"f2 c3", 2, flowRet}, {"c2 08 00", 3, flowRet},
		{"cb", 0, 0}, {"48 cf", 0, 0}, // far
		{"f3 0f 1e fa", 4, flowNext},                                     // endbr64
		{"90", 1, flowNext}, {"66 0f 1f 84 00 00 00 00 00", 9, flowNext}, // nops
		{"66 66 66 66 2e 0f 1f 84 00 00 00 00 00", 13, flowNext},
		{"cc", 1, flowStop}, {"0f 0b", 2, flowStop}, {"f4", 1, flowStop}, {"0f b9 c0", 3, flowStop},
		{"e9 00 01 00 00", 5, flowJump}, {"eb fe", 2, flowJump}, {"74 10", 2, flowBranch}, {"0f 84 00 01 00 00", 6, flowBranch}, {"e3 05", 2, flowBranch},
		{"2e 74 10", 3, flowBranch}, {"66 e9 00 01 00 00", 0, 0}, {"66 66 48 e8 00 00 00 00", 8, flowCall},
		{"e8 00 00 00 00", 5, flowCall}, {"ff d0", 2, flowCall}, {"ff 15 00 00 00 00", 6, flowCall},
		{"ff e0", 2, flowIndirect}, {"41 ff e3", 3, flowIndirect}, {"ff 24 c5 00 00 00 00", 7, flowIndirect}, {"3e ff e0", 3, flowIndirect},
		{"ff 25 00 00 00 00", 6, flowIndirect}, {"ff 28", 0, 0}, {"ff f8", 0, 0},
		{"48 b8 01 02 03 04 05 06 07 08", 10, flowNext}, {"b8 01 02 03 04", 5, flowNext}, {"66 b8 01 02", 4, flowNext},
		{"a1 01 02 03 04 05 06 07 08", 9, flowNext}, {"67 a1 01 02 03 04", 6, flowNext},
		{"f7 05 01 02 03 04 05 06 07 08", 10, flowNext}, {"f7 d8", 2, flowNext}, {"f6 00 01", 3, flowNext}, {"66 f7 c0 01 02", 5, flowNext},
		{"48 8d 04 25 00 00 00 00", 8, flowNext}, {"48 8d 05 00 00 00 00", 7, flowNext}, {"48 8d c0", 0, 0},
		{"c5 f8 77", 3, flowNext},                    // vzeroupper
		{"c5 f9 6f 44 24 10", 6, flowNext},           // vmovdqa
		{"c4 e2 7d 58 05 01 02 03 04", 9, flowNext},  // vpbroadcastd
		{"c4 e3 7d 46 c1 20", 6, flowNext},           // vperm2i128
		{"c5 fd 70 c0 1b", 5, flowNext},              // vpshufd
		{"62 f1 7d 48 6f 44 24 01", 8, flowNext},     // vmovdqa32, disp8
		{"62 f3 7d 48 25 c0 ff", 7, flowNext},        // vpternlogd
		{"62 f5 7c 48 58 c1", 6, flowNext},           // vaddph
		{"62 f4 7c 08 01 c1", 0, 0},                  // APX
		{"62 f1 79 48 6f c0", 0, 0},                  // the fixed bit
		{"66 c5 f8 77", 0, 0}, {"48 c5 f8 77", 0, 0}, // prefixes that VEX forbids
		{"8f e9 78 c1 c1", 5, flowNext},    // XOP: vphaddbw
		{"8f e8 78 c0 c1 02", 6, flowNext}, // XOP: vprotb
		{"8f 00", 2, flowNext},             // pop
		{"66 0f 78 c0 01 02", 6, flowNext}, // extrq
		{"66 0f 3a 0f c1 08", 6, flowNext}, {"66 0f 38 00 c1", 5, flowNext}, {"0f 38 60 c0", 0, 0}, {"0f 3a 80 c0 00", 0, 0},
		{"f3 0f b8 c0", 4, flowNext}, {"0f b8 c0", 0, 0},
		{"06", 0, 0}, {"62", 0, 0}, {"9a 00 00 00 00 00 00", 0, 0}, {"d6", 0, 0}, {"0f 04", 0, 0}, {"0f ff", 0, 0},
		{"66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 90", 0, 0}, // longer than one can be
		{"", 0, 0}, {"66", 0, 0}, {"48", 0, 0}, {"e8 00 00", 0, 0}, {"c4", 0, 0},
	} {
		code, err := hex.DecodeString(strings.ReplaceAll(c.code, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		in, ok := decodeX86(code, 0x1000)
		if ok != (c.len > 0) || ok && (in.len != c.len || in.flow != c.flow) {
			t.Errorf("%s: %v, %d bytes, flow %d; want %d bytes, flow %d", c.code, ok, in.len, in.flow, c.len, c.flow)
		}
	}
}

// What instructions refer to, which the search for tables and for an IFUNC's
// choices rests on.
func TestDecodeReferences(t *testing.T) {
	for _, c := range []struct {
		machine elf.Machine
		code    string
		want    instr
	}{
		{elf.EM_X86_64, "488d0510000000", instr{kind: refAddress, ref: 0x1017, reg: 0}},
		{elf.EM_X86_64, "4c8d0df0ffffff", instr{kind: refAddress, ref: 0xff7, reg: 9}},
		{elf.EM_X86_64, "488b0d10000000", instr{kind: refLoad, ref: 0x1017, reg: 1, opaque: true}},
		{elf.EM_X86_64, "480f440510000000", instr{kind: refLoad, ref: 0x1018, reg: 0, opaque: true}},
		{elf.EM_X86_64, "41b800104000", instr{kind: refAddress, ref: 0x401000, reg: 8}},
		{elf.EM_X86_64, "48c7c000104000", instr{kind: refAddress, ref: 0x401000, reg: 0}},
		{elf.EM_X86_64, "488b4110", instr{reg: noReg, opaque: true}},
		{elf.EM_X86_64, "4801d0", instr{adds: true, reg: 0}},
		{elf.EM_X86_64, "4c03c2", instr{adds: true, reg: 8}},
		{elf.EM_X86_64, "ff24c500104000", instr{flow: flowIndirect, scaled: true, kind: refAddress, ref: 0x401000, reg: noReg}},
		{elf.EM_X86_64, "41ff24c0", instr{flow: flowIndirect, scaled: true, reg: 8}},
		{elf.EM_X86_64, "ff6010", instr{flow: flowIndirect, reg: noReg}},
		{elf.EM_X86_64, "ebfe", instr{flow: flowJump, target: 0x1000, reg: noReg}},
		{elf.EM_X86_64, "e9fbffffff", instr{flow: flowJump, target: 0x1000, reg: noReg}},
		// clang-14 -target aarch64-linux-gnu assembled these.
		{elf.EM_AARCH64, "c0035fd6", instr{flow: flowRet, reg: noReg}},
		{elf.EM_AARCH64, "ff0b5fd6", instr{flow: flowRet, reg: noReg}},
		{elf.EM_AARCH64, "ff0f5fd6", instr{flow: flowRet, reg: noReg}},
		{elf.EM_AARCH64, "40015fd6", instr{flow: flowRet, reg: noReg}},                               // ret x10
		{elf.EM_AARCH64, "ffffff17", instr{flow: flowJump, target: 0xffc, reg: noReg}},               // b .-4
		{elf.EM_AARCH64, "02000094", instr{flow: flowCall, target: 0x1008, reg: noReg}},              // bl .+8
		{elf.EM_AARCH64, "41000054", instr{flow: flowBranch, target: 0x1008, reg: noReg}},            // b.ne .+8
		{elf.EM_AARCH64, "e0ffffb4", instr{flow: flowBranch, target: 0xffc, reg: noReg}},             // cbz x0, .-4
		{elf.EM_AARCH64, "4000f8b6", instr{flow: flowBranch, target: 0x1008, reg: noReg}},            // tbz x0, #63, .+8
		{elf.EM_AARCH64, "60021fd6", instr{flow: flowIndirect, reg: 19}},                             // br x19
		{elf.EM_AARCH64, "11091fd7", instr{flow: flowIndirect, reg: 8}},                              // braa x8, x17
		{elf.EM_AARCH64, "00013fd6", instr{flow: flowCall, reg: noReg}},                              // blr x8
		{elf.EM_AARCH64, "000020d4", instr{flow: flowStop, reg: noReg}},                              // brk #0
		{elf.EM_AARCH64, "e0ffffb0", instr{kind: refPage, ref: 0xffffffffffffe000, reg: 0}},          // adrp x0, -0x3000
		{elf.EM_AARCH64, "00000090", instr{kind: refPage, ref: 0x1000, reg: 0}},                      // adrp x0, .
		{elf.EM_AARCH64, "00400091", instr{kind: refAdd, ref: 0x10, reg: 0}},                         // add x0, x0, #16
		{elf.EM_AARCH64, "01010010", instr{kind: refAddress, ref: 0x1020, reg: 1}},                   // adr x1, .+32
		{elf.EM_AARCH64, "2988208b", instr{adds: true, reg: 9}},                                      // add x9, x1, w0, sxtb #2
		{elf.EM_AARCH64, "410840f9", instr{kind: refSlot, ref: 0x10, reg: 1, base: 2, opaque: true}}, // ldr x1, [x2, #16]
		{elf.EM_X86_64, "8b4110", instr{reg: noReg}},
		{elf.EM_X86_64, "c5f877", instr{reg: noReg, opaque: true}},
		{elf.EM_X86_64, "f30f6f01", instr{reg: noReg, opaque: true}},
		{elf.EM_X86_64, "488901", instr{reg: noReg, opaque: true}},
		{elf.EM_X86_64, "4889c1", instr{reg: noReg}},
		{elf.EM_X86_64, "f30f1efa", instr{reg: noReg}},
		{elf.EM_AARCH64, "1b7860f8", instr{scaled: true, reg: 27, opaque: true}}, // ldr x27, [x0, x0, lsl #3]
	} {
		code, err := hex.DecodeString(c.code)
		if err != nil {
			t.Fatal(err)
		}
		c.want.len = len(code)
		if in, ok := decoder(c.machine)(code, 0x1000); !ok || in != c.want {
			t.Errorf("%v %s: %+v, %v; want %+v", c.machine, c.code, in, ok, c.want)
		}
	}
}

// FuzzWalk: whatever the code, a walk ends, and what it finds lies within the
// function and on its instructions.
func FuzzWalk(f *testing.F) {
	for _, s := range []string{"c3", "ebfec3", "488d0510000000ffe0", "e800000000c3", "ff24c500104000c3", "c5f877c3"} {
		b, _ := hex.DecodeString(s)
		f.Add(b, false)
	}
	f.Add([]byte("\xc0\x03\x5f\xd6"), true)
	f.Fuzz(func(t *testing.T, code []byte, arm bool) {
		if len(code) == 0 || len(code) > 0x800 {
			return
		}
		b := tiny().bytes()
		copy(b[tinyText:], code)
		p, err := open(bytes.NewReader(b), int64(len(b)), Limits{}, anything)
		if err != nil {
			t.Fatal(err)
		}
		if p.machine = elf.EM_X86_64; arm {
			p.machine = elf.EM_AARCH64
		}
		half := uint64(len(code) / 2)
		for _, parts := range [][]Range{{{tinyText, tinyText + uint64(len(code))}}, {{tinyText + half, tinyText + uint64(len(code))}, {tinyText, tinyText + half}}} {
			body, why, err := p.walk(parts...)
			if err != nil || (body == nil) != (why != "") {
				t.Fatal(body, why, err)
			}
			if body == nil {
				continue
			}
			for _, off := range body.rets {
				if !body.boundary(off - tinyText + tinyAddress) {
					t.Errorf("return at %#x, between instructions", off)
				}
			}
			for _, j := range body.jumps {
				if !body.boundary(j.from) || body.part(j.to) != nil && !body.boundary(j.to) {
					t.Errorf("jump %#x", j)
				}
			}
		}
	})
}

// Each bound of a walk, and each reason why there is none.
func TestWalkRefuses(t *testing.T) {
	program := func(code string) *parser {
		b := append(tiny().bytes()[:tinyText], make([]byte, 2<<20)...)
		clear(b[40:48])                 // no sections
		le.PutUint64(b[tinyPhdr+8:], 0) // all of it
		le.PutUint64(b[tinyPhdr+16:], tinyAddress-tinyText)
		le.PutUint64(b[tinyPhdr+32:], uint64(len(b)))
		le.PutUint64(b[tinyPhdr+40:], uint64(len(b)))
		raw, err := hex.DecodeString(code)
		if err != nil {
			t.Fatal(err)
		}
		copy(b[tinyText:], raw)
		p, err := open(bytes.NewReader(b), int64(len(b)), Limits{Code: 3 << 19}, anything)
		if err != nil {
			t.Fatal(err)
		}
		p.machine = elf.EM_X86_64
		return p
	}
	text := func(n uint64) Range { return Range{tinyText, tinyText + n} }
	for _, c := range []struct {
		name  string
		code  string
		parts []Range
		why   string
	}{
		{"cut off", "90e800", []Range{text(3)}, "no instruction"},
		{"not one", "9006c3", []Range{text(3)}, "no instruction"},
		{"into the middle", "eb01b8c3000000c3", []Range{text(8)}, "into the middle"},
		{"call into the middle", "e801000000b8c3000000c3", []Range{text(11)}, "into the middle"},
		{"too long", "", []Range{text(maxFunction + 1)}, "bytes, 1048576 are taken"},
		{"too many pieces", "", make([]Range, maxParts+1), "pieces"},
		{"outside", "", []Range{{tinyText, 1 << 40}}, "not all of one"},
		{"empty", "", []Range{text(0)}, "not all of one"},
	} {
		if b, why, err := program(c.code).walk(c.parts...); b != nil || err != nil || !strings.Contains(why, c.why) {
			t.Errorf("%s: %+v, %q, %v", c.name, b, why, err)
		}
	}
	p := program("")
	for i := range 2 { // 1 MiB of "add %al,(%rax)" each
		if b, why, err := p.walk(text(maxFunction)); err != nil || (b == nil) != (i == 1) || i == 1 && !strings.Contains(why, "of this file") {
			t.Errorf("walk %d: %q, %v", i, why, err)
		}
	}
	p = program("c3")
	p.machine = elf.EM_386
	if b, why, err := p.walk(text(1)); b != nil || err != nil || !strings.Contains(why, "not decoded") {
		t.Errorf("other machine: %q, %v", why, err)
	}
	p = program("c3")
	p.src.r = failing{}
	if _, _, err := p.walk(text(1)); !errors.Is(err, errFailing) {
		t.Errorf("reader that fails: %v", err)
	}
}

var errFailing = errors.New("no more time")

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errFailing }
