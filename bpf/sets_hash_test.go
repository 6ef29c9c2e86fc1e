package bpf

import (
	"encoding/binary"
	"math/bits"
	"os"
	"slices"
	"strings"
	"testing"
)

// sipHash is SipHash-2-4, as its authors wrote it down.
func sipHash(k0, k1 uint64, b []byte) uint64 {
	v0, v1, v2, v3 := k0^0x736f6d6570736575, k1^0x646f72616e646f6d, k0^0x6c7967656e657261, k1^0x7465646279746573
	round := func() {
		v0 += v1
		v1 = bits.RotateLeft64(v1, 13) ^ v0
		v0 = bits.RotateLeft64(v0, 32)
		v2 += v3
		v3 = bits.RotateLeft64(v3, 16) ^ v2
		v0 += v3
		v3 = bits.RotateLeft64(v3, 21) ^ v0
		v2 += v1
		v1 = bits.RotateLeft64(v1, 17) ^ v2
		v2 = bits.RotateLeft64(v2, 32)
	}
	last := [8]byte{7: byte(len(b))}
	copy(last[:7], b[len(b)&^7:])
	for w := range slices.Chunk(append(slices.Clone(b[:len(b)&^7]), last[:]...), 8) {
		m := binary.LittleEndian.Uint64(w)
		v3 ^= m
		round()
		round()
		v0 ^= m
	}
	v2 ^= 0xff
	for range 4 {
		round()
	}
	return v0 ^ v1 ^ v2 ^ v3
}

// What tells entries apart is a SipHash under the agent's own key.
func TestSetHash(t *testing.T) {
	// Of the authors' paper: the key 0, 1, ... 15 and the text 0, 1, ... 14.
	text := make([]byte, 15)
	for i := range text {
		text[i] = byte(i)
	}
	if h := sipHash(0x0706050403020100, 0x0f0e0d0c0b0a0908, text); h != 0xa129ca6149be45e5 {
		t.Fatalf("%#x", h)
	}
	r := newSetRoom(t, Options{}, map[Set]uint32{SetExec: 0, SetFiles: 0})
	key := r.obj.sets.hashKey
	if key == load(t, Options{}).sets.hashKey || key == [2]uint64{} {
		t.Error("the key is not chosen at random")
	}
	dir := real(t, t.TempDir())
	s := r.shell(t)
	for _, n := range []int{1, 2, 7, 8, 9, 60, 110} { // of argument and path, and of all remainders
		must(t, os.WriteFile(dir+"/"+strings.Repeat("x", n), []byte("#!/bin/sh\n"), 0o700))
		s.do(t, "cd "+dir+" && ./"+strings.Repeat("x", n))
	}
	for _, set := range []Set{SetExec, SetFiles} {
		all := r.entries(t, set)
		if len(all) < 7 {
			t.Errorf("%d entries of %s", len(all), set)
		}
		for _, e := range all {
			u64 := binary.LittleEndian.AppendUint64
			b := u64(nil, uint64(e.path)|uint64(e.arg)<<32)
			if set == SetExec {
				b = u64(u64(b, uint64(e.CtimeNs)), e.Size)
			} else {
				b = u64(u64(b, 0), 0)
			}
			b = append(b, e.text[:e.path+e.arg]...)
			b = append(b, make([]byte, -len(b)&7)...)
			if want := sipHash(key[0], key[1], b); e.id[2] != want {
				t.Errorf("%s: hash %#x, want %#x", brief(&e), e.id[2], want)
			}
		}
	}
}
