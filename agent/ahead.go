package agent

import (
	"context"
	"errors"
	"time"

	"probity/bpf/probe"
	"probity/runtime/container"
	"probity/runtime/image"
)

// aheadFor bounds the work for one container that is only created.
const aheadFor = 30 * time.Second

// lookAhead does before starts what they would otherwise wait for: it indexes
// the layers of containers that are only created, and reads the files that
// probes look at. One after the other: it must not take the processors from
// the starts. What it finds is only remembered by the caches; nothing is armed
// by it.
func (a *Agent) lookAhead(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-a.ahead:
			if err := a.lookAt(ctx, n); err != nil && !errors.Is(err, image.ErrNotAhead) {
				a.log.Debug("not looked at ahead of its start", "container", n.Identity.ID, "err", err)
			}
		}
	}
}

func (a *Agent) lookAt(ctx context.Context, n container.Notice) error {
	ctx, cancel := context.WithTimeout(ctx, aheadFor)
	defer cancel()
	n.Identity.Image = a.identifyAhead(ctx, n)
	probes := a.inForce().Select(n.Identity)
	if len(probes) == 0 || a.knows(n.Identity.Image.Digest) {
		return nil
	}
	rootfs, err := a.finder.Ahead(ctx, n, n.Identity.Image)
	if err != nil {
		return err
	}
	view, err := a.layers.View(ctx, rootfs)
	if err != nil {
		return err
	}
	until := time.Now().Add(aheadFor)
	plan := probe.MakePlan(probes, probe.Tree{View: view, Inspector: a.inspect, Runs: command(n), Until: until, ReadUntil: until}, probe.On(a.kernel))
	for _, s := range plan.Sites {
		if s.File != nil && s.File.DigestBy != nil && ctx.Err() == nil {
			_, _ = s.File.DigestBy(until) // remembered, if there was time for it
		}
	}
	a.learn(n.Identity.Image.Digest)
	return ctx.Err()
}

// identifyAhead finds a created container's image, which never changes, and
// keeps it for its start.
func (a *Agent) identifyAhead(ctx context.Context, n container.Notice) container.Image {
	img := a.finder.Identify(ctx, n)
	if img.Digest == "" {
		return img // it may be found at the start
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.images) >= maxKnown { // of containers that never started
		clear(a.images)
	}
	a.images[imageKey{n.Source, n.Identity.ID}] = img
	return img
}

// identify completes who a container is by its runtime's store: by Finder.Identify,
// without asking again what is known, and by what docker calls it.
func (a *Agent) identify(ctx context.Context, n *container.Notice) {
	if n.Identity.Runtime == container.Docker && n.Identity.Name == "" {
		name, labels := a.finder.Named(n.Identity.ID)
		n.Identity.Name = container.Text(name)
		labels, cut := container.Fit(labels)
		if labels != nil {
			n.Identity.Labels = labels
		}
		n.Identity.Cut = n.Identity.Cut || cut > 0
	}
	n.Identity.Image = a.imageOf(ctx, *n)
}

func (a *Agent) imageOf(ctx context.Context, n container.Notice) container.Image {
	key := imageKey{n.Source, n.Identity.ID}
	a.mu.Lock()
	img, ok := a.images[key]
	delete(a.images, key)
	a.mu.Unlock()
	if ok {
		return img
	}
	return a.finder.Identify(ctx, n)
}

// imageKey is a container as one source names it: another has others with its id.
type imageKey struct{ source, id string }

// maxKnown bounds the images that are remembered as looked at.
const maxKnown = 1024

// knows reports whether an image was looked at before: doing so again beside a
// start would only take processor time from it. The caches may have let go of
// it meanwhile; then the start does the work.
func (a *Agent) knows(digest string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return digest != "" && a.known[digest]
}

func (a *Agent) learn(digest string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.known) >= maxKnown {
		clear(a.known)
	}
	a.known[digest] = true
}

// Seen counts containers whose start was announced.
type Seen struct {
	Selected   uint64 `json:"selected"`   // by some policy
	Unselected uint64 `json:"unselected"` // by none: no record of them is kept
	// Last is the last one that no policy selects, as the policies saw it.
	Last string `json:"lastUnselected,omitempty"`
}

// count counts a start, and says so if a policy could not be asked: one that
// selects by image knows no container whose image has no name.
func (a *Agent) count(n container.Notice, selected bool) {
	if selected {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.seen.Selected++
		return
	}
	id := n.Identity
	a.log.Debug("no policy selects it", "container", id.ID, "name", id.Name, "runtime", id.Runtime, "image", id.Image.Name)
	a.mu.Lock()
	a.seen.Unselected++
	a.seen.Last = string(id.Runtime) + " container " + id.Name + " of image " + id.Image.Name
	a.mu.Unlock()
	if id.Image.Name != "" || id.User != 0 { // a user may leave it out
		return
	}
	for _, p := range a.inForce().Policies {
		if len(p.Select.Images) > 0 {
			a.problem("container %s is not selected: policies select by image, and the name of its image is not known: %s", id.ID, id.Image.DigestReason)
			return
		}
	}
}
