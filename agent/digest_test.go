package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"probity/bpf/probe"
	"probity/runtime/image"
)

// How long and how much is hashed for one container does not depend on what its
// image has; what is known costs nothing, and what was not hashed says so.
func TestDigestsAreBounded(t *testing.T) {
	for name, c := range map[string]struct {
		files  int
		size   int64
		each   time.Duration
		hashed int
	}{
		"few":         {10, 1 << 20, 10 * time.Millisecond, 10},
		"slow ones":   {100, 1 << 20, 500 * time.Millisecond, 4},
		"large ones":  {100, 1 << 30, time.Millisecond, 2},
		"one forever": {3, 1 << 20, time.Hour, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var sites []probe.Site
				hashed := 0
				add := func(known bool) {
					f := &probe.File{Match: image.Match{Path: "/bin/x"}, Size: c.size, Digest: func() (string, error) { return "sha256:", nil }}
					f.DigestBy = func(until time.Time) (string, error) {
						if known {
							return "sha256:", nil
						}
						if end := time.Now().Add(c.each); end.After(until) {
							time.Sleep(max(0, time.Until(until)))
							return "", fmt.Errorf("hash /bin/x: %w", probe.ErrNotHashed)
						}
						time.Sleep(c.each)
						known, hashed = true, hashed+1
						return "sha256:", nil
					}
					sites = append(sites, probe.Site{Planned: &probe.Planned{File: f}}, probe.Site{Planned: &probe.Planned{File: f}})
				}
				for i := range c.files {
					add(false)
					if i%2 == 0 {
						add(true)
					}
				}
				began := time.Now()
				not := newHashers().digest(sites, began.Add(digestFor), digestBytes)
				if d := time.Since(began); d > digestFor || hashed != c.hashed {
					t.Errorf("%d hashed in %v, want %d", hashed, d, c.hashed)
				}
				for _, err := range not {
					if !errors.Is(err, probe.ErrNotHashed) || !strings.Contains(err.Error(), "/bin/x") {
						t.Error(err)
					}
				}
				if want := c.files - c.hashed; len(not) != want {
					t.Errorf("%d files were not hashed, want %d", len(not), want)
				}
			})
		})
	}
}
