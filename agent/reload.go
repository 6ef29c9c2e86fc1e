package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"probity/bpf/policy"
	"probity/evidence/nodekey"
)

// Reloaded says what is in force after a reload.
type Reloaded struct {
	Policies Repoliced `json:"policies"`
	Key      Rekeyed   `json:"key"`
}

// reload takes the policies and the key that the configuration names now; of all else in
// it nothing is taken: that needs a restart. It takes both or, after an error, nothing.
func (a *Agent) reload(ctx context.Context) (done Reloaded, err error) {
	a.rekeying.Lock()
	defer a.rekeying.Unlock()
	done, err = a.reread(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reloadRefused = ""; err != nil {
		err = fmt.Errorf("reload: %w", err)
		a.reloadRefused = err.Error()
		a.log.Error("nothing was reloaded", "err", err)
	}
	return done, err
}

func (a *Agent) reread(ctx context.Context) (done Reloaded, err error) {
	if a.cfg.Reread == nil {
		return done, errors.New("this agent has no configuration to read again")
	}
	read, err := a.cfg.Reread()
	if err != nil {
		return done, err
	}
	if read, err = read.WithDefaults(); err != nil {
		return done, err
	}
	if !sameFile(read.State, a.cfg.State) {
		return done, fmt.Errorf("another state directory (%s) needs a restart", read.State)
	}
	if !sameFile(read.Policies, a.cfg.Policies) {
		return done, fmt.Errorf("another directory of policies (%s) needs a restart", read.Policies)
	}
	set, err := policy.Load(a.cfg.Policies)
	if err != nil {
		return done, fmt.Errorf("the policies stay as they were: %w", err)
	}
	cfg, _, err := read.NodeKey()
	if err != nil {
		return done, err
	}
	old, was := a.key(), a.inForce()
	s, err := nodekey.Follow(cfg, old)
	if err != nil {
		return done, fmt.Errorf("the key stays %s: %w", old.KeyID(), err)
	}
	if set.Digest != was.Digest {
		if err := a.put(set); err != nil {
			if s != nil {
				err = errors.Join(err, s.Close())
			}
			return done, fmt.Errorf("the policies stay as they were: %w", err)
		}
		a.log.Info("policies were reloaded", "before", was.Digest, "after", set.Digest, "policies", len(set.Policies))
	}
	done.Policies = Repoliced{Before: was.Digest, After: set.Digest, Policies: len(set.Policies)}
	done.Key = Rekeyed{Before: old.KeyID(), After: old.KeyID(), Source: cfg.Source.String(), InUse: true}
	a.cfg.Key, a.cfg.KeyHelper, a.cfg.KeyHelperUser = read.Key, read.KeyHelper, read.KeyHelperUser
	if s != nil {
		done.Key.After = s.KeyID()
		a.rekey(ctx, s)
	}
	return done, nil
}

// reloading reloads each time that somebody says so.
func (a *Agent) reloading(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.cfg.Hangup:
			_, _ = a.reload(ctx) // the status says why not
		}
	}
}

// Reload asks the agent to take the policies and the key that its configuration names now.
func Reload(ctx context.Context, socket string) (Reloaded, error) {
	var done Reloaded
	return done, send(ctx, http.MethodPost, socket, "/reload", nil, &done)
}
