package runtimes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// disturbances are what happens besides, one after the other. Each ends with
// everything as it was. The last third of the time has none of those that end the
// agent, so that one agent gets old.
var disturbances = []struct {
	name   string
	weight int
	ends   bool // the agent
	do     func(s *soak, t *testing.T, rng *rand.Rand)
}{
	{"agent killed (SIGKILL)", 3, true, func(s *soak, t *testing.T, rng *rand.Rand) { s.bounce(t, rng, s.agent.Kill) }},
	{"agent handed over (SIGUSR2)", 1, true, func(s *soak, t *testing.T, rng *rand.Rand) {
		s.bounce(t, rng, func(t T) { s.agent.End(t, syscall.SIGUSR2) })
	}},
	{"agent stopped (SIGTERM)", 1, true, func(s *soak, t *testing.T, rng *rand.Rand) { s.bounce(t, rng, s.agent.Stop) }},
	{"containerd killed (SIGKILL)", 2, false, func(s *soak, t *testing.T, rng *rand.Rand) {
		s.killed.Add(1)
		s.cri.server.Kill(t)
		linger(rng, time.Second)
		s.cri.server.Start(t)
	}},
	{"podman killed (SIGKILL)", 6, false, func(s *soak, t *testing.T, rng *rand.Rand) { s.killPodman(t) }},
	{"policies reloaded (SIGHUP)", 3, false, func(s *soak, t *testing.T, rng *rand.Rand) { s.reload(t) }},
	{"disk full", 2, false, func(s *soak, t *testing.T, rng *rand.Rand) { s.fill(t, rng) }},
	{"nobody carries evidence away", 2, false, func(s *soak, _ *testing.T, rng *rand.Rand) {
		s.stalled.Store(true)
		linger(rng, 30*time.Second)
		s.stalled.Store(false)
	}},
}

// disturb disturbs until the time is over.
func (s *soak) disturb(t *testing.T) {
	rng := rand.New(rand.NewPCG(*soakSeed, 1<<32))
	total := 0
	for _, d := range disturbances {
		total += d.weight
	}
	steady := s.deadline.Add(-*soakFor / 3)
	for !t.Failed() {
		linger(rng, 15*time.Second)
		now := time.Now()
		if now.After(s.deadline) {
			return
		}
		n := rng.IntN(total)
		for _, d := range disturbances {
			if n -= d.weight; n >= 0 {
				continue
			}
			if d.ends && now.After(steady) {
				break
			}
			d.do(s, t, rng)
			s.mu.Lock()
			s.done[d.name]++
			s.mu.Unlock()
			break
		}
	}
}

// bounce ends the agent, and starts it again after a while.
func (s *soak) bounce(t *testing.T, rng *rand.Rand, end func(T)) {
	s.up.Lock()
	defer s.up.Unlock()
	end(t)
	linger(rng, 3*time.Second)
	s.agent.Start(t)
	s.starts.Add(1)
}

// killPodman kills one of the podman commands that run now, if there is one: those of
// the workers, and what their containers' monitors start.
func (s *soak) killPodman(t *testing.T) {
	for _, pid := range s.podman.Scratch.processes() {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err == nil && strings.TrimSpace(string(comm)) == "podman" {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			return
		}
	}
}

// reload puts a policy in force that was not, or takes it out, after one with a mistake
// that changes nothing.
func (s *soak) reload(t *testing.T) {
	file := "policies.d/90.yaml"
	s.agent.Scratch.write(t, file, soakMistaken)
	if code, out, _ := s.agent.Probity(t, "reload", "--admin-socket", s.agent.AdminSocket); code != 3 {
		t.Errorf("reload a policy with a mistake: exit code %d\n%s", code, out)
	}
	want := 2
	if s.extra = !s.extra; s.extra {
		s.agent.Scratch.write(t, file, soakExtra)
		want++
	} else if err := os.Remove(s.agent.Scratch.Path(file)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.agent.Pid(), syscall.SIGHUP); err != nil {
		t.Errorf("reload: %v", err)
	}
	persist(t, "reload", func(t T) {
		if status, err := s.agent.status(t); err != nil || status.Policies.Policies != want {
			t.Fatalf("%d policies, want %d: %v", status.Policies.Policies, want, err)
		}
	})
}

// fill leaves no room on the spool's disk for a while.
func (s *soak) fill(t *testing.T, rng *rand.Rand) {
	ballast := filepath.Join(filepath.Dir(s.agent.Spool), "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		return // it is full already
	}
	_, err = io.Copy(f, zeros{})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("fill the disk: %v", err)
	}
	f.Close()
	linger(rng, 15*time.Second)
	if err := os.Remove(ballast); err != nil {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// sample is what the agent has at one moment. All are 0 while there is none.
type sample struct {
	Seconds    float64
	Agent      int64 // how many have been started
	Containers int64 // that have ended
	Live       int   // runs
	RSS        int64 // KiB
	FDs        int
	Maps       int // BPF maps that it has open
	Programs   int
	Links      int // BPF links and perf events
	Goroutines int
	Spool      int64 // bytes of published chunks
	Waiting    int64 // bytes in memory
	Disk       int64 // bytes used on the spool's disk
}

const sampleHead = "seconds,agent,containers,live,rssKiB,fds,maps,programs,links,goroutines,spool,waiting,disk"

func (x sample) String() string {
	return fmt.Sprintf("%.1f,%d,%d,%d,%d,%d,%d,%d,%d,%d,%d,%d,%d", x.Seconds, x.Agent, x.Containers, x.Live, x.RSS, x.FDs, x.Maps, x.Programs, x.Links, x.Goroutines, x.Spool, x.Waiting, x.Disk)
}

// sample looks at the agent again and again.
func (s *soak) sample(t *testing.T, stop chan struct{}) {
	every := min(max(*soakFor/1000, time.Second), 10*time.Second)
	tick := time.NewTicker(every)
	defer tick.Stop()
	begin := time.Now()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		var x sample
		if s.up.TryRLock() {
			x, _ = s.look(t) // it may be ending
			s.up.RUnlock()
		}
		x.Seconds = time.Since(begin).Seconds()
		x.Agent, x.Containers = s.starts.Load(), s.ended.Load()
		var fs syscall.Statfs_t
		if err := syscall.Statfs(filepath.Dir(s.agent.Spool), &fs); err == nil {
			x.Disk = int64(fs.Blocks-fs.Bfree) * fs.Bsize
		}
		s.mu.Lock()
		s.samples = append(s.samples, x)
		s.mu.Unlock()
	}
}

// look says what the agent has now.
func (s *soak) look(t *testing.T) (x sample, err error) {
	pid := s.agent.Pid()
	dir := fmt.Sprintf("/proc/%d/", pid)
	list, err := os.ReadDir(dir + "fd")
	if err != nil {
		return x, err
	}
	x.FDs = len(list)
	for _, f := range list {
		switch to, _ := os.Readlink(dir + "fd/" + f.Name()); to {
		case "anon_inode:bpf-map":
			x.Maps++
		case "anon_inode:bpf-prog":
			x.Programs++
		case "anon_inode:bpf_link", "anon_inode:bpf-link", "anon_inode:[perf_event]":
			x.Links++
		}
	}
	b, err := os.ReadFile(dir + "statm")
	if err != nil {
		return x, err
	}
	if f := strings.Fields(string(b)); len(f) > 1 {
		pages, _ := strconv.ParseInt(f[1], 10, 64)
		x.RSS = pages * int64(os.Getpagesize()) >> 10
	}
	status, err := s.agent.status(t)
	if err != nil {
		return x, err
	}
	x.Live, x.Goroutines, x.Spool, x.Waiting = status.Live, status.Goroutines, status.Stored.Bytes, status.Stored.Waiting
	return x, nil
}

// idle waits until every container is sealed, and looks then.
func (s *soak) idle(t *testing.T) sample {
	t.Helper()
	s.up.RLock()
	defer s.up.RUnlock()
	s.agent.WaitIdle(t)
	x, err := s.look(t)
	if err != nil {
		t.Fatalf("look at the agent: %v", err)
	}
	return x
}

// judge holds what happened against what is signed, and what the agent has at the end
// against what it had at the beginning.
func (s *soak) judge(t *testing.T, end sample) {
	code, out, errs := s.agent.Probity(t, "verify", s.agent.Spool, "--key", s.agent.Key())
	if code != 0 {
		t.Errorf("verify the spool: exit code %d\n%s%s", code, out, errs)
	}
	if err := os.CopyFS(filepath.Join(s.archive, "log"), os.DirFS(filepath.Join(s.agent.Spool, "log"))); err != nil {
		t.Error(err)
	}
	code, _, errs = s.agent.Probity(t, "verify", s.archive, "--key", s.agent.Key())
	if code != 0 {
		t.Errorf("verify all that was carried away: exit code %d\n%.4000s", code, errs)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.ledger.account()
	for i, w := range b.Wrong {
		if i == 20 {
			t.Errorf("and %d more", len(b.Wrong)-i)
			break
		}
		t.Error(w)
	}
	const spare = 8
	for _, m := range []struct {
		name       string
		before, at int
	}{
		{"descriptors", s.baseline.FDs, end.FDs}, {"BPF maps", s.baseline.Maps, end.Maps}, {"BPF programs", s.baseline.Programs, end.Programs},
		{"BPF links", s.baseline.Links, end.Links}, {"goroutines", s.baseline.Goroutines, end.Goroutines},
	} {
		if m.at > m.before+spare {
			t.Errorf("%d %s at the end, %d at the beginning", m.at, m.name, m.before)
		}
	}
	result := soakResult{Seed: *soakSeed, For: soakFor.String(), Commit: commit(t), Disturbed: s.done, Agents: s.starts.Load(), Balance: b, Begin: s.baseline, End: end}
	text, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", text)
	if *soakOut == "" {
		return
	}
	csv := []string{sampleHead}
	for _, x := range s.samples {
		csv = append(csv, x.String())
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(*soakOut, "soak.json"), append(text, '\n'), 0o644),
		os.WriteFile(filepath.Join(*soakOut, "samples.csv"), []byte(strings.Join(csv, "\n")+"\n"), 0o644),
	); err != nil {
		t.Error(err)
	}
}

// soakResult is soak.json.
type soakResult struct {
	Commit    string         `json:"commit"`
	Seed      uint64         `json:"seed"`
	For       string         `json:"for"`
	Disturbed map[string]int `json:"disturbed"` // how often, by name
	Agents    int64          `json:"agents"`    // that were started
	Balance   balance        `json:"balance"`
	Begin     sample         `json:"begin"` // idle
	End       sample         `json:"end"`   // idle
}
