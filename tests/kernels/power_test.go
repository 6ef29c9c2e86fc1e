package kernels

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/evidence/tlog"
	"probity/evidence/verify"
	"probity/tests/kernels/guest"
	"probity/tests/need"
)

// noRules redacts nothing.
var noRules *redact.Redactor

// told is what the guests have said, and as of which operation of the disk: a line
// is read later than it was said, so what it says holds for every disk from there on.
type told struct {
	mu     sync.Mutex
	disk   *Disk
	key    string // PEM
	claims []claim
	cuts   uint64
	cutOff int // write-ahead files with a torn end, or torn wholly
	failed []string
}

type claim struct {
	after      int    // operations of this boot; 0 of earlier ones
	run        int    // its lines are durable
	checkpoint []byte // somebody has read it
	gap        string // the id of the gap that says that power was lost
}

func (s *told) hear(l guest.Line) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.Kind == guest.Fail {
		s.failed = append(s.failed, l.Text)
	}
	what, rest, _ := strings.Cut(l.Text, " ")
	c := claim{after: s.disk.Done(), run: -1}
	switch {
	case l.Kind != guest.Out:
		return
	case what == "key":
		b, err := base64.StdEncoding.DecodeString(rest)
		if err != nil || s.key != "" && s.key != string(b) {
			s.failed = append(s.failed, "another key: "+rest)
		}
		s.key = string(b)
		return
	case what == "durable":
		c.run, _ = strconv.Atoi(rest)
	case what == "checkpoint":
		c.checkpoint, _ = base64.StdEncoding.DecodeString(rest)
	case what == "lost":
		c.gap = "powerLoss-" + rest
	case what == "log" && strings.Contains(rest, "torn"):
		s.cutOff++
		return
	default:
		return
	}
	s.claims = append(s.claims, c)
}

// next is a run that nothing was written of.
func (s *told) next() int {
	most := 0
	for _, c := range s.claims {
		most = max(most, c.run+1)
	}
	return most + 3 // those that were begun
}

// TestPowerCuts cuts the power of a machine whose disk has a volatile write cache, in
// the middle of everything that the spool does, and starts it again on what the disk
// then holds: a kernel's journal and our recovery after it. At the end, and for some
// more moments and losses of every boot, nothing is missing of what the guest said to
// be durable, and the log has grown out of every checkpoint that the guest could read.
func TestPowerCuts(t *testing.T) {
	cuts, states := 2, 2
	if text := os.Getenv("PROBITY_CRASHES"); text != "" {
		cuts, states = 24, 20
	}
	all, err := Machines()
	if err != nil {
		t.Fatal(err)
	}
	var m Machine
	for _, one := range all {
		if one.Name == defaultMachine {
			m = one
		}
	}
	m.With = Bare
	cache := need.Kernel(t, m.QEMU(), m.Name)
	for _, program := range []string{"mke2fs", "e2fsck", "debugfs"} {
		need.Command(t, program)
	}
	writer := filepath.Join(t.TempDir(), "power")
	if err := goRun(m.Arch, "build", "-trimpath", "-ldflags=-s -w", "-o", writer, "./tests/kernels/power"); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 5))
	t.Logf("seed %d", seed)

	work := t.TempDir()
	image := filepath.Join(work, "image")
	tool(t, "truncate", "-s", "48M", image)
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", image)
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	said, checked, ops := &told{}, 0, 0
	for cut := range cuts {
		when := 1 + random.IntN(600)
		if cut%4 == 3 {
			when = 1 + random.IntN(60) // while it recovers
		}
		said.disk = NewDisk(content, when)
		if err := bootUntilCut(t, m, cache, work, writer, said); err != nil {
			t.Fatalf("cut %d, after %d operations: %v", cut, when, err)
		}
		ops += when
		said.cuts++
		for i := range states + 1 {
			at, keep := when, []float64{0, 1, 0.5, 0.9, 0.1}[random.IntN(5)]
			if i > 0 && random.IntN(3) > 0 {
				at = 1 + random.IntN(when)
			}
			disk := said.disk.After(at, keep, random)
			if !t.Run(fmt.Sprintf("%d/%d", cut, i), func(t *testing.T) { onDisk(t, disk, said, at) }) {
				t.Fatalf("cut %d after %d operations, each sector kept with %v", cut, at, keep)
			}
			checked++
			if i == 0 {
				content = disk
			}
		}
		// The next boot has all that this one said, from its first operation on.
		for i := range said.claims {
			said.claims[i].after = 0
		}
	}
	durable, gaps := 0, 0
	for _, c := range said.claims {
		if c.run >= 0 {
			durable++
		}
		if c.gap != "" {
			gaps++
		}
	}
	t.Logf("%d cuts in %d operations of the disk, %d disks checked; %d runs were durable, %d powerLoss gaps signed, %d write-ahead files with a torn end", cuts, ops, checked, durable, gaps, said.cutOff)
	if cuts > 10 && (durable < 2*cuts || gaps < cuts/3) {
		t.Error("too little was cut to say anything")
	}
}

// bootUntilCut runs the machine until its power is gone.
func bootUntilCut(t *testing.T, m Machine, cache, work, writer string, said *told) error {
	t.Helper()
	m.Disk = filepath.Join(work, "disk.sock")
	l, err := net.Listen("unix", m.Disk)
	if err != nil {
		return err
	}
	defer l.Close()
	from := filepath.Join(work, "from")
	if err := os.WriteFile(from, []byte(strconv.Itoa(said.next())), 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		err := said.disk.Serve(l)
		cancel() // SIGKILL
		served <- err
	}()
	b, err := m.Run(ctx, cache, scratch, guest.Job{}, Load{"/init": writer, "/from": from}, io.Discard, said.hear)
	l.Close()
	disk := <-served
	select {
	case <-said.disk.Gone():
	default:
		return errors.Join(errors.New("the machine ended before its power did"), err, disk)
	}
	if len(said.failed) > 0 || b == nil || b.Release == "" {
		return fmt.Errorf("it says %q (%w)", said.failed, err)
	}
	t.Logf("up after %.1f s, without power after %.1f s", b.Up.Seconds(), b.Took.Seconds())
	return disk
}

// onDisk recovers what a disk holds, on a copy, and wants all that was said up to
// an operation.
func onDisk(t *testing.T, disk []byte, said *told, at int) {
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	// The journal first; then nothing may be wrong with the file system itself.
	tool(t, "e2fsck", "-p", "-E", "journal_only", image)
	tool(t, "e2fsck", "-fn", image)
	tool(t, "debugfs", "-R", "rdump /probity "+dir, image)
	state := filepath.Join(dir, "probity")
	var promised []claim
	for _, c := range said.claims {
		if c.after <= at {
			promised = append(promised, c)
		}
	}
	signer, err := sign.LoadOrCreate(makeDir(t, state))
	if err != nil {
		t.Fatal(err)
	}
	if len(promised) > 0 && said.key != string(signer.Public().PEM()) {
		t.Fatal("the node's key is lost")
	}
	clock := func() evidence.Clock {
		return evidence.Clock{BootNs: evidence.Uint64(time.Hour), Wall: evidence.TimeOf(time.Now())}
	}
	sp, err := spool.Open(spool.Config{
		Dir: filepath.Join(state, "spool"), State: state, Node: "node-a", BootID: "of the host", Agent: "probity test", Signer: signer, Clock: clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	since, lost := sp.PowerLoss()
	if !lost && len(promised) > 0 {
		t.Error("power was lost, and nobody says so")
	}
	if lost {
		err = sp.Append("", func(c evidence.Clock) []redact.Line {
			to := c.Wall
			if to.Std().Before(since.Std()) { // an emulated machine's clock may be ahead
				to = since
			}
			return noRules.Lines(&evidence.Gap{GapID: "powerLoss", Scope: evidence.ScopeNode, Reason: evidence.GapPowerLoss, From: since, To: to, Count: evidence.Loss{Unknowable: true}})
		})
	}
	if err := errors.Join(err, sp.Flush(t.Context()), sp.Close()); err != nil {
		t.Fatal(err)
	}
	if !lost && len(promised) == 0 {
		return // it was cut before it had begun
	}
	rep, err := verify.Path(t.Context(), []string{filepath.Join(state, "spool")}, signer.Public(), verify.Options{})
	if err != nil || !rep.Sound() {
		t.Fatalf("%v %v", rep.Findings, err)
	}
	rows, gaps := map[string]int{}, map[string]bool{}
	for _, r := range rep.Rows {
		rows[r.RunID]++
	}
	for _, g := range rep.Gaps {
		if g.Reason != evidence.GapPowerLoss {
			t.Errorf("a gap: %+v", g)
		}
		gaps[g.GapID] = true
	}
	if rep.Lines != len(rep.Rows)+len(rep.Gaps) {
		t.Errorf("%d lines about %d sites and %d gaps: something is said twice", rep.Lines, len(rep.Rows), len(rep.Gaps))
	}
	for _, h := range rep.Holes {
		if h.To-h.From >= 64*(said.cuts+1) { // each loss of power, and ours here, may take 64 numbers
			t.Errorf("a hole: %+v", h)
		}
	}
	if len(rep.Logs) != 1 || !gaps["powerLoss"] {
		t.Errorf("%d logs, gaps %v", len(rep.Logs), gaps)
	}
	r := tlog.NewReader(os.DirFS(filepath.Join(state, "spool", spool.LogDir)))
	note, err := r.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	now, err := tlog.Claim(note)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range promised {
		switch {
		case c.checkpoint != nil:
			was, err := tlog.Claim(c.checkpoint)
			if err != nil {
				t.Fatal(err)
			}
			if at, err := r.At(now, was.Size); err != nil || at != was {
				t.Errorf("the guest could read %s; the log has %s (%v)", c.checkpoint, at.Text(), err)
			}
		case c.gap != "":
			if !gaps[c.gap] {
				t.Errorf("no gap %s, but %v", c.gap, gaps)
			}
		case rows[guest.PowerRun(c.run)] != guest.PowerLines(c.run):
			t.Errorf("run %d has %d lines, and %d were durable", c.run, rows[guest.PowerRun(c.run)], guest.PowerLines(c.run))
		}
	}
}

func makeDir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	var ended *exec.ExitError
	if name == "e2fsck" && args[0] == "-p" && errors.As(err, &ended) && ended.ExitCode() == 1 {
		return // the journal was replayed
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
