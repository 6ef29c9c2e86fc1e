// Package probity_test holds the architecture as a test: which package may
// import which. It parses the files itself, so that a file it reads is an input
// of the test and a change is seen; what `go list` says would come from a
// cache.
package probity_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rule says what the code of one package (not its tests) may import.
type rule struct {
	ours    []string // packages of this module
	modules []string // prefixes of other modules' packages
	std     []string // where it is not nil, the only packages of the standard library
}

// The tree, from what knows nothing to what wires. A package that is not here
// fails the test: it needs a place first.
var rules = map[string]rule{
	// Values and formats.
	"runtime/container": {},
	"evidence":          {},

	// What runtimes tell.
	"runtime/cgroup":  {modules: []string{"golang.org/x/sys/unix"}},
	"runtime/process": {modules: []string{"golang.org/x/sys/unix"}},
	"runtime/oci": {
		ours:    []string{"runtime/container", "runtime/cgroup"},
		modules: []string{"golang.org/x/sys/unix", "github.com/opencontainers/runtime-spec/specs-go"},
	},
	"runtime/dial": {modules: []string{"golang.org/x/sys/unix"}},
	"runtime/nri": {
		ours:    []string{"runtime/container", "runtime/cgroup", "runtime/dial"},
		modules: []string{"github.com/containerd/nri/pkg/", "github.com/containerd/ttrpc"},
	},
	// Who listens on containerd's socket is looked at in one place.
	"runtime/containerd": {
		ours:    []string{"runtime/dial"},
		modules: []string{"golang.org/x/sys/unix", "google.golang.org/grpc"},
	},
	"runtime/events": {
		ours:    []string{"runtime/container", "runtime/containerd", "runtime/cgroup", "runtime/dial", "runtime/process"},
		modules: []string{"github.com/containerd/containerd/api/", "google.golang.org/grpc", "google.golang.org/protobuf/encoding/protowire"},
	},
	// The hook's half must stay tiny: 2 MB and 1.5 ms are its promise.
	"runtime/handoff/wire": {std: []string{"errors", "syscall", "time", "unicode/utf8"}},
	"runtime/handoff": {
		ours:    []string{"runtime/handoff/wire"},
		modules: []string{"golang.org/x/sys/unix"},
	},
	"hook": {
		ours: []string{"runtime/handoff/wire"},
		std:  []string{"errors", "io", "os", "syscall", "time"},
	},
	"wrapper": { // it runs before every command of docker's runtime
		std: []string{"bytes", "encoding/json", "errors", "fmt", "io", "os", "path/filepath", "slices", "strings", "syscall"},
	},
	"runtime/image": {
		ours: []string{"runtime/container", "runtime/containerd"},
		modules: []string{
			"golang.org/x/sys/unix", "golang.org/x/sync/", "github.com/bmatcuk/doublestar/v4", "github.com/cyphar/filepath-securejoin",
			"github.com/containerd/", "github.com/opencontainers/", "google.golang.org/grpc",
		},
	},
	"runtime/lifecycle": {ours: []string{"runtime/container"}},
	// It opens a live process's program, and only runtime/image knows on which
	// file systems that cannot block for ever.
	"runtime/sandbox": {
		ours:    []string{"runtime/image", "runtime/process"},
		modules: []string{"golang.org/x/sys/unix"},
	},

	// The kernel's side.
	"bpf": {modules: []string{"github.com/cilium/ebpf", "golang.org/x/sys/unix"}},
	"bpf/kernel": {
		ours:    []string{"runtime/cgroup"}, // which cgroups the host has is a fact like the others
		modules: []string{"github.com/cilium/ebpf", "github.com/ulikunitz/xz", "golang.org/x/sys/unix"},
	},
	// Hostile bytes meet only this, one decoder and one demangler.
	"bpf/symbol": {ours: []string{"bpf/symbol/demangle"}, modules: []string{"github.com/ulikunitz/xz/lzma"}},
	// Bounds what the demangler is given: nothing else may call it.
	"bpf/symbol/demangle": {
		std:     []string{"errors", "fmt", "math", "regexp", "strconv", "strings"},
		modules: []string{"github.com/ianlancetaylor/demangle"},
	},
	"bpf/policy": {
		ours:    []string{"runtime/container"},
		modules: []string{"github.com/bmatcuk/doublestar/v4", "go.yaml.in/yaml/"},
	},
	"bpf/probe": {
		ours:    []string{"bpf", "bpf/kernel", "bpf/policy", "bpf/symbol", "evidence", "runtime/image", "runtime/process"},
		modules: []string{"github.com/cilium/ebpf", "golang.org/x/sys/unix"},
	},

	// Evidence.
	"evidence/schema": {std: []string{"embed"}},
	"evidence/score":  {ours: []string{"evidence"}},
	// The far side of a shipper: it needs neither a key nor a node.
	"evidence/delivery": {ours: []string{"evidence"}},
	"evidence/sign": {
		ours:    []string{"evidence"},
		modules: []string{"golang.org/x/crypto/ssh", "golang.org/x/sys/unix", "github.com/secure-systems-lab/go-securesystemslib/dsse"},
	},
	// A TPM is spoken to by the agent itself, in Go. A token is not: its module needs
	// the C library, which only the helper, token, is linked against.
	"evidence/sign/tpm":         {ours: []string{"evidence/sign"}, modules: []string{"github.com/google/go-tpm/tpm2"}},
	"evidence/sign/pkcs11":      {ours: []string{"evidence/sign", "evidence/sign/pkcs11/wire"}},
	"evidence/sign/pkcs11/wire": {std: []string{"bytes", "encoding/binary", "encoding/json", "errors", "fmt", "io"}},
	"token": {
		ours:    []string{"evidence/sign/pkcs11/wire"},
		modules: []string{"github.com/miekg/pkcs11", "golang.org/x/sys/unix"},
	},
	// Where a key can be, in one place: the agent and the command open the same.
	"evidence/nodekey": {
		ours:    []string{"evidence", "evidence/sign", "evidence/sign/pkcs11", "evidence/sign/tpm"},
		modules: []string{"golang.org/x/sys/unix"},
	},
	// It is read on every system that a verifier runs on.
	"evidence/tlog": {ours: []string{"evidence"}, modules: []string{"golang.org/x/mod/sumdb/"}},
	"evidence/spool": {
		ours:    []string{"evidence", "evidence/redact", "evidence/sign", "evidence/tlog", "evidence/verify"}, // it takes what only a redactor makes
		modules: []string{"golang.org/x/sys/unix"},
	},
	// A file that a person writes: a decoder, and nothing that could reach further.
	"evidence/trust": {
		ours: []string{"evidence/sign"},
		std:  []string{"bytes", "encoding/base64", "encoding/json", "errors", "fmt", "io", "strings", "time", "unicode", "unicode/utf8"},
	},
	"evidence/verify": {
		ours:    []string{"evidence", "evidence/score", "evidence/sign", "evidence/tlog", "evidence/trust"},
		modules: []string{"golang.org/x/sys/unix", "golang.org/x/sync/errgroup"},
	},
	// It is handed what was verified, and reads nothing itself.
	"evidence/export": {ours: []string{"evidence", "evidence/verify"}},
	// What the policy keeps out of evidence: the one place that both know.
	"evidence/redact": {ours: []string{"bpf/policy", "evidence"}, modules: []string{"golang.org/x/sys/unix"}},
	"evidence/witness": {
		ours: []string{"bpf", "bpf/policy", "bpf/probe", "evidence", "evidence/redact", "evidence/score", "runtime/container", "runtime/image"},
	},

	// What wires.
	"agent": {
		ours: []string{
			"bpf", "bpf/kernel", "bpf/policy", "bpf/probe", "evidence", "evidence/nodekey", "evidence/redact", "evidence/sign", "evidence/sign/pkcs11", "evidence/spool", "evidence/witness",
			"runtime/cgroup", "runtime/container", "runtime/events", "runtime/handoff", "runtime/handoff/wire", "runtime/image", "runtime/lifecycle", "runtime/nri", "runtime/oci", "runtime/process", "runtime/sandbox",
		},
		modules: []string{"github.com/cilium/ebpf/ringbuf", "go.yaml.in/yaml/", "golang.org/x/sync/errgroup", "golang.org/x/sys/unix"},
	},
	"agent/pins": { // the kernel holds what it counts with
		ours:    []string{"bpf"},
		modules: []string{"github.com/cilium/ebpf", "golang.org/x/sys/unix"},
	},
	"agent/fdstore": { // the service manager holds what the kernel counts with
		ours:    []string{"bpf"},
		modules: []string{"golang.org/x/sys/unix"},
	},
	"plugin": {
		ours:    []string{"agent", "agent/fdstore", "agent/pins", "bpf/kernel", "bpf/policy", "evidence", "evidence/delivery", "evidence/export", "evidence/nodekey", "evidence/sign", "evidence/spool", "evidence/tlog", "evidence/trust", "evidence/verify", "evidence/witness", "runtime/handoff/wire"},
		modules: []string{"github.com/coreos/go-systemd/v22/activation", "github.com/coreos/go-systemd/v22/daemon", "github.com/pelletier/go-toml/v2", "github.com/spf13/cobra", "golang.org/x/sys/unix"},
	},
}

// file is what the test knows of one source file.
type file struct {
	path    string
	pkg     string // directory below the root
	imports []string
	inits   int
	unsafe  bool // more than sizes
}

const module = "probity/"

// sources parses every Go file outside tests/ that is not a test, whatever its
// build constraints say.
func sources(t *testing.T) []file {
	t.Helper()
	var files []file
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || p == "tests" || p == "bin" || p != "." && strings.HasPrefix(d.Name(), ".")):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go"):
			return nil
		}
		syntax, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		f := file{path: p, pkg: path.Dir(filepath.ToSlash(p))}
		for _, i := range syntax.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, name)
		}
		for _, d := range syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				f.inits++
			}
		}
		ast.Inspect(syntax, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "unsafe" && !slices.Contains([]string{"Sizeof", "Offsetof", "Alignof"}, sel.Sel.Name) {
					f.unsafe = true
				}
			}
			return true
		})
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < len(rules) {
		t.Fatalf("%d files for %d packages: the walk is wrong", len(files), len(rules))
	}
	return files
}

func TestImports(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range sources(t) {
		seen[f.pkg] = true
		r, known := rules[f.pkg]
		if !known {
			t.Errorf("%s: package %s has no rule here", f.path, f.pkg)
			continue
		}
		for _, name := range f.imports {
			if why := r.refuses(name); why != "" {
				t.Errorf("%s imports %s: %s", f.path, name, why)
			}
		}
	}
	for pkg := range rules {
		if !seen[pkg] {
			t.Errorf("there is a rule for %s and no such package", pkg)
		}
	}
}

// refuses returns why a package under r may not import name, or "".
func (r rule) refuses(name string) string {
	first, _, _ := strings.Cut(name, "/")
	switch {
	case strings.HasPrefix(name, module):
		if !slices.Contains(r.ours, strings.TrimPrefix(name, module)) {
			return "the rule does not allow that package of ours"
		}
	case strings.Contains(first, "."):
		if !slices.ContainsFunc(r.modules, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			return "the rule does not allow that module"
		}
	case name == "testing" || name == "plugin":
		return "it is for tests, or for programs that load code"
	case r.std != nil && !slices.Contains(r.std, name):
		return "the rule lists what it may use of the standard library"
	}
	return ""
}

// What is linked into these must never include what is named here, through
// whatever package.
func TestLinked(t *testing.T) {
	edges := map[string][]string{}
	for _, f := range sources(t) {
		edges[f.pkg] = append(edges[f.pkg], f.imports...)
	}
	for root, never := range map[string][]string{
		"evidence":        {module, "golang.org/", "github.com/"},
		"evidence/verify": {"github.com/cilium/ebpf", "os/exec", "net/http"}, // verification is offline and needs no kernel
		"bpf/policy":      {"github.com/cilium/ebpf", "os/exec"},
		"bpf/symbol":      {"golang.org/", "os/exec", "net"}, // its modules are in its rule
		"plugin":          {"github.com/miekg/pkcs11", "C"},  // it is static
		"hook":            {"github.com/", "golang.org/", "fmt", "net/http", "encoding/json", "log"},
	} {
		seen := map[string]bool{}
		var visit func(pkg, through string)
		visit = func(pkg, through string) {
			for _, name := range edges[pkg] {
				if slices.ContainsFunc(never, func(prefix string) bool {
					return strings.HasPrefix(name+"/", prefix+"/") || strings.HasSuffix(prefix, "/") && strings.HasPrefix(name, prefix)
				}) {
					t.Errorf("%s links %s, through%s", root, name, through)
				}
				if next, ours := strings.CutPrefix(name, module); ours && !seen[next] {
					seen[next] = true
					visit(next, through+" "+next)
				}
			}
		}
		visit(root, " "+root)
	}
}

// Who a container is and what is testified of it meet in one place, and in the
// agent that wires it.
func TestIdentityMeetsEvidenceOnce(t *testing.T) {
	both := map[string][2]bool{}
	for _, f := range sources(t) {
		b := both[f.pkg]
		b[0] = b[0] || slices.Contains(f.imports, module+"runtime/container")
		b[1] = b[1] || slices.Contains(f.imports, module+"evidence")
		both[f.pkg] = b
	}
	for pkg, b := range both {
		if b[0] && b[1] && pkg != "evidence/witness" && pkg != "agent" {
			t.Errorf("%s imports both runtime/container and evidence", pkg)
		}
	}
}

// Names that say nothing, code that runs by being linked, and unsafe code that
// hides among safe code.
func TestHouseRules(t *testing.T) {
	for _, f := range sources(t) {
		if slices.Contains([]string{"util", "utils", "common", "helpers", "types", "misc"}, path.Base(f.pkg)) {
			t.Errorf("%s: the package's name says nothing", f.path)
		}
		if f.inits > 0 {
			t.Errorf("%s: func init", f.path)
		}
		if f.unsafe && !strings.HasSuffix(f.path, "_unsafe.go") {
			t.Errorf("%s is unsafe and is not named *_unsafe.go", f.path)
		}
		if slices.Contains(f.imports, "C") {
			t.Errorf("%s uses cgo", f.path)
		}
	}
}

// The test of the test: it must be able to see.
func TestRefuses(t *testing.T) {
	r := rule{ours: []string{"evidence"}, modules: []string{"golang.org/x/sys/unix"}, std: []string{"io"}}
	for name, allowed := range map[string]bool{
		"io": true, "fmt": false, "testing": false,
		"probity/evidence": true, "probity/evidence/sign": false,
		"golang.org/x/sys/unix": true, "golang.org/x/net/http2": false, "github.com/cilium/ebpf": false,
	} {
		if got := r.refuses(name) == ""; got != allowed {
			t.Errorf("refuses(%q): allowed %v, want %v", name, got, allowed)
		}
	}
}
