package symbol

import (
	"os"
	"testing"

	"probity/tests/need"
)

func TestUnwinds(t *testing.T) {
	for name, c := range map[string]struct{ path, want string }{
		"with frame pointers":    {gcc(t, "-O2", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "clone.c"), UnwindsYes},
		"clang's":                {clang(t, "-O0", "-fno-omit-frame-pointer", "inline.c", "inline2.c"), UnwindsYes},
		"without":                {gcc(t, "-O2", "-fomit-frame-pointer", "clone.c"), UnwindsNo},
		"the C library":          {need.CLibrary(t), UnwindsNo},
		"a Go program":           {goProgram(t, nil), UnwindsYes},
		"a stripped Go program":  {goProgram(t, nil, "-ldflags=-s -w"), UnwindsYes},
		"a Go program for arm64": {goProgram(t, []string{"GOARCH=arm64", "CGO_ENABLED=0"}), UnwindsYes},
		"too few functions":      {gcc(t, "-O2", "-nostdlib", "-shared", "-fPIC", "usdt.c"), UnwindsUnknown},
	} {
		fd, err := os.Open(c.path)
		if err != nil {
			t.Fatal(err)
		}
		defer fd.Close()
		info, err := fd.Stat()
		if err != nil {
			t.Fatal(err)
		}
		r, err := newResolver(fd, info.Size(), Limits{}, anything)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // and as remembered
			if got, err := r.Unwinds(); got != c.want || err != nil {
				t.Errorf("%s: %s, %v; want %s", name, got, err, c.want)
			}
			r.p.src.r = failing{}
		}
	}
}
