package sandbox

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"
)

// elfOf returns an ELF file of these sections.
func elfOf(parts ...string) []byte {
	names, body := []byte("\x00"), []byte{}
	table := make([]byte, 64) // the first header is empty
	add := func(name string, content []byte) {
		h := make([]byte, 64)
		binary.LittleEndian.PutUint32(h, uint32(len(names)))
		binary.LittleEndian.PutUint32(h[4:], 1) // SHT_PROGBITS
		binary.LittleEndian.PutUint64(h[24:], uint64(64+len(body)))
		binary.LittleEndian.PutUint64(h[32:], uint64(len(content)))
		names, body, table = append(append(names, name...), 0), append(body, content...), append(table, h...)
	}
	for i := 0; i < len(parts); i += 2 {
		add(parts[i], []byte(parts[i+1]))
	}
	names = append(names, ".shstrtab\x00"...)
	copyOfNames := bytes.Clone(names)
	names = names[:len(names)-len(".shstrtab\x00")]
	add(".shstrtab", copyOfNames)
	header := make([]byte, 64)
	copy(header, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint64(header[40:], uint64(64+len(body)))
	binary.LittleEndian.PutUint16(header[58:], 64)
	binary.LittleEndian.PutUint16(header[60:], uint16(len(table)/64))
	binary.LittleEndian.PutUint16(header[62:], uint16(len(table)/64-1))
	return append(append(header, body...), table...)
}

// info returns build information with these modules.
func info(text string) string {
	if text != "" {
		text = strings.Repeat("<", 16) + text + strings.Repeat(">", 16)
	}
	version := "go1.26.8"
	b := append([]byte("\xff Go buildinf:\x08\x02"), make([]byte, 16)...)
	b = append(binary.AppendUvarint(b, uint64(len(version))), version...)
	return string(append(binary.AppendUvarint(b, uint64(len(text))), text...))
}

const runscInfo = "path\tgvisor.dev/gvisor/runsc\nmod\tgvisor.dev/gvisor\tv0.0.0\th1:x=\n"

func TestReadProgram(t *testing.T) {
	far := strings.Repeat("x", 256<<10-10) + sentryPackage + ".(*Task)" // across two pieces
	dep := "path\tx/y\nmod\tx\tv1\ndep\tgvisor.dev/gvisor\tv0.0.0\n"
	for _, c := range []struct {
		name, exe string
		parts     []string
		want      Program
	}{
		{name: "no sections of interest", parts: []string{".text", "x"}},
		{name: "runsc", parts: []string{".go.buildinfo", info(runscInfo)}, want: Program{Path: "gvisor.dev/gvisor/runsc", Module: "gvisor.dev/gvisor"}},
		{name: "Bazel", parts: []string{".go.buildinfo", info(""), ".gopclntab", far}, want: Program{Sentry: true}},
		{name: "Bazel, PIE", parts: []string{".go.buildinfo", info(""), ".data.rel.ro.gopclntab", sentryPackage}, want: Program{Sentry: true}},
		{name: "no sentry", parts: []string{".go.buildinfo", info(""), ".gopclntab", "gvisor.dev/gvisor/pkg/tcpip", ".rodata", sentryPackage}},
		{name: "dependency", parts: []string{".go.buildinfo", info(dep), ".gopclntab", sentryPackage}, want: Program{Path: "x/y", Module: "x", Sentry: true}},
		{name: "another module", parts: []string{".go.buildinfo", info("path\tx/y\nmod\tx\tv1\ndep\tx/z\tv1\n"), ".gopclntab", sentryPackage}, want: Program{Path: "x/y", Module: "x"}},
		{name: "not Go", parts: []string{".gopclntab", sentryPackage}},
		{name: "old build information", parts: []string{".go.buildinfo", "\xff Go buildinf:\x08\x00" + strings.Repeat("\x00", 16), ".gopclntab", sentryPackage}, want: Program{Sentry: true}},
		{name: "shim", exe: "/opt/containerd-shim-spin-v2", parts: []string{".rodata", "src/containerd-shim-wasm-0.8.0/src"}, want: Program{WasmShim: true}},
		{name: "its log", exe: "containerd-shim-spin-v2", parts: []string{".rodata", "containerd_shim_wasm::sandbox"}, want: Program{WasmShim: true}},
		{name: "another shim", exe: "/opt/containerd-shim-x", parts: []string{".rodata", "x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := elfOf(c.parts...)
			if got, err := readProgram(bytes.NewReader(b), int64(len(b)), c.exe); err != nil || got != c.want {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// A broken file is an error, and none of its bytes make it a sandbox.
func TestBroken(t *testing.T) {
	good := func() []byte { return elfOf(".go.buildinfo", info(runscInfo)) }
	headers := func(b []byte) []byte { return b[binary.LittleEndian.Uint64(b[40:]):] }
	for name, c := range map[string]struct {
		change func([]byte) []byte
		want   string
	}{
		"empty":           {func(b []byte) []byte { return nil }, "not an ELF file"},
		"short":           {func(b []byte) []byte { return b[:63] }, "not an ELF file"},
		"text":            {func(b []byte) []byte { return bytes.Repeat([]byte("#!/bin/sh\n"), 10) }, "not an ELF file"},
		"32 bits":         {func(b []byte) []byte { b[4] = 1; return b }, "not an ELF file"},
		"big endian":      {func(b []byte) []byte { b[5] = 2; return b }, "not an ELF file"},
		"headers outside": {func(b []byte) []byte { binary.LittleEndian.PutUint64(b[40:], 1<<63); return b }, "section headers"},
		"cut":             {func(b []byte) []byte { return b[:len(b)-1] }, "section headers"},
		"too many":        {func(b []byte) []byte { binary.LittleEndian.PutUint16(b[60:], maxSections+1); return b }, "section headers"},
		"other size":      {func(b []byte) []byte { b[58] = 40; return b }, "section headers"},
		"names nowhere":   {func(b []byte) []byte { b[62] = 9; return b }, "in number 9"},
		"names too long":  {func(b []byte) []byte { headers(b)[128+32+2] = 2; return b }, "bytes of section names"},
		"names outside":   {func(b []byte) []byte { headers(b)[128+24+7] = 0x80; return b }, "section names"},
		"section outside": {func(b []byte) []byte { headers(b)[64+32+6] = 1; return b }, "is not in the file"},
		"info too long":   {func([]byte) []byte { return elfOf(".go.buildinfo", info(runscInfo)[:60]) }, "build information"},
		"info endless":    {func([]byte) []byte { return elfOf(".go.buildinfo", info("")[:32]+strings.Repeat("\xff", 20)) }, "build information"},
		"info huge":       {func([]byte) []byte { return elfOf(".go.buildinfo", info(strings.Repeat("x", maxBuildInfo))) }, "build information"},
	} {
		b := c.change(good())
		got, err := readProgram(bytes.NewReader(b), int64(len(b)), "")
		if err == nil || !strings.Contains(err.Error(), c.want) || got != (Program{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if s := (section{".gopclntab", 0, maxScan + 1}); true {
		if _, err := contains(bytes.NewReader(nil), s, "x"); err == nil || !strings.Contains(err.Error(), "more than are searched") {
			t.Errorf("a huge section: %v", err)
		}
	}
}

func FuzzReadProgram(f *testing.F) {
	f.Add(elfOf(".go.buildinfo", info(runscInfo), ".gopclntab", sentryPackage))
	f.Add(elfOf(".go.buildinfo", info(""), ".gopclntab", sentryPackage))
	f.Add(elfOf(".rodata", "containerd-shim-wasm"))
	if b, err := os.ReadFile("/bin/true"); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := readProgram(bytes.NewReader(b), int64(len(b)), "containerd-shim-x")
		if p.Sentry && !bytes.Contains(b, []byte(sentryPackage)) || !bytes.Contains(b, []byte(p.Module)) || p.Sentry && p.WasmShim {
			t.Fatalf("%+v, %v", p, err)
		}
	})
}
