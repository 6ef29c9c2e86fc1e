//go:build unix

package nodekey_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/nodekey"
	"probity/evidence/redact"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/evidence/verify"
	"probity/tests/need"
	"probity/tests/tokens"
)

// These make this test binary a node, with what they hold as its directory.
const (
	liveChild = "NODEKEY_TEST_LIVE"
	loadChild = "NODEKEY_TEST_LOAD"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(liveChild); dir != "" {
		rotateWhileLive(dir)
		os.Exit(0)
	}
	if dir := os.Getenv(loadChild); dir != "" {
		rotateUnderLoad(dir)
		os.Exit(3) // it goes on until it is killed
	}
	os.Exit(m.Run())
}

// noRules redacts nothing.
var noRules *redact.Redactor

// ended is a context for what is tried once.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// live is a node whose agent runs.
type live struct {
	cfg    nodekey.Config
	signer *sign.Signer
	spool  *spool.Spool
}

func openLive(dir string) (l live, err error) {
	l.cfg = nodekey.Config{State: filepath.Join(dir, "state"), Source: nodekey.Source{Kind: nodekey.File}}
	if err := os.MkdirAll(l.cfg.State, 0o700); err != nil {
		return l, err
	}
	err = l.open(filepath.Join(dir, "spool"))
	return l, err
}

// open starts with what the configuration says.
func (l *live) open(dir string) (err error) {
	if l.signer, err = nodekey.Open(l.cfg); err != nil {
		return err
	}
	clock := func() evidence.Clock { return evidence.Clock{BootNs: 1, Wall: evidence.TimeOf(time.Now())} }
	l.spool, err = spool.Open(spool.Config{Dir: dir, State: l.cfg.State, Node: "node-a", BootID: "boot", Agent: "probity test", Signer: l.signer, Clock: clock})
	return err
}

func (l *live) append(n int) error {
	return l.spool.Append("", func(c evidence.Clock) []redact.Line {
		return noRules.Lines(&evidence.Gap{GapID: fmt.Sprintf("%032x", n), Scope: evidence.ScopeNode, Reason: evidence.GapRuntimeDisconnected, From: c.Wall, To: c.Wall, Count: evidence.Loss{N: 1}})
	})
}

// rotate does what the agent does.
func (l *live) rotate() error {
	next, err := nodekey.Prepare(l.cfg, l.cfg.Source, l.signer)
	if err != nil {
		return err
	}
	s, err := next.Take()
	if err != nil {
		return err
	}
	l.signer = s
	return l.spool.Rekey(context.Background(), s)
}

// rotateWhileLive is the child that is killed: it says which lines are durable.
func rotateWhileLive(dir string) {
	runtime.LockOSThread() // strace counts the system calls of each thread
	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	l, err := openLive(dir)
	check(err)
	say := func(n int) { fmt.Println("durable", n) }
	check(l.append(1))
	check(l.spool.Flush(ended()))
	say(1)
	check(l.append(2))
	check(l.spool.Sync())
	say(2)
	fmt.Println("rotate")
	check(l.rotate())
	fmt.Println("key", l.signer.KeyID())
	check(l.append(3))
	check(l.spool.Sync())
	say(3)
	check(l.spool.Flush(ended()))
	check(l.spool.Close())
}

// changes are the system calls that change something, and those that make it durable.
const changes = "openat,write,fsync,fdatasync,renameat,renameat2,linkat,unlinkat,mkdirat"

// kill -9 before any of the system calls of a rotation beside a spool: the next start
// has one key or the other, nothing that was durable is lost or unsigned, there is one
// log, which the first key proves, and another rotation works.
func TestLiveRotationIsKilled(t *testing.T) {
	need.Command(t, "strace")
	whole := filepath.Join(t.TempDir(), "strace")
	run := func(dir, out string, inject ...string) (said []string) {
		t.Helper()
		args := append([]string{"-f", "-o", out, "-e", "trace=" + changes}, inject...)
		cmd := exec.Command("strace", append(args, os.Args[0])...)
		cmd.Env = append(os.Environ(), liveChild+"="+dir)
		b, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && (len(inject) == 0 || !errors.As(err, &exit)) {
			t.Fatalf("%v\n%s", err, b)
		}
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
	prepared := func() (dir string, key *sign.PublicKey) {
		t.Helper()
		dir = t.TempDir()
		l, err := openLive(dir)
		if err == nil {
			err = errors.Join(l.spool.Close(), os.RemoveAll(filepath.Join(dir, "spool")))
		}
		if err != nil {
			t.Fatal(err)
		}
		return dir, l.signer.Public()
	}
	dir, _ := prepared()
	run(dir, whole)
	b, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	// Calls of the thread that says "rotate", from there on, by number among all of it.
	main := ""
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, `"rotate\n"`) {
			main, _, _ = strings.Cut(line, " ")
		}
	}
	type call struct {
		name string
		n    int // of these: strace counts each system call by itself
	}
	var calls []call
	counts := map[string]int{}
	rotating := false
	for line := range strings.Lines(string(b)) {
		rest, mine := strings.CutPrefix(line, main+" ")
		name, _, isCall := strings.Cut(strings.TrimSpace(rest), "(")
		if !mine || !isCall || strings.Contains(line, "resumed>") {
			continue
		}
		counts[name]++
		if rotating {
			calls = append(calls, call{name, counts[name]})
		}
		if strings.Contains(line, `"rotate\n"`) {
			rotating = true
		}
		if strings.Contains(line, `"durable 3\n"`) {
			break
		}
	}
	if len(calls) < 20 {
		t.Fatalf("the rotation is %d calls", len(calls))
	}
	step := 9
	if os.Getenv("PROBITY_CRASHES") != "" {
		step = 1
	}
	kills, keys := 0, map[bool]int{}
	for at := time.Now().Nanosecond() % step; at < len(calls); at += step {
		dir, trusted := prepared()
		said := run(dir, "/dev/null", "-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", calls[at].name, calls[at].n))
		if slices.Contains(said, "durable 3") {
			t.Fatalf("it was not killed at call %d, %+v", at, calls[at])
		}
		kills++
		l, err := openLive(dir)
		if err != nil {
			t.Fatalf("killed at call %d: %v", at, err)
		}
		rotated := l.signer.KeyID() != trusted.KeyID()
		keys[rotated]++
		for _, word := range said {
			if id, ok := strings.CutPrefix(word, "key "); ok && id != l.signer.KeyID() {
				t.Errorf("killed at call %d: %s was in use, and now it is %s", at, id, l.signer.KeyID())
			}
		}
		if rotated != (len(l.signer.Successions()) == 1) {
			t.Errorf("killed at call %d: %d successions lead to %s", at, len(l.signer.Successions()), l.signer.KeyID())
		}
		if b, err := os.ReadFile(filepath.Join(l.cfg.State, sign.PublicFile)); err != nil || string(b) != string(l.signer.Public().PEM()) {
			t.Errorf("killed at call %d: node.pub is not the key in use (%v)", at, err)
		}
		if err := errors.Join(l.append(4), l.rotate(), l.append(5), l.spool.Close()); err != nil {
			t.Fatalf("killed at call %d: %v", at, err)
		}
		rep, err := verify.Path(t.Context(), []string{filepath.Join(dir, "spool")}, trusted, verify.Options{})
		if err != nil || !rep.Sound() || len(rep.Logs) != 1 {
			t.Fatalf("killed at call %d: %d logs, %v, %v", at, len(rep.Logs), rep.Findings, err)
		}
		var has []string
		for _, g := range rep.Gaps {
			has = append(has, g.GapID)
		}
		for _, word := range append(said, "durable 4", "durable 5") {
			if text, ok := strings.CutPrefix(word, "durable "); ok {
				n, _ := strconv.Atoi(text)
				if !slices.Contains(has, fmt.Sprintf("%032x", n)) {
					t.Errorf("killed at call %d: line %d was durable, and is not in the spool", at, n)
				}
			}
		}
		if n := len(has); n != len(slices.Compact(slices.Sorted(slices.Values(has)))) {
			t.Errorf("killed at call %d: something is said twice: %v", at, has)
		}
	}
	if keys[true] == 0 || keys[false] == 0 {
		t.Errorf("with the old key and the new one: %v", keys)
	}
	t.Logf("%d kills in %d calls, started again with the old key %d times, with the new one %d", kills, len(calls), keys[false], keys[true])
}

// loaded is a node with a configuration: a file that names a credential, or nothing
// where the key is a file.
type loaded struct {
	live
	conf string
}

func openLoaded(dir string) (l loaded, err error) {
	l.conf = filepath.Join(dir, "configuration")
	l.cfg = nodekey.Config{State: filepath.Join(dir, "state"), Source: nodekey.Source{Kind: nodekey.File}}
	if b, err := os.ReadFile(l.conf); err == nil && len(b) > 0 {
		l.cfg.Source = nodekey.Source{Kind: nodekey.Credential, Name: string(b)}
	}
	err = l.open(filepath.Join(dir, "spool"))
	return l, err
}

// toFile goes back to a file. That of a key before is in the way until somebody takes
// it away.
func (l *loaded) toFile() error {
	if err := os.Remove(filepath.Join(l.cfg.State, sign.KeyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return l.follow(nodekey.Source{Kind: nodekey.File})
}

// follow is a rotation to another kind of place, after which the configuration is
// changed and the agent reloads it.
func (l *loaded) follow(to nodekey.Source) error {
	if _, err := nodekey.Prepare(l.cfg, to, l.signer); err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(l.conf+".new", []byte(to.Name), 0o600), os.Rename(l.conf+".new", l.conf)); err != nil {
		return err
	}
	l.cfg.Source = to
	s, err := nodekey.Follow(l.cfg, l.signer)
	if err != nil {
		return err
	}
	l.signer = s
	return l.spool.Rekey(context.Background(), s)
}

// rotateUnderLoad is a node that observes all the time, from several places, and whose
// key changes again and again: to another file, as probity key rotate has it, and to a
// credential and back, as SIGHUP has it.
func rotateUnderLoad(dir string) {
	check := func(err error) {
		if err != nil {
			fmt.Println("failed", err)
			os.Exit(4)
		}
	}
	from, err := strconv.Atoi(os.Getenv("NODEKEY_TEST_FROM"))
	check(err)
	l, err := openLoaded(dir)
	check(err)
	fmt.Println("key", l.signer.KeyID())
	go func() { check(l.spool.Run(context.Background())) }()
	const writers = 4
	for w := range writers {
		go func() {
			for n := from + w; ; n += writers {
				check(l.append(n))
				if (n-from)/writers%10 == 9 {
					check(l.spool.Sync())
					fmt.Println("durable", n)
				}
			}
		}()
	}
	for n := 0; ; n++ {
		switch {
		case l.cfg.Source.Kind == nodekey.Credential:
			check(l.toFile())
		case n%3 == 1:
			name := fmt.Sprintf("%d-%d", from, n)
			_, err := sign.CreateFile(os.Getenv("CREDENTIALS_DIRECTORY"), name)
			check(err)
			check(l.follow(nodekey.Source{Kind: nodekey.Credential, Name: name}))
		default:
			check(l.rotate())
		}
		fmt.Println("key", l.signer.KeyID())
	}
}

// kill -9 at any moment of rotations beside which lines are appended from several
// places, again and again: the next start has the key that was in use, or the next;
// and in the end the first key proves every line that was durable, once, in one log.
func TestRotationsUnderLoad(t *testing.T) {
	dir, credentials := t.TempDir(), t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	if err := os.Mkdir(filepath.Join(dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	kills := 4
	if os.Getenv("PROBITY_CRASHES") != "" {
		kills = 40 // a verifier follows 200 successions
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	var first *sign.PublicKey
	var durable []string
	last := ""
	for kill := range kills {
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), loadChild+"="+dir, fmt.Sprintf("NODEKEY_TEST_FROM=%d", (kill+1)*10_000_000))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		keys, lines := 0, bufio.NewScanner(out)
		for left := 1 + rand.IntN(40); left > 0 && lines.Scan(); {
			what, rest, _ := strings.Cut(lines.Text(), " ")
			switch what {
			case "key":
				if first == nil {
					b, err := os.ReadFile(filepath.Join(dir, "state", sign.PublicFile))
					if err == nil {
						first, err = sign.LoadPublic(b)
					}
					if err != nil || first.KeyID() != rest {
						t.Fatalf("%v, %v", first, err)
					}
				}
				keys, last = keys+1, rest
			case "durable":
				durable = append(durable, rest)
			default:
				t.Errorf("kill %d: %s", kill, lines.Text())
			}
			if keys > 1+kill%5 {
				left--
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // what it said, and was not heard yet
			if n, ok := strings.CutPrefix(lines.Text(), "durable "); ok {
				durable = append(durable, n)
			} else if id, ok := strings.CutPrefix(lines.Text(), "key "); ok {
				last = id
			}
		}
		cmd.Wait()
		if t.Failed() {
			return
		}
	}
	l, err := openLoaded(dir)
	if err != nil {
		t.Fatal(err)
	}
	if l.signer.Key(last) == nil {
		t.Errorf("%s was in use, and now it is %s, which does not follow it", last, l.signer.KeyID())
	}
	rotate := l.rotate
	if l.cfg.Source.Kind == nodekey.Credential {
		rotate = l.toFile
	}
	if err := errors.Join(rotate(), l.append(1), l.spool.Close()); err != nil {
		t.Fatal(err)
	}
	rep, err := verify.Path(t.Context(), []string{filepath.Join(dir, "spool")}, first, verify.Options{})
	if err != nil || !rep.Sound() || len(rep.Logs) != 1 || len(rep.Followed) != len(l.signer.Successions()) {
		t.Errorf("%d logs, followed %d of %d, %v, %v", len(rep.Logs), len(rep.Followed), len(l.signer.Successions()), rep.Findings, err)
	}
	has := map[string]int{}
	for _, g := range rep.Gaps {
		has[g.GapID]++
	}
	for _, n := range durable {
		i, err := strconv.Atoi(n)
		if id := fmt.Sprintf("%032x", i); err != nil || has[id] != 1 {
			t.Errorf("line %s was durable, and is %d times in the spool (%v)", n, has[id], err)
		}
	}
	if len(has) != len(rep.Gaps) || len(durable) == 0 || len(rep.Followed) < 2*kills {
		t.Errorf("%d lines, %d different, %d of them said to be durable, %d rotations", len(rep.Gaps), len(has), len(durable), len(rep.Followed))
	}
	t.Logf("%d kills, %d rotations, %d lines in %d chunks, %d of them said to be durable", kills, len(rep.Followed), len(rep.Gaps), rep.Chunks, len(durable))
}

// What fails on the way leaves the old key in use, and says why.
func TestLiveRotationFails(t *testing.T) {
	dir := t.TempDir()
	l, err := openLive(dir)
	if err != nil {
		t.Fatal(err)
	}
	was := l.signer.KeyID()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	for name, b := range map[string]string{"broken": "-----BEGIN PRIVATE KEY-----\n", "empty": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for to, want := range map[string]string{
		"credential:broken": "no PEM block", "credential:empty": "no PEM block", "credential:none": "no such file",
		"tpm:/nowhere": "/nowhere", "pkcs11:object=n?module-path=/nowhere.so": "",
	} {
		cfg := l.cfg
		cfg.Helper = "/nowhere"
		_, err := nodekey.Prepare(cfg, source(t, to), l.signer)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("to %s: %v", to, err)
		}
		cfg.Source = source(t, to)
		if _, err := nodekey.Follow(cfg, l.signer); err == nil {
			t.Errorf("the configuration says %s, and that was taken", to)
		}
	}
	// A key that is there and follows nobody.
	if _, err := sign.CreateFile(dir, "stranger"); err != nil {
		t.Fatal(err)
	}
	cfg := l.cfg
	cfg.Source = source(t, "credential:stranger")
	if _, err := nodekey.Follow(cfg, l.signer); err == nil || !strings.Contains(err.Error(), "nothing says") {
		t.Errorf("a stranger: %v", err)
	}
	// And one that is the same.
	if s, err := nodekey.Follow(l.cfg, l.signer); s != nil || err != nil {
		t.Errorf("the same key: %v, %v", s, err)
	}
	if b, err := os.ReadFile(filepath.Join(l.cfg.State, sign.PublicFile)); err != nil || string(b) != string(l.signer.Public().PEM()) {
		t.Errorf("node.pub: %v", err)
	}
	// Only a key that follows is taken by the spool.
	other, err := sign.Load(l.cfg.State)
	if err == nil {
		err = l.spool.Rekey(t.Context(), other)
	}
	if err == nil || !strings.Contains(err.Error(), "does not follow") {
		t.Errorf("the same key again: %v", err)
	}
	if err := errors.Join(l.append(1), l.spool.Close()); err != nil || l.signer.KeyID() != was {
		t.Fatal(err)
	}
	rep, err := verify.Path(t.Context(), []string{filepath.Join(dir, "spool")}, l.signer.Public(), verify.Options{})
	if err != nil || !rep.Sound() || rep.Chunks != 1 || len(rep.Followed) != 0 {
		t.Errorf("%v, %v", rep.Findings, err)
	}
}

// A rotation fails when the new key is in its place already, and the agent goes on with
// the old one until it is started again: a further rotation meanwhile would leave the
// key in that place without anything that says whom it follows.
func TestLiveRotationIsHalfDone(t *testing.T) {
	dir := t.TempDir()
	l, err := openLive(dir)
	if err != nil {
		t.Fatal(err)
	}
	first := l.signer.Public()
	inTheWay := filepath.Join(l.cfg.State, ".node.pub.new")
	if err := errors.Join(l.append(1), os.MkdirAll(filepath.Join(inTheWay, "x"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := l.rotate(); err == nil || l.signer.KeyID() != first.KeyID() {
		t.Fatalf("node.pub cannot be written, and the key is %s, %v", l.signer.KeyID(), err)
	}
	for _, to := range []nodekey.Source{l.cfg.Source, source(t, "credential:none")} {
		if _, err := nodekey.Prepare(l.cfg, to, l.signer); err == nil || !strings.Contains(err.Error(), "start the agent again") {
			t.Errorf("to %s, once more: %v", to.Kind, err)
		}
	}
	if err := errors.Join(l.append(2), l.spool.Close(), os.RemoveAll(inTheWay)); err != nil {
		t.Fatal(err)
	}
	if l, err = openLive(dir); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.append(3), l.rotate(), l.append(4), l.spool.Close()); err != nil {
		t.Fatal(err)
	}
	rep, err := verify.Path(t.Context(), []string{filepath.Join(dir, "spool")}, first, verify.Options{})
	if err != nil || !rep.Sound() || len(rep.Gaps) != 4 || len(rep.Logs) != 1 || len(rep.Followed) != 2 {
		t.Errorf("%d lines, %d logs, followed %d, %v, %v", len(rep.Gaps), len(rep.Logs), len(rep.Followed), rep.Findings, err)
	}
}

// In TPMs and on tokens, which serve one at a time: with the real ones.
func TestLiveRotationOfTokens(t *testing.T) {
	tpm, hsm, helper := tokens.NewTPM(t), tokens.NewSoftHSM(t), tokens.Helper(t)
	dir := t.TempDir()
	cfg := nodekey.Config{State: filepath.Join(dir, "state"), Source: source(t, "tpm:"+tpm.Socket), Helper: helper}
	s, err := nodekey.Init(cfg)
	if err != nil {
		t.Fatal(err)
	}
	first := s.Public()
	clock := func() evidence.Clock { return evidence.Clock{BootNs: 1, Wall: evidence.TimeOf(time.Now())} }
	sp, err := spool.Open(spool.Config{Dir: filepath.Join(dir, "spool"), State: cfg.State, Node: "node-a", BootID: "boot", Agent: "probity test", Signer: s, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	l, n := live{cfg: cfg, signer: s, spool: sp}, 0
	line := func() {
		t.Helper()
		n++
		if err := errors.Join(l.append(n), l.spool.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	line()
	if err := l.rotate(); err != nil { // to another key of the same TPM
		t.Fatal(err)
	}
	line()
	// A wrong PIN, and a key that is not on the token: the TPM's goes on.
	pin := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(pin, []byte("not-the-pin"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := hsm.URI("one")
	before, _, _ := strings.Cut(good, "pin-source=")
	for why, to := range map[string]string{"a wrong PIN": before + "pin-source=" + pin, "no PIN": before + "pin-source=/nowhere"} {
		_, err := nodekey.Prepare(l.cfg, source(t, to), l.signer)
		if err == nil {
			t.Errorf("%s: taken", why)
		}
		t.Logf("%s: %v", why, err)
		line()
	}
	next, err := nodekey.Prepare(l.cfg, source(t, good), l.signer)
	if err != nil || next.Now() {
		t.Fatal(err)
	}
	line()
	l.cfg.Source = source(t, good)
	gone := l.cfg
	gone.Helper = "/nowhere"
	if _, err := nodekey.Follow(gone, l.signer); err == nil {
		t.Error("a token that is gone was taken")
	}
	line()
	to, err := nodekey.Follow(l.cfg, l.signer)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.spool.Rekey(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	if err := l.signer.Close(); err != nil {
		t.Fatal(err)
	}
	l.signer = to
	line()
	if err := errors.Join(l.spool.Close(), to.Close()); err != nil {
		t.Fatal(err)
	}
	rep, err := verify.Path(t.Context(), []string{filepath.Join(dir, "spool")}, first, verify.Options{})
	if err != nil || !rep.Sound() || len(rep.Gaps) != n || len(rep.Logs) != 1 || len(rep.Followed) != 2 {
		t.Errorf("%d lines of %d, %d logs, followed %d, %v, %v", len(rep.Gaps), n, len(rep.Logs), len(rep.Followed), rep.Findings, err)
	}
}
