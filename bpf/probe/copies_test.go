package probe

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/evidence"
)

// An image with a program twice, under more names by hard and symbolic links:
// each file counts for itself, whatever it is run as. A hard link is one more
// path of the same file, which says the same; a symbolic one is none.
func TestCopiesAndLinks(t *testing.T) {
	for name, target := range map[string]policy.Probe{
		"by path":   {File: "/{bin,opt}/**"},
		"by soname": {Library: "libcopies.so.1"},
	} {
		t.Run(name, func(t *testing.T) {
			lower := newLower(t)
			tool := filepath.Join(lower, "bin/tool")
			compiled(t, lower, "tool", "__attribute__((noinline)) int called(int n) { __asm__ volatile(\"\"); return n; }\nint main(int argc, char **argv) { return called(argc) == 9; }\n",
				"gcc", "-O2", "-pie", "-fPIE", "-Wl,-soname,libcopies.so.1")
			must(t, os.Mkdir(filepath.Join(lower, "opt"), 0o755))
			copies := map[bool]int{true: 4, false: 3}[target.Library == ""] // the box has a program of its own
			data, err := os.ReadFile(tool)
			must(t, err)
			must(t, os.WriteFile(filepath.Join(lower, "opt/copy"), data, 0o755))
			must(t, os.Link(tool, filepath.Join(lower, "opt/hard")))
			must(t, os.Symlink("../bin/tool", filepath.Join(lower, "opt/symbolic")))
			must(t, os.Symlink("copy", filepath.Join(lower, "opt/to-the-copy")))
			b := newBox(t, lower)
			e := newEngine(t, bpf.Options{}, Config{})
			target.ID, target.Type, target.Symbols = "p", policy.Uprobe, []string{"called"}
			h, err := e.Arm(t.Context(), b.target(), MakePlan([]policy.Probe{target}, merged(t, rootfs(b), &Inspector{}), Host()))
			must(t, err)
			defer h.Close()
			for _, run := range []struct {
				path  string
				times int
			}{{"bin/tool", 1}, {"opt/hard", 2}, {"opt/symbolic", 4}, {"opt/copy", 8}, {"opt/to-the-copy", 16}} {
				for range run.times {
					b.runAt(run.path, nil)
				}
			}
			got := map[string]uint64{}
			for _, s := range h.Sites {
				if !s.Armed {
					if target.Library != "" || s.Reason != evidence.SymbolNotFound { // of the box's own program
						t.Errorf("%s: %s %s", s.File.Match.Path, s.Reason, s.Detail)
					}
					continue
				}
				c, err := h.Counter(s)
				must(t, err)
				if got[s.File.Match.Path] = c.Count; s.Copies != copies {
					t.Errorf("%s: %d copies, want %d", s.File.Match.Path, s.Copies, copies)
				}
			}
			if want := map[string]uint64{"/bin/tool": 1 + 2 + 4, "/opt/hard": 1 + 2 + 4, "/opt/copy": 8 + 16}; !maps.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}
