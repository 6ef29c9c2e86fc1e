package spool

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/verify"
)

// ErrManyLines is returned by LastLines where there are more lines than it keeps.
var ErrManyLines = errors.New("more sites than are kept in memory")

// LastLines returns the latest line about each site of these runs, but for entries of
// sets. It reads the whole spool, from sound chunks only. Past MaxCarried lines it is
// ErrManyLines.
func LastLines(dir string, keys sign.Keys, runs map[string]bool) (map[string][]evidence.SiteLine, error) {
	var names []string
	err := filepath.WalkDir(filepath.Join(dir, ReadyDir), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			names = append(names, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a shipper removed it
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the last lines of runs: %w", err)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(filepath.Base(a), filepath.Base(b)) })
	type key struct {
		run  string
		site evidence.SiteID
	}
	known := map[key]evidence.SiteLine{}
	for _, path := range names {
		data, err := readBounded(path)
		if err != nil {
			continue // Recover has said so, or it is gone
		}
		c, _ := verify.Bytes(path, data, keys)
		if c == nil || filepath.Base(path) != c.Header.Chunk+".ndjson" {
			continue
		}
		for _, l := range c.Lines {
			o, ok := l.(*evidence.Observation)
			if !ok || o.Entry != nil || !runs[o.RunID] {
				continue
			}
			copied, _ := detached(o) // the line is a part of the whole chunk
			known[key{strings.Clone(o.RunID), evidence.SiteOf(copied)}] = evidence.SiteLine{Line: copied, Clock: c.Header.Clock}
			if len(known) > MaxCarried {
				return nil, fmt.Errorf("read the last lines of runs: %w: %d", ErrManyLines, MaxCarried)
			}
		}
	}
	out := map[string][]evidence.SiteLine{}
	for k, l := range known {
		out[k.run] = append(out[k.run], l)
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b evidence.SiteLine) int { return evidence.SiteOf(a.Line).Compare(evidence.SiteOf(b.Line)) })
	}
	return out, nil
}
