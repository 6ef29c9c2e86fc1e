// Package agent is the wiring of the node service: it applies the runtimes'
// notices to the lifecycle table and carries out the actions that the table
// asks for.
//
// In: notices from the NRI sources and the hook socket. Out: armed containers
// while they live, and evidence in the spool. When Run returns, nothing of
// ours is left in the kernel, every run's last line is written, and the
// sockets are gone.
//
// It trusts the kernel and root. A notice that comes with a barrier is
// answered when the container's sites are proven armed, or when the barrier's
// deadline is over: then the container starts, arming goes on, and the time in
// between is signed as lateAttach. No failure of ours fails a container, unless a
// policy requires probes of it: then it is refused instead.
//
// It is not a control: what it refuses is what runtimes ask it about.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"probity/bpf"
	"probity/bpf/kernel"
	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/nodekey"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/evidence/witness"
	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/handoff"
	"probity/runtime/image"
	"probity/runtime/lifecycle"
)

// Agent is the node service. New opens it, Run runs it, once.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	bootID   string
	kernel   kernel.Facts
	policies atomic.Pointer[policies] // see inForce and put
	first    *policies                // that it began with; never changed
	signer   *sign.Signer             // with mu held once Run runs: see key
	rekeying sync.Mutex               // held while the key is changed, and over what cfg says of it
	spool    *spool.Spool
	witness  *witness.Witness
	clocks   *clocks
	cgroups  *cgroup.FS // nil without a cgroup2 hierarchy
	cgErr    error

	finder  *image.Finder
	layers  *image.Cache
	inspect *probe.Inspector

	keeps   bool   // what an earlier agent left goes on
	notKept string // why nothing does
	// keptHook is the hook socket, as it was kept; New has listen take it over.
	keptHook []*os.File
	// doubtful are cgroups of which it is not signed since when all counters count.
	doubtful map[uint64]bool
	// before is what the lines of runs had before the counters began that are kept for
	// them, by cgroup id. Read at the start, and never changed.
	before  map[uint64]map[uint32]bpf.Counter
	parking atomic.Bool // whether there is something in parked

	obj    *bpf.Objects // nil where the kernel refuses eBPF
	bpfErr error
	engine *probe.Engine
	ring   *ring

	healthTurns, sweepTurns turns

	admin     *handoff.Listener
	hooks     *handoff.Listener
	userHooks *handoff.Listener // nil unless an operator opts in
	users     users

	ahead   chan container.Notice // containers that are only created, to be looked at
	adopt   chan container.Notice // containers that run already, to be armed
	lateArm chan struct{}         // a token while a container that was let go is armed
	catchUp chan struct{}         // told of what runs in containers and may not be armed
	stacks  chan bpf.Event        // stacks of first hits, to be named
	naming  sync.Mutex            // held while one is
	hashers hashers

	told        toldOf
	byNRI       toldByNRI
	gathered    gathered
	identifying chan setWork  // entries of sets whose file is to be identified
	closing     chan struct{} // closed by Close
	closeOnce   sync.Once

	// work are the goroutines of single runs: arming, watching, sealing.
	work sync.WaitGroup

	mu       sync.Mutex
	table    lifecycle.Table
	live     map[string]*live
	parked   map[uint64]*parked // events of runs that are kept and not taken up, by cgroup id
	left     map[string]*left   // runs of an earlier agent that nobody has told of, by run id
	away     spool.Moment       // since when there was no agent; zero if there never was one
	heardOf  map[string]bool    // sources that have told of everything that runs
	held     int                // starts that are held
	armedIn  map[uint64]*live   // by cgroup id, those that are armed
	newCalls map[*live]bool     // those that have used a system call for the first time
	letGo    map[startKey]letGo // what sources told containers whose notice was not looked at
	hooked   map[string]hooked  // containers of CRI-O that were given a hook, by id
	busy     int                // notices being carried out, runs being sealed
	changed  chan struct{}      // closed and replaced when live or busy change
	sources  map[string]string
	seen     Seen
	images   map[imageKey]container.Image // of containers that are only created
	known    map[string]bool              // manifest digests of images that were looked at
	problems []string
	// reloadRefused is why the last reload changed nothing, or "".
	reloadRefused string
	// deafSince is why the kernel's events are not read any more.
	deafSince error
}

// New opens everything that can fail and listens on the sockets. It starts no
// goroutine.
func New(cfg Config) (_ *Agent, err error) {
	cfg, err = cfg.WithDefaults()
	if err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, log: cfg.Log, clocks: newClocks(cgroup.ReadClocks), live: map[string]*live{}, armedIn: map[uint64]*live{}, newCalls: map[*live]bool{}, identifying: make(chan setWork, 1024), closing: make(chan struct{}), changed: make(chan struct{}), users: newUsers(),
		told: toldOf{since: cgroup.BootTime(), at: map[string]int64{}}, sources: map[string]string{}, letGo: map[startKey]letGo{}, hooked: map[string]hooked{}, known: map[string]bool{}, images: map[imageKey]container.Image{}, inspect: &probe.Inspector{}, layers: &image.Cache{},
		ahead: make(chan container.Notice, 64), adopt: make(chan container.Notice, maxAdopting), left: map[string]*left{}, parked: map[uint64]*parked{}, doubtful: map[uint64]bool{}, before: map[uint64]map[uint32]bpf.Counter{}, heardOf: map[string]bool{}, hashers: newHashers(), lateArm: make(chan struct{}, 1), catchUp: make(chan struct{}, 1), stacks: make(chan bpf.Event, 256),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	set, err := policy.Load(cfg.Policies)
	if err != nil {
		return nil, fmt.Errorf("load policies: %w", err)
	}
	if a.bootID, err = cgroup.BootID(); err != nil {
		return nil, err
	}
	if a.kernel, err = kernel.Look(); errors.Is(err, kernel.ErrNotTried) {
		a.problem("what the kernel offers is not known: %v", err)
	} else if err != nil {
		return nil, fmt.Errorf("look at the kernel: %w", err)
	}
	types, source, err := a.kernel.OpenBTF(cfg.BTF)
	if err != nil { // what needs no types works
		a.problem("%v", err)
	}
	a.kernel.BTF, a.cfg.BPF.KernelTypes = source, types
	a.logKernel()
	if a.cgroups, a.cgErr = cgroup.Find(); a.cgErr != nil {
		a.problem("containers cannot be told apart, so none is armed: %v", a.cgErr)
	}
	if err := os.MkdirAll(cfg.State, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	gid, err := groupID(cfg.Group)
	if err != nil {
		return nil, err
	}
	if gid != 0 { // before anything is made in it
		if err := share(cfg.Spool, cfg.State, gid); err != nil {
			return nil, err
		}
	}
	key, _, err := cfg.NodeKey()
	if err != nil {
		return nil, err
	}
	if a.signer, err = nodekey.Open(key); err != nil {
		return nil, fmt.Errorf("open the node's key: %w", err)
	}
	if err := a.signer.Ready(); err != nil {
		a.problem("no evidence can be signed now, it waits in memory: %v", err)
	}
	if a.spool, err = spool.Open(spool.Config{
		Dir: cfg.Spool, State: cfg.State, Node: cfg.Node, BootID: a.bootID, Signer: a.signer,
		Clock: a.clocks.chunk, Agent: "probity " + cfg.Version, Log: a.log.With("in", "spool"),
		Dropped: func(runIDs []string) { a.witness.Restate(runIDs) }, Quota: max(0, cfg.SpoolQuotaMiB) << 20,
		ContainerQuota: max(0, cfg.ContainerQuotaMiB) << 20,
	}); err != nil {
		return nil, fmt.Errorf("open the spool: %w", err)
	}
	if err := sign.Published(cfg.State, a.signer); err != nil { // now nobody can change it any more
		return nil, fmt.Errorf("open the node's key: %w", err)
	}
	if err := a.put(set); err != nil { // the spool has the state directory for itself
		return nil, err
	}
	a.first = a.inForce()
	var _ witness.Thrift = a.spool // what it has little room for is left out
	a.witness = witness.New(witness.Config{Sink: a.spool, BootTime: cgroup.BootTime, Redact: a.redactor, Log: a.log.With("in", "witness")})
	a.finder = image.New(image.Config{ContainerdAddress: cfg.ContainerdAddress, PodmanRoot: cfg.PodmanRoot, DockerRoot: cfg.DockerRoot, Log: a.log.With("in", "image")})
	a.keptHook = a.cfg.Kept[keptHook]
	delete(a.cfg.Kept, keptHook)
	if err := a.openKernel(); err != nil {
		return nil, err
	}
	if err := a.listen(); err != nil {
		return nil, err
	}
	return a, nil
}

// openKernel loads the programs. A kernel that refuses them is no reason to be
// silent: then every site is signed as kernelUnsupported.
func (a *Agent) openKernel() error {
	if err := a.loadKernel(); err != nil {
		a.bpfErr = err
		a.problem("nothing can be armed: %v", a.bpfErr)
		return nil
	}
	r, err := a.obj.Reader()
	if err != nil {
		return err
	}
	a.ring = newRing(r, a.event, a.entry, a.tellGathered, a.undecodable, a.log)
	a.engine = probe.NewEngine(a.obj, probe.Config{
		Kernel: a.kernel, Linger: a.cfg.Linger, BootTime: cgroup.BootTime, Log: a.log.With("in", "probe"),
		Keeper: a.cfg.Keeper, KeptFiles: keptFiles(a.cfg.Kept),
	})
	if !a.keeps { // else it is kept already
		if err := a.keepAll(); err != nil {
			a.problem("what counts is not kept for the next agent: %v", err)
		}
	}
	a.engine.Prepare(setsOf(a.inForce().Set)) // not beside the first starts: they would wait for it
	return nil
}

// loadKernel loads the programs, or goes on with those that were kept.
func (a *Agent) loadKernel() (err error) {
	o := a.cfg.BPF
	if o.Kept = a.takeKept(); o.Kept != nil {
		a.obj, err = bpf.Load(o)
		if err == nil {
			a.keeps = true
			return nil
		}
		a.letGoOfKept(errors.Join(err, o.Kept.Close()))
	}
	o.Kept = nil
	a.obj, err = bpf.Load(o)
	return err
}

func (a *Agent) listen() (err error) {
	open := func(path string, mode os.FileMode) (*handoff.Listener, error) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("make the socket's directory: %w", err)
		}
		return handoff.Listen(path, mode)
	}
	if a.admin, err = open(a.cfg.AdminSocket, 0o600); err != nil {
		return err
	}
	if a.cfg.RootlessHookSocket != "none" {
		if a.userHooks, err = open(a.cfg.RootlessHookSocket, 0o666); err != nil {
			return err
		}
	}
	if a.cfg.HookSocket == "none" {
		for _, f := range a.keptHook {
			f.Close()
		}
		if len(a.keptHook) > 0 { // else hooks would wait there for nobody
			a.cfg.Keeper.Unkeep(keptHook)
		}
		return nil
	}
	if len(a.keptHook) > 0 {
		if a.hooks, err = handoff.Inherit(a.keptHook, a.cfg.HookSocket); err == nil {
			return nil
		}
		a.log.Warn("the hook socket that was kept is not gone on with", "err", err)
		a.cfg.Keeper.Unkeep(keptHook)
	}
	if a.hooks, err = open(a.cfg.HookSocket, 0o600); err != nil || !a.cfg.KeepsSockets {
		return err
	}
	return a.keepHook()
}

// logKernel says once what the evidence of this agent can rest on.
func (a *Agent) logKernel() {
	k := a.kernel
	a.log.Info("kernel", "release", k.Release, "machine", k.Machine, "cgroups", k.Cgroups, "btf", k.BTF.Source, "uretprobeSyscall", k.UretprobeSyscall, "took", time.Duration(k.TookNs))
	for _, t := range k.Types {
		a.log.Info("probe type", "type", t.ProbeType, "supported", t.Supported, "mechanism", t.Mechanism, "countsMisses", t.CountsMisses, "reason", t.Reason)
	}
}

func (a *Agent) problem(format string, args ...any) {
	p := fmt.Sprintf(format, args...)
	a.log.Error(p)
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.problems) < 64 {
		a.problems = append(a.problems, p)
	}
}

// Run serves until ctx ends, then writes each run's last lines, detaches
// everything and closes.
func (a *Agent) Run(ctx context.Context) (err error) {
	// The spool outlives everything that writes to it.
	spoolCtx, stopSpool := context.WithCancel(context.WithoutCancel(ctx))
	spoolDone := make(chan error, 1)
	go func() { spoolDone <- a.spool.Run(spoolCtx) }()
	keeping := make(chan error, 1)
	if a.cfg.Keeper != nil {
		go func() { keeping <- a.cfg.Keeper.Run(spoolCtx) }()
	} else {
		keeping <- nil
	}
	if rerr := a.recover(ctx); rerr != nil {
		a.log.Info("ended before it was ready", "err", rerr)
		stopSpool()
		return errors.Join(<-spoolDone, <-keeping, a.Close())
	}

	g, gctx := errgroup.WithContext(ctx)
	a.serve(g, gctx)
	a.cfg.Ready()
	a.log.Info("ready", "version", a.cfg.Version, "node", a.cfg.Node, "key", a.key().KeyID(), "spool", a.cfg.Spool, "policies", len(a.inForce().Policies))
	err = g.Wait()

	a.stopRuns()
	flushCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	if ferr := a.spool.Flush(flushCtx); ferr != nil {
		err = errors.Join(err, fmt.Errorf("write the last evidence: %w", ferr))
	}
	cancel()
	stopSpool()
	err = errors.Join(err, <-spoolDone, <-keeping)
	a.cfg.Stopping()
	return errors.Join(err, a.Close())
}

// stopRuns ends every run with final: false.
func (a *Agent) stopRuns() {
	a.mu.Lock()
	a.table.Stopping(cgroup.BootTime())
	runs := a.live
	a.live = map[string]*live{}
	for _, x := range a.left { // their gaps stay open
		x.stop()
	}
	clear(a.left)
	a.mu.Unlock()
	for _, l := range runs {
		l.stop()
	}
	a.work.Wait()
	a.users.wait()
	for _, l := range runs {
		a.lastCheck(l)
		a.cfg.Stopping()
	}
	for some := range slices.Chunk(slices.Collect(maps.Values(runs)), 32) {
		a.readOut(some...)
		a.cfg.Stopping()
	}
	a.clocks.look()
	a.tellClocks(true)
	a.witness.Stop(a.cfg.Stopping)
	a.signNode(&evidence.Gap{
		GapID: witness.NewGapID(), Scope: evidence.ScopeNode, Reason: evidence.GapAgentDown, Count: evidence.Loss{N: 1}, Detail: "the agent stopped",
	}, func(g *evidence.Gap, _ evidence.Clock, now evidence.Time) { g.From = now })
	if a.cfg.Keeper != nil {
		return // who holds what counts goes on, or lets it go: nobody tells which
	}
	for _, l := range runs {
		a.disarm(l)
	}
}

// Close lets go of everything that New opened. It is idempotent.
func (a *Agent) Close() error {
	a.closeOnce.Do(func() { close(a.closing) })
	var errs []error
	if a.admin != nil {
		errs = append(errs, a.admin.Close())
	}
	for _, l := range []*handoff.Listener{a.hooks, a.userHooks} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	if a.ring != nil {
		errs = append(errs, a.ring.close())
	}
	if a.engine != nil {
		errs = append(errs, a.engine.Close())
	}
	if a.obj != nil {
		errs = append(errs, a.obj.Close())
	}
	if a.finder != nil {
		errs = append(errs, a.finder.Close())
	}
	if a.spool != nil {
		errs = append(errs, a.spool.Close())
	}
	if a.signer != nil {
		errs = append(errs, a.signer.Close())
	}
	return errors.Join(errs...)
}
