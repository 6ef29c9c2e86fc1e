package spool_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"probity/evidence/sign"
	"probity/evidence/spool"
)

// crashes is how many a test makes: few by itself, and as many as
// $PROBITY_CRASHES says in `make test-full`.
func crashes(t testing.TB, few int) int {
	t.Helper()
	text := os.Getenv("PROBITY_CRASHES")
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	must(t, err)
	return n
}

// memoryDir is a directory where an fsync costs little: what survives a kill is the
// kernel's memory everywhere.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "probity-spool")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// keepForEver is the child of TestKillAnywhere: it does all that a spool does, for
// one run after another, and says of which runs the lines are durable.
func keepForEver(dir string, from int) {
	s, err := sign.LoadOrCreate(dir)
	if err != nil {
		panic(err)
	}
	sp, err := spool.Open(spool.Config{
		Dir: filepath.Join(dir, "spool"), State: filepath.Join(dir, "state"), Node: "node-a", BootID: bootID, Signer: s, Clock: bootClock(),
		Heartbeat: 7 * time.Millisecond,
	})
	if err != nil {
		panic(err)
	}
	go func() { panic(sp.Run(context.Background())) }()
	for i := from; ; i++ {
		err := sp.Append(runID(i), sites(i, 1+i%7, 100+i%5*700))
		switch {
		case err != nil:
		case i%5 == 0:
			err = sp.Flush(context.Background())
		case i%5 == 1:
			sp.Seal() // Run publishes it while the next one is appended
			err = sp.Sync()
		default:
			err = sp.Sync()
		}
		if err != nil {
			panic(err)
		}
		fmt.Println(i)
	}
}

// kill -9 at any moment, also while what the last one left is recovered: nothing of
// what was said to be durable is lost, nothing is said twice, no number is missing,
// and the log goes on as one.
func TestKillAnywhere(t *testing.T) {
	const inOneSpool = 25 // a spool that grows takes longer to verify
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	kills, recovered := crashes(t, 25), 0
	for kills > 0 {
		n := nodeIn(t, memoryDir(t))
		durable, next := map[string]bool{}, 1
		for range min(kills, inOneSpool) {
			kills--
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "SPOOL_TEST_KEEP="+n.dir, "SPOOL_TEST_FROM="+strconv.Itoa(next))
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			must(t, errors.Join(err, cmd.Start()))
			lines := bufio.NewScanner(out)
			early := random.IntN(4) == 0 // before it has said anything: it recovers
			said := early || lines.Scan()
			if !said {
				t.Fatal("the child ended")
			}
			within := 30 * time.Millisecond
			if early {
				within *= 3 // it has to start
			}
			kill := time.AfterFunc(time.Duration(random.Int64N(int64(within))), func() { cmd.Process.Kill() })
			for ok := !early || lines.Scan(); ok; ok = lines.Scan() {
				i, err := strconv.Atoi(lines.Text())
				must(t, err)
				durable[runID(i)] = true
				next = i + 1
			}
			if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
				t.Fatalf("the child was not killed: %v", err)
			}
			kill.Stop()
			next += 2 // it may have begun with the next one
			if left, err := os.ReadDir(filepath.Join(n.cfg.State, "wal")); err == nil {
				recovered += len(left)
			}
			if random.IntN(3) > 0 {
				continue // the next child recovers
			}
			after := nodeIn(t, n.dir)
			s := after.open(t)
			must(t, s.Close())
			after.intact(t, durable)
		}
		after := nodeIn(t, n.dir)
		must(t, after.open(t).Close())
		after.intact(t, durable)
		if t.Failed() {
			return
		}
	}
	if recovered == 0 {
		t.Error("no child left a write-ahead file")
	}
	t.Logf("%d write-ahead files were left", recovered)
}

// intact wants everything that was said to be durable, once, and nothing unsound.
func (n *node) intact(t testing.TB, durable map[string]bool) {
	t.Helper()
	if len(durable) == 0 && len(n.ready(t)) == 0 {
		return // killed before it had begun
	}
	rep := n.verify(t)
	rows := map[string]int{}
	for _, r := range rep.Rows {
		rows[r.RunID]++
	}
	for id := range durable {
		i, err := strconv.ParseInt(strings.TrimLeft(id, "0"), 16, 64)
		must(t, err)
		if want := 1 + int(i)%7; rows[id] != want {
			t.Errorf("run %d has %d sites, and %d were durable", i, rows[id], want)
		}
	}
	if lines := len(rep.Rows); rep.Lines != lines {
		t.Errorf("%d lines about %d sites: something is said twice", rep.Lines, lines)
	}
	if len(rep.Holes) != 0 || len(rep.Gaps) != 0 {
		t.Errorf("holes %v, gaps %+v", rep.Holes, rep.Gaps)
	}
	if len(rep.Logs) != 1 {
		t.Errorf("%d logs", len(rep.Logs))
	}
	n.logged(t, true)
}
