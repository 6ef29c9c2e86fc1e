package runtimes

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"probity/runtime/cgroup"
	"probity/tests/need"
)

var (
	soakFor  = flag.Duration("soak", 12*time.Second, "how long TestSoak starts containers")
	soakSeed = flag.Uint64("soak-seed", 1, "what the soak's choices are made from; when each thing happens is the machine's")
	soakOut  = flag.String("soak-out", "", "directory that gets the soak's soak.json and samples.csv")
)

// TestSoak starts containers of three runtimes all the time, and does to the agent, the
// runtimes and the spool what happens to them in a long life: see disturbances. Then every
// container is accounted for: see ledger. docs/soak.md is made of two hours of it.
func TestSoak(t *testing.T) {
	s := startSoak(t)
	s.baseline = s.idle(t)
	s.deadline = time.Now().Add(*soakFor)
	var all sync.WaitGroup
	for i, r := range []soakable{s.podman, s.cri, s.cri, s.oci} {
		all.Go(func() { s.work(t, r, i) })
	}
	all.Go(func() { s.disturb(t) })
	stop := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { s.sample(t, stop) })
	watching.Go(func() { s.carry(t, stop) })
	all.Wait()
	end := s.idle(t)
	s.agent.Stop(t)
	close(stop)
	watching.Wait()
	s.judge(t, end)
}

// soak is one agent, three runtimes, and what they are known to have done.
type soak struct {
	agent    *Agent
	podman   soakPodman
	cri      soakCRI
	oci      soakOCI
	archive  string
	deadline time.Time
	baseline sample

	// up is held by who needs the agent to be there, and for as long as it is not.
	up      sync.RWMutex
	starts  atomic.Int64 // of the agent
	stalled atomic.Bool  // nobody carries evidence away
	ended   atomic.Int64 // containers
	killed  atomic.Int64 // how often containerd was

	extra bool // that policy is in force; disturb's own

	mu      sync.Mutex
	ledger  ledger
	done    map[string]int // disturbances, by name
	samples []sample
}

const soakPolicy = `
name: soak
select:
  images: ["localhost/target*"]
probes:
  - {id: fn, type: uprobe, file: /bin/target, symbols: [hello, goodbye, never]}
  - {id: exec, type: tracepoint, event: "sched:sched_process_exec"}
`

const soakBundles = `
name: bundles
select:
  runtimes: [runc]
probes:
  - {id: bundle-fn, type: uprobe, file: /bin/target, symbols: [hello, goodbye, never]}
`

// What a reload puts in and takes out.
const (
	soakExtra = `
name: extra
select:
  images: ["localhost/target*"]
probes:
  - {id: extra, type: uprobe, file: /bin/target, symbols: [hello, goodbye]}
`
	soakMistaken = "name: extra\nprobes:\n  - {id: extra, type: uprobe, file: /bin/target, symbol: hello}\n"
)

// The spool's file system is a small one of its own, so that it can be full; the
// quota has what was carried away removed from it.
const (
	soakDisk   = "size=32m"
	soakConfig = "spoolQuotaMiB: 16\n"
)

func startSoak(t *testing.T) *soak {
	need.Root(t)
	need.BPF(t)
	need.Cgroup2(t)
	s := &soak{
		podman: soakPodman{podmanSuite{podmanDriver{NewPodman(t)}}},
		cri:    soakCRI{containerdSuite(t).(criSuite)},
		oci:    soakOCI{runcSuite(t).(ociSuite)},
		done:   map[string]int{},
		ledger: newLedger(),
	}
	scratch := NewScratch(t)
	s.archive = scratch.mkdir(t, "archive")
	spool := scratch.mkdir(t, "disk")
	if err := syscall.Mount("tmpfs", spool, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, soakDisk+",mode=0755"); err != nil {
		t.Fatalf("mount the spool's disk: %v", err)
	}
	o := AgentOptions{Policies: []string{soakPolicy, soakBundles}, Config: soakConfig, Store: true}
	o = o.For(s.cri.driver.(containerdDriver).Containerd)
	o.PodmanRoot, o.States = s.podman.Root, []string{s.podman.States, s.oci.States}
	s.agent = OpenAgent(t, scratch, Programs(t), filepath.Join(spool, "spool"), o)
	s.starts.Store(1)
	for _, r := range []soakable{s.podman, s.cri, s.oci} {
		r.attach(t, s.agent)
		r.image(t)
	}
	return s
}

// way is how a container lives.
type way struct {
	name  string
	waits bool // until it is let go or killed
	end   func(t T, c life, pid int)
	code  int
}

var ways = []way{
	{"exit", false, nil, 0},
	{"crash", false, nil, 139},
	{"again", false, nil, 0},
	{"let go", true, func(t T, c life, pid int) { letGo(t, pid) }, 0},
	{"session", true, func(t T, c life, pid int) { letGo(t, pid) }, 0},
	{"stop", true, func(t T, c life, _ int) { c.stop(t) }, 137},
	{"kill", true, func(t T, c life, pid int) { _ = syscall.Kill(pid, syscall.SIGKILL) }, 137},
}

// work starts one container after the other until the time is over.
func (s *soak) work(t *testing.T, r soakable, worker int) {
	rng := rand.New(rand.NewPCG(*soakSeed, uint64(worker)))
	for n := 0; time.Now().Before(s.deadline) && !t.Failed(); n++ {
		w := ways[rng.IntN(len(ways))]
		s.one(t, r, fmt.Sprintf("soak-%d-%d", worker, n), w, rng)
		s.ended.Add(1)
		linger(rng, time.Second)
	}
}

// linger lets a random time pass: the pace of things, that nothing depends on.
func linger(rng *rand.Rand, most time.Duration) { time.Sleep(rand.N(most)) }

// one is a container's whole life. What fails because a runtime was killed in the
// middle is tried again where that can be; else it is not known what the container did.
func (s *soak) one(t *testing.T, r soakable, name string, w way, rng *rand.Rand) {
	hello, goodbye, code := rng.IntN(4), rng.IntN(3), w.code
	var orders []string
	calls := map[string]uint64{"hello": uint64(hello)}
	for range hello {
		orders = append(orders, "hello")
	}
	switch {
	case w.waits:
		orders = append(orders, "mark", "wait")
		for range goodbye {
			orders = append(orders, "goodbye")
		}
		if code == 0 {
			calls["goodbye"] = uint64(goodbye)
		}
	case w.name == "crash":
		orders = append(orders, "crash")
	default:
		code = rng.IntN(120)
		orders = append(orders, "exit", strconv.Itoa(code))
	}
	c, st := s.start(t, r, name, calls, func(t T) life {
		c, err := r.try(t, name, manner{}, orders...)
		if err != nil {
			t.Fatalf("%v", err)
		}
		return c
	})
	if c == nil {
		return
	}
	s.live(t, c, st, w, code, rng)
	if w.name == "again" {
		before := c
		if c, st = s.start(t, r, name, calls, func(t T) life { return before.again(t) }); c == nil {
			return
		}
		s.live(t, c, st, w, code, rng)
	}
	persist(t, "remove "+name, c.remove)
}

// start starts a container, and has the ledger know of it. Where the runtime did not
// say that it was started, it is removed, whatever it was, and nil is returned.
func (s *soak) start(t *testing.T, r soakable, name string, calls map[string]uint64, do func(T) life) (c life, st *stint) {
	st = &stint{runtime: r.name(), name: name, calls: calls, before: cgroup.BootTime(), sure: true, killed: s.killed.Load()}
	err := attempt(t, func(t T) { c = do(t) })
	st.after = cgroup.BootTime()
	if err == nil {
		st.id = c.id()
		s.write(func(l *ledger) { l.put(st) })
		return c, st
	}
	t.Logf("%s: %.300v", name, err)
	var ids []string
	persist(t, "forget "+name, func(t T) { ids = append(ids, r.forget(t, name)...) })
	st.sure, st.end = false, cgroup.BootTime()
	slices.Sort(ids)
	s.write(func(l *ledger) {
		l.refused++
		for _, id := range slices.Compact(ids) {
			one := *st
			one.id = id
			l.put(&one)
		}
	})
	return nil, st
}

// live goes through the rest of what a container does.
func (s *soak) live(t *testing.T, c life, st *stint, w way, code int, rng *rand.Rand) {
	if w.waits {
		pid := 0
		persist(t, "the pid of "+st.name, func(t T) { pid = c.pid(t) })
		persist(t, st.name+" waits", func(t T) {
			if _, err := os.Stat(inRoot(pid, "mark")); err != nil {
				t.Fatalf("%v", err)
			}
		})
		most := 4 * time.Second
		if rng.IntN(20) == 0 { // to live through several things
			most = 90 * time.Second
		}
		linger(rng, max(time.Second, min(most, time.Until(s.deadline))))
		if w.name == "session" {
			if err := attempt(t, func(t T) { c.exec(t, "/bin/target", "hello") }); err == nil {
				s.write(func(*ledger) { st.calls["hello"]++ })
			} else {
				t.Logf("a session in %s: %.300v", st.name, err)
				s.write(func(*ledger) { st.sure = false })
			}
		}
		persist(t, w.name+" "+st.name, func(t T) { w.end(t, c, pid) })
	}
	got := 0
	persist(t, "the end of "+st.name, func(t T) { got = c.wait(t) })
	s.write(func(l *ledger) { st.end = cgroup.BootTime() })
	// The end of a container while containerd is being killed is not known to it: 255.
	if lost := st.runtime == "containerd" && got == 255 && s.killed.Load() != st.killed; got != code && !lost {
		t.Errorf("%s (%s, %s): exit code %d, want %d", st.name, st.runtime, w.name, got, code)
	}
}

func inRoot(pid int, file string) string { return fmt.Sprintf("/proc/%d/root/%s", pid, file) }

// letGo has a container that waits go on.
func letGo(t T, pid int) {
	if err := os.WriteFile(inRoot(pid, "go"), nil, 0o644); err != nil {
		t.Fatalf("%v", err)
	}
}

func (s *soak) write(do func(*ledger)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do(&s.ledger)
}
