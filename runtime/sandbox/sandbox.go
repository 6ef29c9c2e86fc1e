// Package sandbox recognises at the barrier that a container's code will not be
// run by the host's kernel: gVisor runs it, or a virtual machine, or a
// WebAssembly runtime. A breakpoint in one of its files proves nothing then,
// and neither does what this kernel sees of its system calls.
//
// In: the pid that the runtime says is the container's first process
// ([Look]), and the first bytes of the program that the container starts
// ([Native]). Out: [Facts], and what follows from them ([Facts.Judge]), which
// is a pure function. Nothing is changed and nothing is run.
//
// Until the barrier is answered that process is the runtime's own: runc's or
// crun's, waiting to start the container's program, or a sandbox that has
// already been started. So what is recognised is the runtime, by what it has
// open, what it has mapped and what it was built from; its name is never
// enough. A container that uses KVM, wasmtime or gVisor's packages itself has
// not begun to do so.
//
// The kernel is trusted, the file of the program is not: it meets one parser,
// and little of it is read. Where the runtime did not hold the container (gap
// lateAttach), that file may be the container's own, made to look like a
// sandbox; all it gains is evidence that claims nothing.
//
// What this is not: a proof that the host's kernel runs a container. What is
// not recognised is listed in docs/probes.md.
package sandbox

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// Kind says what runs a container's code.
type Kind string

// The kinds of sandbox; "" is none that is recognised.
const (
	GVisor         Kind = "gVisor"
	VirtualMachine Kind = "virtual machine"
	WebAssembly    Kind = "WebAssembly"
)

// Facts are what was seen of a container's first process.
type Facts struct {
	Exe       string   // what its program is called there
	Machine   bool     // it has a KVM virtual machine open
	Libraries []string // names of those of its mapped files that are known here
	Program   Program  // what its program was built from
}

// Verdict is what follows from the facts.
type Verdict struct {
	Kind Kind
	Why  string // for a person; "" without a kind
	// UnlessNative: this runtime also starts ordinary programs as processes of
	// this kernel. What decides is the program that the container starts.
	UnlessNative bool
}

// kvmMachine is what /proc calls the descriptor of a virtual machine
// (virt/kvm/kvm_main.c: anon_inode_getfile("kvm-vm")).
const kvmMachine = "anon_inode:kvm-vm"

// libraries are loaded by crun before it makes the container's first process,
// and only if the container is to be run by their handler
// (libcrun/custom-handler.c, libcrun_configure_handler); a shim may be linked
// with them. libkrun's virtual machine does not exist before the barrier is
// answered.
var libraries = []struct {
	name string // what the file's name begins with, before ".so" and a version
	kind Kind
}{
	{"libkrun", VirtualMachine}, {"libkrun-sev", VirtualMachine}, {"libkrun-awsnitro", VirtualMachine},
	{"libwasmedge", WebAssembly}, {"libwasmtime", WebAssembly}, {"libwasmer", WebAssembly}, {"libiwasm", WebAssembly},
}

// library returns the kind that the name of a mapped file stands for.
func library(path string) (name string, k Kind) {
	name = path[strings.LastIndexByte(path, '/')+1:]
	stem, rest, ok := strings.Cut(name, ".so")
	if !ok || rest != "" && rest[0] != '.' {
		return name, ""
	}
	for _, l := range libraries {
		if l.name == stem {
			return name, l.kind
		}
	}
	return name, ""
}

// modules are the main modules of Go programs that are sandboxes or speak for
// one.
var modules = []struct {
	path string
	kind Kind
}{
	{"gvisor.dev/gvisor", GVisor},
	// With a hypervisor on another machine the shim itself stands for the
	// container, and has no machine open.
	{"github.com/kata-containers/kata-containers/src/runtime", VirtualMachine},
	{"github.com/kata-containers/runtime", VirtualMachine},
}

// Judge says what runs the container.
func (f Facts) Judge() Verdict {
	first := fmt.Sprintf("its first process, %.256q,", f.Exe)
	for _, m := range modules {
		if f.Program.Module == m.path {
			return Verdict{Kind: m.kind, Why: fmt.Sprintf("%s is %.256s, built from %s", first, f.Program.Path, m.path)}
		}
	}
	if f.Program.Sentry {
		return Verdict{Kind: GVisor, Why: first + " has gVisor's kernel in it (" + sentryPackage + ")"}
	}
	if f.Machine {
		return Verdict{Kind: VirtualMachine, Why: first + " is a virtual machine's: it has " + kvmMachine + " open"}
	}
	for _, want := range []Kind{VirtualMachine, WebAssembly} {
		i := slices.IndexFunc(f.Libraries, func(path string) bool { _, k := library(path); return k == want })
		if i >= 0 {
			name, _ := library(f.Libraries[i])
			return Verdict{Kind: want, Why: fmt.Sprintf("%s has loaded %.256q", first, name), UnlessNative: want == WebAssembly}
		}
	}
	if f.Program.WasmShim {
		return Verdict{Kind: WebAssembly, Why: first + " is a shim for WebAssembly", UnlessNative: true}
	}
	return Verdict{}
}

// HeadSize is how much [Native] wants to see of a program.
const HeadSize = 4

// Native reports whether a program that begins like this is started by the
// kernel, as an ELF file or a script; a WebAssembly module, text or a
// component is not. It is the same question that shims ask (runwasi,
// executor.rs, is_linux_container).
func Native(head []byte) bool {
	return bytes.HasPrefix(head, []byte("\x7fELF")) || bytes.HasPrefix(head, []byte("#!"))
}
