package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"probity/evidence/nodekey"
	"probity/evidence/sign"
	"probity/runtime/handoff"
)

// RotateRequest asks the agent for another key.
type RotateRequest struct {
	// State is the state directory that is meant: it has to be this agent's.
	State string `json:"state"`
	// To is where the key shall be; empty: where it is.
	To string `json:"to"`
	// Existing takes a key that is on a token already.
	Existing bool `json:"existing"`
}

// Rekeyed is what became of the node's key.
type Rekeyed struct {
	Before string `json:"before"`
	After  string `json:"after"`
	Source string `json:"source"`
	// InUse says that the agent signs with it.
	InUse bool `json:"inUse"`
}

// key is the node's key as it is now.
func (a *Agent) key() *sign.Signer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.signer
}

// rotate makes another key, has the one in use sign that it follows, and goes on with
// it where the configuration need not say first where it is. What fails before the
// new key is in its place leaves the old one in use.
func (a *Agent) rotate(ctx context.Context, req RotateRequest) (Rekeyed, error) {
	a.rekeying.Lock()
	defer a.rekeying.Unlock()
	if !sameFile(req.State, a.cfg.State) {
		return Rekeyed{}, fmt.Errorf("this agent's state directory is %s, not %s", a.cfg.State, req.State)
	}
	cfg, _, err := a.cfg.NodeKey()
	if err != nil {
		return Rekeyed{}, err
	}
	cfg.Existing = req.Existing
	to := cfg.Source
	if req.To != "" {
		if to, err = nodekey.ParseSource(req.To); err != nil {
			return Rekeyed{}, err
		}
	}
	old := a.key()
	next, err := nodekey.Prepare(cfg, to, old)
	if err != nil {
		return Rekeyed{}, err
	}
	done := Rekeyed{Before: old.KeyID(), After: next.Public().KeyID(), Source: to.String()}
	if !next.Now() {
		return done, nil
	}
	if err := old.Rest(); err != nil {
		return done, err
	}
	s, err := next.Take()
	if err != nil {
		return done, err
	}
	done.InUse = true
	a.cfg.Key = to.String()
	a.rekey(ctx, s)
	return done, nil
}

// rekey goes on with a key that is the node's already.
func (a *Agent) rekey(ctx context.Context, next *sign.Signer) {
	a.mu.Lock()
	old := a.signer
	a.signer = next
	a.mu.Unlock()
	if err := a.spool.Rekey(ctx, next); err != nil {
		a.problem("the key was changed: %v", err) // it signs all the same
	}
	a.log.Info("the node's key was changed", "before", old.KeyID(), "after", next.KeyID())
	if err := old.Close(); err != nil {
		a.log.Warn("let go of the key before", "err", err)
	}
}

func sameFile(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	two, err := os.Stat(b)
	return err == nil && os.SameFile(one, two)
}

// connection is the key of a request's connection in its context.
type connection struct{}

// answer says what was done, or why nothing was.
func answer(w http.ResponseWriter, done any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	reply(w, done)
}

// neighbours lets nobody through but processes of the agent's own namespaces: a
// container that mounts /run is root on the socket, and a key that it chose would
// speak for the node.
func (a *Agent) neighbours(do http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := errors.New("nobody knows who asks")
		if c, ok := r.Context().Value(connection{}).(*net.UnixConn); ok {
			err = handoff.Neighbour(c)
		}
		if err != nil {
			a.cfg.Log.Warn("refused to change the key or to reload", "err", err)
			http.Error(w, "nothing is changed for this process: "+err.Error(), http.StatusForbidden)
			return
		}
		do(w, r)
	}
}

// serveChanges adds what changes the agent to what the administration socket does.
func (a *Agent) serveChanges(mux *http.ServeMux) {
	mux.HandleFunc("POST /key/rotate", a.neighbours(func(w http.ResponseWriter, r *http.Request) {
		var req RotateRequest
		d := json.NewDecoder(io.LimitReader(r.Body, 64<<10))
		d.DisallowUnknownFields()
		if err := d.Decode(&req); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		// Not the request's context: who asked may go, the rotation is carried out.
		done, err := a.rotate(context.WithoutCancel(r.Context()), req)
		answer(w, done, err)
	}))
	mux.HandleFunc("POST /reload", a.neighbours(func(w http.ResponseWriter, r *http.Request) {
		done, err := a.reload(context.WithoutCancel(r.Context()))
		answer(w, done, err)
	}))
}

// RotateKey asks the agent for another key.
func RotateKey(ctx context.Context, socket string, req RotateRequest) (Rekeyed, error) {
	var done Rekeyed
	return done, send(ctx, http.MethodPost, socket, "/key/rotate", req, &done)
}
