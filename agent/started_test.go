package agent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Who was let go has the processors for its own start, and no longer than that: not
// when it has ended, and not when the agent stops.
func TestOwnStart(t *testing.T) {
	const soon = ownStart / 10
	for name, c := range map[string]struct {
		happens func(stop context.CancelFunc, ended chan<- end)
		after   time.Duration
		seen    bool
	}{
		"nothing":         {func(context.CancelFunc, chan<- end) {}, ownStart, false},
		"it ends":         {func(_ context.CancelFunc, ended chan<- end) { ended <- end{seen: true, at: 7} }, soon, true},
		"the agent stops": {func(stop context.CancelFunc, _ chan<- end) { stop() }, soon, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				ended := make(chan end, 1)
				began := time.Now()
				time.AfterFunc(soon, func() { c.happens(stop, ended) })
				e := waitStarted(ctx, ended)
				if took := time.Since(began); took != c.after || e.seen != c.seen {
					t.Errorf("returned after %v with %+v, want %v and %v", took, e, c.after, c.seen)
				}
				synctest.Wait()
			})
		})
	}
}
