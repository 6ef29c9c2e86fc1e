package verify_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"probity/evidence/verify"
)

// tree are the files and directories of a spool, by their paths below it.
func (n *theNode) tree(t testing.TB) (files, dirs []string) {
	t.Helper()
	must(t, fs.WalkDir(os.DirFS(n.dir), ".", func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil || p == ".":
		case e.IsDir():
			dirs = append(dirs, p)
		default:
			files = append(files, p)
		}
		return err
	}))
	return files, dirs
}

// Whatever somebody without a key does to the files of a spool, both verifiers judge
// it alike.
func TestSpoolFilesInPython(t *testing.T) {
	n := newTheNode(t)
	n.acknowledged(t)
	dir := t.TempDir()
	pub := filepath.Join(dir, "node.pub")
	must(t, os.WriteFile(pub, n.signer.Public().PEM(), 0o600))
	var args [][]string
	var names []string
	var ours []bool
	try := func(name string, do func(at func(string) string) error) {
		t.Helper()
		root := filepath.Join(dir, fmt.Sprint(len(args)))
		must(t, os.CopyFS(root, os.DirFS(n.dir)))
		must(t, do(func(p string) string { return filepath.Join(root, p) }))
		rep, err := check(t, n.signer.Public(), root)
		names, ours = append(names, fmt.Sprintf("%s (%v, %v)", name, rep.Findings, err)), append(ours, verify.ExitCode(rep, err) == 0)
		args = append(args, []string{pub, root})
	}
	files, dirs := n.tree(t)
	try("as it is", func(func(string) string) error { return nil })
	for i, f := range files {
		if strings.HasPrefix(f, "log/tile/") && !strings.HasPrefix(f, "log/tile/entries/") {
			continue // verify.py computes them
		}
		old := filepath.Join(n.old, f)
		try(f+" removed", func(at func(string) string) error { return os.Remove(at(f)) })
		if _, err := os.Stat(old); err == nil {
			try(f+" of before", func(at func(string) string) error { return os.WriteFile(at(f), read(t, old), 0o600) })
		}
		try(f+" empty", func(at func(string) string) error { return os.Truncate(at(f), 0) })
		try(f+" cut", func(at func(string) string) error { return os.Truncate(at(f), int64(len(read(t, at(f)))/2)) })
		try(f+" is the next one", func(at func(string) string) error {
			return os.WriteFile(at(f), read(t, at(files[(i+1)%len(files)])), 0o600)
		})
		try(f+" under another name", func(at func(string) string) error { return os.Rename(at(f), at(f+"x")) })
		try(f+" under two names", func(at func(string) string) error { return os.Link(at(f), at(f+"x")) })
		try(f+" under two more names", func(at func(string) string) error {
			return os.Link(at(f), filepath.Join(filepath.Dir(at(f)), "2"+filepath.Base(f)))
		})
		try(f+" in tmp", func(at func(string) string) error { return os.Rename(at(f), at("tmp/"+filepath.Base(f))) })
		try(f+" a link", func(at func(string) string) error {
			must(t, os.Rename(at(f), at("elsewhere")))
			return os.Symlink(at("elsewhere"), at(f))
		})
		try(f+" a directory", func(at func(string) string) error {
			must(t, os.Remove(at(f)))
			return os.Mkdir(at(f), 0o700)
		})
	}
	for _, d := range dirs {
		if strings.HasPrefix(d, "log/tile/") && !strings.HasPrefix(d, "log/tile/entries/") {
			continue
		}
		try(d+" removed", func(at func(string) string) error { return os.RemoveAll(at(d)) })
		try(d+" a file", func(at func(string) string) error {
			must(t, os.RemoveAll(at(d)))
			return os.WriteFile(at(d), nil, 0o600)
		})
		try(d+" a link", func(at func(string) string) error {
			must(t, os.Rename(at(d), at("elsewhere")))
			return os.Symlink(at("elsewhere"), at(d))
		})
		try(d+" a link within", func(at func(string) string) error {
			must(t, os.Rename(at(d), at("elsewhere")))
			to, err := filepath.Rel(filepath.Dir(d), "elsewhere")
			must(t, err)
			return os.Symlink(to, at(d))
		})
		if _, err := os.Stat(filepath.Join(n.old, d)); err == nil {
			try(d+" of before", func(at func(string) string) error {
				must(t, os.RemoveAll(at(d)))
				return os.CopyFS(at(d), os.DirFS(filepath.Join(n.old, d)))
			})
		}
	}
	for _, more := range []string{"retired", "retired/x", "ack/x", "ack/x.json", "ready/x", "log/x", "x"} {
		try("one more file, "+more, func(at func(string) string) error {
			must(t, os.MkdirAll(filepath.Dir(at(more)), 0o700))
			return os.WriteFile(at(more), nil, 0o600)
		})
		try("one more directory, "+more, func(at func(string) string) error { return os.MkdirAll(at(more), 0o700) })
	}
	put := func(to, from string, keep bool) func(func(string) string) error {
		return func(at func(string) string) error {
			must(t, os.MkdirAll(filepath.Dir(at(to)), 0o700))
			must(t, os.CopyFS(at(to), os.DirFS(from)))
			if !keep {
				return os.RemoveAll(at("log"))
			}
			return nil
		}
	}
	try("the log put aside", put("retired/x", filepath.Join(n.dir, "log"), false))
	try("the log there twice", put("retired/x", filepath.Join(n.dir, "log"), true))
	try("the log of before put aside", put("retired/x", filepath.Join(n.old, "log"), true))
	try("the log of before put aside alone", put("retired/x", filepath.Join(n.old, "log"), false))
	agree(t, args, names, ours, 2)
}
