package kernel

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"
	"github.com/ulikunitz/xz"
)

// Bounds on what is read: a kernel's types are 3 to 8 MiB. They are for the
// wrong file rather than for the hostile one: who may name it is root.
const (
	maxBTF     = 64 << 20
	maxEntries = 200_000 // of a directory of archives; BTFHub's has 20,000
	maxDepth   = 6
)

// FindBTF reads types from a file, or from the archive of this release in a
// directory.
//
// A file is raw BTF, an ELF file with a .BTF section, or either packed by xz,
// alone or as the first *.btf of a tar. A directory is laid out as BTFHub's
// archive: somewhere below it is RELEASE.btf, RELEASE.btf.xz or
// RELEASE.btf.tar.xz. Where several distributions have a kernel of that name,
// the directories named for this machine, and then for this distribution and
// its version (os-release), decide.
//
// A file whose name is that of another release is refused. The types
// themselves do not tell: they must be a kernel's, for this machine.
func FindBTF(name, release, machine string) (*btf.Spec, BTFSource, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, BTFSource{}, fmt.Errorf("find kernel types: %w", err)
	}
	if st.IsDir() {
		if name, err = inArchive(name, release, machine, distribution()); err != nil {
			return nil, BTFSource{}, err
		}
	}
	source := BTFSource{Source: name}
	switch named := releaseOf(name); named {
	case release:
	case "":
		source.Reason = "its name has no kernel release, so it could not be checked"
	default:
		return nil, BTFSource{}, fmt.Errorf("kernel types %s: they are for the kernel %s, this one is %s", name, named, release)
	}
	spec, err := readBTF(name)
	if err != nil {
		return nil, BTFSource{}, fmt.Errorf("kernel types %s: %w", name, err)
	}
	if err := plausible(spec, machine); err != nil {
		return nil, BTFSource{}, fmt.Errorf("kernel types %s: %w", name, err)
	}
	return spec, source, nil
}

// endings are what a file of types is called after the release.
var endings = []string{".btf.tar.xz", ".btf.xz", ".btf"}

// releaseOf takes the kernel release from a file's name, if it has one.
func releaseOf(name string) string {
	base := filepath.Base(name)
	for _, end := range endings {
		if r, ok := strings.CutSuffix(base, end); ok {
			base = r
			break
		}
	}
	base = strings.TrimPrefix(base, "vmlinux-")
	if _, _, ok := version(base); !ok {
		return ""
	}
	return base
}

// inArchive finds the file of a release below a directory.
func inArchive(dir, release, machine string, distro []string) (string, error) {
	var found []string
	entries := 0
	var walk func(rel string, depth int) error
	walk = func(rel string, depth int) error {
		list, err := os.ReadDir(filepath.Join(dir, rel))
		if err != nil {
			return err
		}
		if entries += len(list); entries > maxEntries {
			return fmt.Errorf("more than %d entries", maxEntries)
		}
		for _, e := range list {
			switch p := path.Join(rel, e.Name()); {
			case e.IsDir() && depth < maxDepth:
				if err := walk(p, depth+1); err != nil {
					return err
				}
			case slices.ContainsFunc(endings, func(end string) bool { return e.Name() == release+end }):
				found = append(found, p)
			}
		}
		return nil
	}
	if err := walk("", 0); err != nil {
		return "", fmt.Errorf("look for kernel types in %s: %w", dir, err)
	}
	// An unpacked file and its archive side by side are the same types.
	slices.SortStableFunc(found, func(a, b string) int { return strings.Count(a, ".xz") - strings.Count(b, ".xz") })
	seen := map[string]bool{}
	found = slices.DeleteFunc(found, func(p string) bool {
		again := seen[path.Dir(p)]
		seen[path.Dir(p)] = true
		return again
	})
	// Of a machine that is named only if it is ours.
	found = slices.DeleteFunc(found, func(p string) bool {
		parts := strings.Split(path.Dir(p), "/")
		return slices.ContainsFunc(parts, func(s string) bool { return other(s, machine) })
	})
	for _, name := range distro {
		if len(found) < 2 {
			break
		}
		var mine []string
		for _, p := range found {
			if slices.Contains(strings.Split(path.Dir(p), "/"), name) {
				mine = append(mine, p)
			}
		}
		if mine != nil {
			found = mine
		}
	}
	switch len(found) {
	case 1:
		return filepath.Join(dir, found[0]), nil
	case 0:
		return "", fmt.Errorf("kernel types in %s: none for the kernel %s on %s", dir, release, machine)
	}
	return "", fmt.Errorf("kernel types in %s: %s are all for the kernel %s; name one of them", dir, strings.Join(found, ", "), release)
}

// other reports whether a directory of archives is for another machine.
func other(dir, machine string) bool {
	if dir == "arm64" {
		dir = "aarch64"
	}
	return dir != machine && (dir == "x86_64" || dir == "aarch64")
}

// distribution names the distribution that runs, as BTFHub's directories do.
func distribution() (names []string) {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return nil
	}
	for _, key := range []string{"ID=", "VERSION_ID="} {
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), key); ok {
				names = append(names, strings.Trim(v, `"'`))
			}
		}
	}
	return names
}

// readBTF reads one file, whatever it is packed in.
func readBTF(name string) (*btf.Spec, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	var head [8]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, errors.New("it is empty")
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(head[:n], []byte("\xfd7zXZ\x00")) {
		return loadBTF(f)
	}
	r, err := xz.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	raw, err := bounded(r)
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	if isBTF(raw) {
		return loadBTF(bytes.NewReader(raw))
	}
	for t := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("there is no file *.btf in the archive")
		}
		if err != nil {
			return nil, fmt.Errorf("read the archive: %w", err)
		}
		if h.Typeflag != tar.TypeReg || !strings.HasSuffix(h.Name, ".btf") {
			continue
		}
		raw, err := bounded(t)
		if err != nil {
			return nil, fmt.Errorf("read %s in the archive: %w", h.Name, err)
		}
		return loadBTF(bytes.NewReader(raw))
	}
}

func bounded(r io.Reader) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxBTF+1))
	if err == nil && len(raw) > maxBTF {
		err = fmt.Errorf("more than %d MiB", maxBTF>>20)
	}
	return raw, err
}

// isBTF knows raw BTF by its magic number, and ELF by its.
func isBTF(b []byte) bool {
	return bytes.HasPrefix(b, []byte{0x9f, 0xeb}) || bytes.HasPrefix(b, []byte("\x7fELF"))
}

// loadBTF reads raw BTF, or the .BTF section of an ELF file, of which it reads
// no more: a vmlinux with all its debug information has a gigabyte.
func loadBTF(r interface {
	io.Reader
	io.ReaderAt
}) (*btf.Spec, error) {
	var head [4]byte
	if _, err := r.ReadAt(head[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var raw []byte
	var err error
	switch {
	case !isBTF(head[:]):
		return nil, errors.New("it is neither BTF nor an ELF file")
	case head[0] == 0x7f:
		file, err := elf.NewFile(r)
		if err != nil {
			return nil, fmt.Errorf("read the ELF file: %w", err)
		}
		s := file.Section(".BTF")
		if s == nil {
			return nil, errors.New("the ELF file has no section .BTF")
		}
		if raw, err = bounded(s.Open()); err != nil {
			return nil, fmt.Errorf("read the section .BTF: %w", err)
		}
	default:
		if raw, err = bounded(r); err != nil {
			return nil, err
		}
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("read the types: %w", err)
	}
	return spec, nil
}
