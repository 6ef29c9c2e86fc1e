package sandbox

import (
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name  string
		facts Facts
		want  Kind
		both  bool   // runs native programs too
		why   string // part of it
	}{
		{name: "nothing"},
		{name: "runc", facts: Facts{Exe: "/usr/sbin/runc", Program: Program{Path: "github.com/opencontainers/runc", Module: "github.com/opencontainers/runc"}}},
		{name: "a name is not enough", facts: Facts{Exe: "/usr/local/bin/runsc"}},
		{name: "nor is QEMU's without a machine", facts: Facts{Exe: "/usr/bin/qemu-system-x86_64"}},
		{name: "nor a shim's", facts: Facts{Exe: "/usr/bin/containerd-shim-wasmtime-v1"}},
		{name: "gVisor", facts: Facts{Exe: "/runsc", Program: Program{Path: "gvisor.dev/gvisor/runsc", Module: "gvisor.dev/gvisor"}}, want: GVisor, why: "gvisor.dev/gvisor/runsc"},
		{name: "gVisor by Bazel", facts: Facts{Exe: "/memfd:x", Program: Program{Sentry: true}}, want: GVisor, why: "pkg/sentry/kernel"},
		{name: "gVisor on KVM", facts: Facts{Machine: true, Program: Program{Sentry: true}}, want: GVisor, why: "gVisor"},
		{name: "machine", facts: Facts{Exe: "/usr/bin/anything", Machine: true}, want: VirtualMachine, why: "kvm-vm"},
		{name: "Kata's shim", facts: Facts{Program: Program{Path: "x/containerd-shim-kata-v2", Module: "github.com/kata-containers/kata-containers/src/runtime"}}, want: VirtualMachine, why: "kata"},
		{name: "krun", facts: Facts{Exe: "/usr/bin/crun", Libraries: []string{"/usr/lib64/libkrun.so.1"}}, want: VirtualMachine, why: "libkrun.so.1"},
		{name: "crun-wasm", facts: Facts{Exe: "/usr/bin/crun", Libraries: []string{"/usr/lib/libwasmedge.so.0"}}, want: WebAssembly, both: true, why: "libwasmedge.so.0"},
		{name: "both libraries", facts: Facts{Libraries: []string{"/libwasmtime.so", "/libkrun-sev.so.1"}}, want: VirtualMachine, why: "libkrun-sev"},
		{name: "shim", facts: Facts{Exe: "/opt/containerd-shim-spin-v2", Program: Program{WasmShim: true}}, want: WebAssembly, both: true, why: "shim"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.facts.Judge()
			if got.Kind != c.want || got.UnlessNative != c.both || !strings.Contains(got.Why, c.why) || (got.Why == "") != (c.want == "") {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestLibrary(t *testing.T) {
	for path, want := range map[string]Kind{
		"/usr/lib/libwasmedge.so.0": WebAssembly, "/libwasmtime.so": WebAssembly, "/l/libwasmer.so": WebAssembly, "/libiwasm.so": WebAssembly,
		"/libkrun.so.1": VirtualMachine, "/libkrun-awsnitro.so.1": VirtualMachine,
		"/lib/libkrunfw.so.4": "", "/libwasmedge.so.0.debug": WebAssembly, "/libwasmedge.sock": "", "/libwasmedge.so/libc.so.6": "", "/libwasmtimefoo.so": "",
		"/libc.so.6": "", "libwasmedge": "", "": "", "/": "",
	} {
		if _, got := library(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

func TestNative(t *testing.T) {
	for head, want := range map[string]bool{
		"\x7fELF": true, "#!/b": true, "#!": true, "\x00asm": false, "(mod": false, "": false, "\x7fEL": false, " #!/": false, "MZ\x90\x00": false,
	} {
		if got := Native([]byte(head)); got != want {
			t.Errorf("%q: %v", head, got)
		}
	}
}
