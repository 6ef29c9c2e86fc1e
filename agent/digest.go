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

// digestAfterHit is how much longer the files are hashed once a hit waits for those
// lines: it is to be on disk within a second, half of which is the spool's.
const digestAfterHit = 300 * time.Millisecond

// firstDigests hashes the files of a run before its first lines are written: those
// that it would take too long for have lines without a digest, and why. Where
// nothing was hit that can wait. Who is hashing goes on, for the next run of the
// image.
func (a *Agent) firstDigests(l *live, sites []probe.Site) (not map[*probe.File]error) {
	done := make(chan map[*probe.File]error, 1)
	a.work.Go(func() { done <- a.hashers.digest(sites, time.Now().Add(digestFor), digestBytes) })
	select {
	case not = <-done:
		return not
	case <-a.witness.News(l.id):
	}
	late := time.NewTimer(digestAfterHit)
	defer late.Stop()
	select {
	case not = <-done:
		return not
	case <-late.C:
		return a.hashers.digest(sites, time.Now(), digestBytes) // what is known by now
	}
}

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
