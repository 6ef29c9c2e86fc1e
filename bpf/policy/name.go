package policy

import (
	"path"
	"regexp/syntax"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Bounds on what names many things: each name of a file is held against each
// of them.
const (
	maxGlobs       = 256
	maxRegexps     = 64
	maxKernelNames = 512
	// maxProgram bounds a regular expression's instructions, once its
	// repetitions are written out: (x{100}){10} is short to write.
	maxProgram = 2000
	maxBuildID = 64 // bytes, as bpf/symbol reads them
)

// symbol reads the name of a function, raw or demangled.
func (w *walk) symbol(n *yaml.Node) (string, bool) {
	s, ok := w.text(n, "symbols", maxSymbol)
	if ok && strings.Contains(s, "@") {
		w.add(at(n), "symbols: %q: want the name without its version", clip(s))
		return "", false
	}
	return s, ok
}

// symbolGlob reads a glob over names of functions. They are no paths: * and ?
// match '/' too, and braces are ordinary characters, which Rust's names have.
func (w *walk) symbolGlob(n *yaml.Node) (string, bool) {
	s, ok := w.text(n, "symbolGlobs", maxSymbol)
	return s, ok && w.plainGlob(n, "symbolGlobs", s)
}

// plainGlob checks the syntax that [path.Match] has: *, ?, classes in brackets
// and the backslash.
func (w *walk) plainGlob(n *yaml.Node, name, s string) bool {
	if _, err := path.Match(s, ""); err != nil {
		w.add(at(n), "%s: %q is not a glob: brackets that do not match, or a '\\' at its end: a '[' of the name itself is written '\\['", name, clip(s))
		return false
	}
	return true
}

func (w *walk) symbolRegexp(n *yaml.Node) (string, bool) {
	s, ok := w.text(n, "symbolRegexps", maxRegexp)
	if !ok {
		return "", false
	}
	re, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		w.add(at(n), "symbolRegexps: %q: %s", clip(s), strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		return "", false
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil || len(prog.Inst) > maxProgram {
		w.add(at(n), "symbolRegexps: %q: its repetitions make it too large: at most %d steps are taken", clip(s), maxProgram)
		return "", false
	}
	return s, true
}

// marker reads "provider:name".
func (w *walk) marker(n *yaml.Node) (string, bool) {
	s, ok := w.text(n, "markers", maxSymbol)
	if !ok {
		return "", false
	}
	provider, name, found := strings.Cut(s, ":")
	if !found || provider == "" || name == "" || strings.ContainsAny(provider, "*?[\\/ ") || strings.ContainsAny(name, ": ") {
		w.add(at(n), "markers: %q: want provider:name, such as libc:setjmp or python:gc__*: the name may be a glob, the provider not", clip(s))
		return "", false
	}
	return s, w.plainGlob(n, "markers", s)
}

// library reads a glob over sonames.
func (w *walk) library(n *yaml.Node) string {
	s, ok := w.text(n, "library", maxText)
	if !ok {
		return ""
	}
	if strings.Contains(s, "/") {
		w.add(at(n), "library: %q is a path: a soname has none, such as libssl.so.3 or libssl.so.*; a path is a file", clip(s))
		return ""
	}
	if !w.plainGlob(n, "library", s) {
		return ""
	}
	return s
}

// buildID reads a GNU build-id as file(1) and readelf -n print it.
func (w *walk) buildID(n *yaml.Node) string {
	s, ok := w.text(n, "buildId", maxText)
	if !ok {
		return ""
	}
	if s = strings.ToLower(s); len(s)%2 != 0 || len(s) > 2*maxBuildID || strings.Trim(s, "0123456789abcdef") != "" {
		w.add(at(n), "buildId: %q: want 2 to %d hexadecimal digits, two for each byte, without 0x", clip(s), 2*maxBuildID)
		return ""
	}
	return s
}

func (w *walk) program(n *yaml.Node) string {
	s, ok := w.text(n, "program", maxFileName)
	switch {
	case !ok:
		return ""
	case strings.Contains(s, "/"):
		w.add(at(n), "program: %q is a path: write it as a file; a program is a name in the container's $PATH, or entrypoint", clip(s))
	case strings.ContainsAny(s, "*?{}"):
		w.add(at(n), "program: %q is a glob: a program is one name in the container's $PATH, or entrypoint; files can be matched by file", clip(s))
	case s == "." || s == "..":
		w.add(at(n), "program: %q is a directory", s)
	default:
		return s
	}
	return ""
}

const maxFileName = 255 // NAME_MAX

// function reads the name of a kernel function, as in /proc/kallsyms.
func (w *walk) function(n *yaml.Node) (string, bool) {
	s, ok := w.text(n, "functions", maxKernel)
	if ok && !identifier(s, ".$") {
		w.add(at(n), "functions: %q: want the name of a kernel function as in /proc/kallsyms, neither a glob nor with an offset", clip(s))
		return "", false
	}
	return s, ok
}

// syscall reads the name of a system call, as in syscalls(2).
func (w *walk) syscall(n *yaml.Node) (string, bool) {
	s, ok := w.text(n, "syscalls", maxKernel)
	if !ok {
		return "", false
	}
	for _, prefix := range []string{"__x64_sys_", "__arm64_sys_", "__se_sys_", "__do_sys_", "sys_enter_", "sys_exit_", "sys_"} {
		if bare, found := strings.CutPrefix(s, prefix); found {
			w.add(at(n), "syscalls: %q: want the name of the call alone, %s", clip(s), clip(bare))
			return "", false
		}
	}
	if !identifier(s, "") || strings.ToLower(s) != s {
		w.add(at(n), "syscalls: %q: want the name of a system call, such as openat", clip(s))
		return "", false
	}
	return s, true
}

// event reads the name of a tracepoint, with its group for a tracepoint,
// without for a raw one.
func (w *walk) event(n *yaml.Node, typ, s string) string {
	group, name, grouped := strings.Cut(s, ":")
	switch {
	case typ == RawTracepoint && grouped:
		w.add(at(n), "event: %q: a rawTracepoint is named without its group: want %s", clip(s), clip(name))
	case typ == RawTracepoint && !identifier(s, ""):
		w.add(at(n), "event: %q: want the name of a raw tracepoint, such as sys_enter", clip(s))
	case typ == Tracepoint && (!grouped || !identifier(group, "-") || !identifier(name, "-")):
		w.add(at(n), "event: %q: want group:name, such as %s, as in /sys/kernel/tracing/available_events", clip(s), ProcessExec)
	default:
		return s
	}
	return ""
}

// identifier reports whether s consists of letters, digits, '_' and what else is
// given. The names of the kernel go into paths and into tracefs's own little
// language.
func identifier(s, others string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || strings.IndexByte(others, c) >= 0) {
			return false
		}
	}
	return s != ""
}
