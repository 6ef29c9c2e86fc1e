package spool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/verify"
)

// ErrManyLines is returned by LastLines where there are more lines than it keeps.
var ErrManyLines = errors.New("more sites than are kept in memory")

// LastLines returns the latest line about each site of these runs, but for entries of
// sets. It reads the whole spool as Recover does, from the same chunks. Past MaxCarried
// lines it is ErrManyLines.
func LastLines(ctx context.Context, dir string, keys sign.Keys, runs map[string]bool, progress func()) (map[string][]evidence.SiteLine, error) {
	type key struct {
		run  string
		site evidence.SiteID
	}
	known := map[key]evidence.SiteLine{}
	err := eachChunk(ctx, dir, keys, progress, func(c *verify.Chunk) error {
		for _, l := range c.Lines {
			o, ok := l.(*evidence.Observation)
			if !ok || o.Entry != nil || !runs[o.RunID] {
				continue
			}
			copied, _ := detached(o) // the line is a part of the whole chunk
			known[key{strings.Clone(o.RunID), evidence.SiteOf(copied)}] = evidence.SiteLine{Line: copied, Clock: c.Header.Clock}
			if len(known) > MaxCarried {
				return fmt.Errorf("%w: %d", ErrManyLines, MaxCarried)
			}
		}
		return nil
	}, func(error) {}) // Recover says so
	if err != nil {
		return nil, fmt.Errorf("read the last lines of runs: %w", err)
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
