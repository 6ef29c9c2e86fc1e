package demangle

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"probity/tests/need"
)

// Every word that the library's sources could print must be among words: one that is not
// would be looked for in mangled names, in vain. What is only said to
// programmers is left out.
func TestWords(t *testing.T) {
	word := regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_]{2,}`)
	need.Command(t, "go")
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/ianlancetaylor/demangle").Output()
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, path := range []string{"ast.go", "demangle.go", "rust.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(strings.TrimSpace(string(dir)), path), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ImportSpec:
				return false
			case *ast.FuncDecl:
				return n.Name.Name != "goString" && n.Name.Name != "GoString" && n.Name.Name != "globalCDtorName"
			case *ast.CallExpr:
				var name string
				switch f := n.Fun.(type) {
				case *ast.Ident:
					name = f.Name
				case *ast.SelectorExpr:
					name = f.Sel.Name
				}
				switch name {
				case "fail", "failEarlier", "panic", "New", "Errorf", "HasPrefix", "LastIndex", "TrimPrefix":
					return false
				}
			case *ast.BasicLit:
				if n.Kind != token.STRING {
					return true
				}
				s, err := strconv.Unquote(n.Value)
				if err != nil {
					t.Fatal(err)
				}
				for _, w := range word.FindAllString(s, -1) {
					count++
					if !Own(w) {
						t.Errorf("%s: %q is not among the words", path, w)
					}
				}
			}
			return true
		})
	}
	if count < 200 {
		t.Errorf("%d words seen: the walk is wrong", count)
	}
	if Own("push_back") || OwnPart("push_back") || !OwnPart("tring") || !strings.Contains(words, "std") {
		t.Error("Own is wrong")
	}
}
