package probity_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tests parses every file of tests, and the packages below tests/, which are
// tests' own.
func tests(t *testing.T, visit func(path string, set *token.FileSet, syntax *ast.File)) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || p == "bin" || p != "." && strings.HasPrefix(d.Name(), ".")):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(p, "_test.go") && (!strings.HasPrefix(p, "tests/") || !strings.HasSuffix(p, ".go")):
			return nil
		}
		set := token.NewFileSet()
		syntax, err := parser.ParseFile(set, p, nil, parser.SkipObjectResolution)
		if err == nil {
			visit(p, set, syntax)
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 100 {
		t.Fatalf("only %d files of tests were found", n)
	}
}

// A test is skipped by package need only, which names what is missing: what
// must be there is then required by that name (PROBITY_REQUIRE), and nothing is
// green because it was left out. So is what asks whether the run is a short one.
func TestSkipsAreNamed(t *testing.T) {
	named := 0
	tests(t, func(path string, set *token.FileSet, syntax *ast.File) {
		ast.Inspect(syntax, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			of, _ := f.X.(*ast.Ident)
			switch {
			case path == "tests/need/need.go" && f.Sel.Name == "Skipf":
				named++
			case slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, f.Sel.Name), f.Sel.Name == "Short" && of != nil && of.Name == "testing":
				t.Errorf("%s: %s: say what is needed by package tests/need", set.Position(call.Pos()), f.Sel.Name)
			}
			return true
		})
	})
	if named != 1 {
		t.Errorf("package need skips tests in %d places, in one every skip is named", named)
	}
}
