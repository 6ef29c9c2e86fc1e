package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// MaxFiles is the largest number of files in a directory of policies.
const MaxFiles = 1024

// Source is one file's name and content.
type Source struct {
	Name string
	Data []byte
}

// NewSet parses files and joins them, in the order of their names. The error is
// of type [Diagnostics] and lists the problems of all files; besides those of
// [Parse], a policy's name or a probe's id that an earlier file has too.
func NewSet(files []Source) (*Set, error) {
	files = slices.Clone(files)
	slices.SortStableFunc(files, func(a, b Source) int { return strings.Compare(a.Name, b.Name) })
	set, sum := &Set{}, sha256.New()
	var problems Diagnostics
	names, ids, rules := map[string]string{}, map[string]string{}, map[string]string{} // to the file that has it
	for _, f := range files {
		fmt.Fprintf(sum, "%s\x00%d\x00", filepath.Base(f.Name), len(f.Data))
		sum.Write(f.Data)
		p, where, err := parse(f.Name, f.Data)
		var ds Diagnostics
		if errors.As(err, &ds) {
			problems = append(problems, ds...)
			continue
		}
		r := &report{file: f.Name}
		taken(r, names, "name", p.Name, where.name)
		for i, probe := range p.Probes {
			taken(r, ids, "id", probe.ID, where.ids[i])
		}
		for i, rule := range p.Redact {
			taken(r, rules, "the rule's id", rule.ID, where.rules[i])
		}
		if errors.As(r.err(), &ds) {
			problems = append(problems, ds...)
		}
		set.Policies = append(set.Policies, p)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	set.Digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	return set, nil
}

// taken reports a value that an earlier file has.
func taken(r *report, have map[string]string, what, value string, where position) {
	if file, ok := have[value]; ok {
		r.add(where, "%s %q is taken by %s", what, value, file)
		return
	}
	have[value] = r.file
}

// Load reads the policies of a directory: its files *.yaml but those whose name
// begins with a dot, in the order of their names; Policy.File is dir joined
// with the name, the digest is over names without dir. An empty directory is an empty
// set, a missing one is an error. The error is of type [Diagnostics] unless a
// file could not be read.
func Load(dir string) (*Set, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, fmt.Errorf("read policies: %w", err)
	}
	var files []Source
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || filepath.Ext(e.Name()) != ".yaml" {
			continue
		}
		if len(files) == MaxFiles {
			return nil, fmt.Errorf("read policies: more than %d files in %s", MaxFiles, dir)
		}
		name := filepath.Join(dir, e.Name())
		data, err := ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read policies: %w", err)
		}
		files = append(files, Source{name, data})
	}
	return NewSet(files)
}

// ReadFile reads a regular file (or a link to one) up to just past MaxFile,
// which Parse then refuses with its place.
func ReadFile(name string) ([]byte, error) {
	// Without O_NONBLOCK a FIFO would hold the agent's start for ever.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only: nothing can be lost
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", name)
	}
	return io.ReadAll(io.LimitReader(f, MaxFile+1))
}
