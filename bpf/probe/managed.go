package probe

import (
	"path"
	"slices"
	"strings"
)

// language is code that no uprobe can be set on: an interpreter reads it, or a
// compiler turns it into machine code that lies in no file.
type language struct {
	name       string
	programs   []string // without versions
	libraries  []string // without versions; where the interpreter is one
	extensions []string
	magic      []string // what such files begin with
	offers     string   // what can be had instead
}

var languages = []language{
	{name: "Python", programs: []string{"python", "pypy", "uwsgi"}, libraries: []string{"libpython"}, extensions: []string{".py", ".pyc", ".pyo", ".pyz", ".whl"},
		offers: "a usdt of provider python (function__entry, function__return, gc__start, import__find__load__start, audit) sees it where the interpreter was built --with-dtrace; python -X perf (3.12) names its functions in /tmp/perf-PID.map"},
	{name: "JavaScript", programs: []string{"node", "nodejs", "deno", "bun"}, libraries: []string{"libnode"}, extensions: []string{".js", ".mjs", ".cjs", ".ts", ".jsx", ".tsx"},
		offers: "node --perf-basic-prof names its functions in /tmp/perf-PID.map; a usdt of provider node (http__server__request, gc__start) is there up to version 18 where it was built --with-dtrace"},
	{name: "Java", programs: []string{"java", "javaw"}, libraries: []string{"libjvm"}, extensions: []string{".jar", ".class", ".war", ".ear", ".jmod"}, magic: []string{"\xca\xfe\xba\xbe"},
		offers: "a usdt of provider hotspot (method__entry, class__loaded) on libjvm.so sees it where the JDK was built with dtrace, methods only with -XX:+ExtendedDTraceProbes; jcmd PID Compiler.perfmap (JDK 17) writes /tmp/perf-PID.map"},
	{name: "Ruby", programs: []string{"ruby", "irb", "puma"}, libraries: []string{"libruby"}, extensions: []string{".rb", ".ru", ".gem"},
		offers: "a usdt of provider ruby (method__entry, cmethod__entry, require__entry) sees it where it was built --enable-dtrace; ruby --yjit-perf (3.3) names compiled methods in /tmp/perf-PID.map"},
	{name: "PHP", programs: []string{"php", "php-fpm", "php-cgi"}, libraries: []string{"libphp"}, extensions: []string{".php", ".phar", ".phtml"},
		offers: "a usdt of provider php (function__entry, request__startup) sees it where it was built --enable-dtrace and runs with USE_ZEND_DTRACE=1"},
	{name: ".NET", programs: []string{"dotnet", "mono"}, libraries: []string{"libcoreclr", "libmono"}, extensions: []string{".dll", ".exe", ".nupkg"}, magic: []string{"MZ"},
		offers: "DOTNET_PerfMapEnabled=1 names its methods in /tmp/perf-PID.map; it has no USDT markers"},
	{name: "Perl", programs: []string{"perl"}, libraries: []string{"libperl"}, extensions: []string{".pl", ".pm"},
		offers: "a usdt of provider perl (sub__entry, loading__file) sees it where it was built -Dusedtrace"},
	{name: "Erlang", programs: []string{"erl", "beam.smp", "escript", "elixir"}, extensions: []string{".beam", ".ez"},
		offers: "a usdt of provider erlang (function__entry) sees it where it was built --with-dynamic-trace=systemtap; erl +JPperf true (25) writes /tmp/perf-PID.map"},
	{name: "Lua", programs: []string{"lua", "luajit"}, libraries: []string{"liblua", "libluajit"}, extensions: []string{".lua"}, offers: "it offers nothing that a probe could use"},
	{name: "R", programs: []string{"R", "Rscript"}, libraries: []string{"libR.so"}, extensions: []string{".R", ".r"}, offers: "it offers nothing that a probe could use"},
	{name: "WebAssembly", programs: []string{"wasmtime", "wasmedge", "wasmer"}, extensions: []string{".wasm", ".wat"}, magic: []string{"\x00asm"}, offers: "wasmtime --profile=perfmap names its functions in /tmp/perf-PID.map"},
	{name: "shell", programs: []string{"sh", "bash", "dash", "ash", "zsh", "ksh"}, extensions: []string{".sh", ".bash"},
		offers: "the programs that a script starts are files of their own: name them"},
}

// languageOf returns the language that a program or library of this name runs,
// or nil. Shells run programs, which are no managed code.
func languageOf(base string) *language {
	l := runs(base)
	if l == nil || l.name == "shell" {
		return nil
	}
	return l
}

func runs(base string) *language {
	bare := strings.TrimRight(base, "0123456789.-")
	for i := range languages {
		l := &languages[i]
		if slices.Contains(l.programs, base) || slices.Contains(l.programs, bare) ||
			strings.Contains(base, ".so") && slices.ContainsFunc(l.libraries, func(lib string) bool { return strings.HasPrefix(base, lib) }) {
			return l
		}
	}
	return nil
}

// detail says to a person why there is no such function in an interpreter.
func (l *language) detail(file string) string {
	return file + " runs " + l.name + ", whose functions are not in it: " + l.offers
}

// managedFile says of a file that is no ELF file what runs it, or "".
func managedFile(file, head string) string {
	if interp := shebang(head); interp != "" {
		detail := "a script that " + interp + " runs"
		if l := runs(path.Base(interp)); l != nil {
			detail += ", " + l.name + ": " + l.offers
		}
		return detail
	}
	for i := range languages {
		l := &languages[i]
		if slices.Contains(l.extensions, path.Ext(file)) || slices.ContainsFunc(l.magic, func(m string) bool { return strings.HasPrefix(head, m) }) {
			return l.name + ", which has no machine code of its own: " + l.offers
		}
	}
	return ""
}

// shebang returns the interpreter that the first line of a script names, behind
// env too.
func shebang(head string) string {
	line, ok := strings.CutPrefix(head, "#!")
	if !ok {
		return ""
	}
	line, _, _ = strings.Cut(line, "\n")
	words := strings.Fields(line)
	if len(words) > 1 && path.Base(words[0]) == "env" {
		words = slices.DeleteFunc(words[1:], func(w string) bool { return strings.HasPrefix(w, "-") || strings.Contains(w, "=") })
	}
	if len(words) == 0 {
		return ""
	}
	return strings.ToValidUTF8(words[0], "\ufffd")
}
