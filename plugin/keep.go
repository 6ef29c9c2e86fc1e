package main

import (
	"context"
	"maps"
	"os"
	"os/signal"
	"slices"
	"sync/atomic"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"probity/agent"
	"probity/agent/fdstore"
	"probity/agent/pins"
)

// keepFor has somebody hold what counts while there is no agent, and gives the agent
// what was held: pins, if the configuration has them, and else the service manager.
// What it returns is to be called when the agent has ended: is it over, nothing is left
// in the kernel.
func keepFor(cfg *agent.Config) (ended func(over bool) error, err error) {
	ended = func(bool) error { return nil }
	store := fdstore.FromEnv(cfg.Log.With("in", "fdstore"))
	held := map[string][]*os.File{}
	if store != nil {
		for _, f := range activation.Files(true) {
			held[f.Name()] = append(held[f.Name()], f)
		}
		cfg.Keeper, cfg.Kept, cfg.KeepsSockets = store, held, true
	}
	if cfg.KeepIn == "" {
		return ended, nil
	}
	p, err := pins.Open(cfg.KeepIn, cfg.Log.With("in", "pins"))
	if err != nil {
		return nil, err
	}
	for _, files := range held { // of an agent that was configured otherwise
		for _, f := range files {
			f.Close()
		}
	}
	if len(held) > 0 {
		store.Unkeep(slices.Collect(maps.Keys(held))...)
	}
	cfg.Keeper, cfg.KeepsSockets = p, false
	if cfg.Kept, err = p.Take(); err != nil {
		p.Close()
		return nil, err
	}
	return func(over bool) (err error) {
		defer p.Close()
		if over {
			err = p.Drop()
		}
		return err
	}, nil
}

// replaced ends ctx at SIGUSR2 too, and says whether it came: then another agent is to
// go on with what this one leaves.
func replaced(ctx context.Context) (_ context.Context, came func() bool, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR2)
	var yes atomic.Bool
	go func() {
		select {
		case <-signals:
			yes.Store(true)
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, yes.Load, func() { signal.Stop(signals); cancel() }
}
