package agent

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"probity/bpf/probe"
)

// Bounds on hashing the files of one container, which wants its first lines: how
// many and how large they are its image chooses.
const (
	digestFor   = 2 * time.Second
	digestBytes = 2 << 30
)

// hashers holds a token for each file that is being hashed, of all containers.
type hashers chan struct{}

// newHashers leaves the other processors to the starts.
func newHashers() hashers { return make(hashers, max(1, runtime.NumCPU()/2)) }

// digest hashes the files of sites, as far as the bounds go. It returns those that
// were not hashed by then, and why.
func (h hashers) digest(sites []probe.Site, until time.Time, most int64) (not map[*probe.File]error) {
	not = map[*probe.File]error{}
	seen := map[*probe.File]bool{}
	late := time.NewTimer(time.Until(until))
	defer late.Stop()
	for i := range sites {
		f := sites[i].File
		if f == nil || f.DigestBy == nil || seen[f] {
			continue
		}
		seen[f] = true
		if _, err := f.DigestBy(time.Unix(1, 0)); !errors.Is(err, probe.ErrNotHashed) {
			continue // known, and costs nothing
		}
		err := fmt.Errorf("hash %s: %w", f.Match.Path, probe.ErrNotHashed)
		if most -= f.Size; most >= 0 {
			select {
			case h <- struct{}{}:
				_, err = f.DigestBy(until)
				<-h
			case <-late.C:
				late.Reset(0) // for the others too
			}
		}
		if errors.Is(err, probe.ErrNotHashed) {
			not[f] = err
		}
	}
	return not
}
