package spool_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/evidence/tlog"
	"probity/tests/need"
)

// script is the child whose system calls are recorded: one of everything that a
// spool writes. It says what is durable, and goes on after each error.
func script(dir string) {
	runtime.LockOSThread() // strace counts the system calls of each thread
	signer, err := sign.LoadOrCreate(dir)
	check(err)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	again := func(do func() error) { // a test that injects errors has few
		for range 20 {
			if err = do(); err == nil {
				return
			}
		}
		check(err)
	}
	open := func() (s *spool.Spool) {
		again(func() (err error) {
			s, err = spool.Open(spool.Config{
				Dir: filepath.Join(dir, "spool"), State: filepath.Join(dir, "state"), Node: "node-a", BootID: bootID, Signer: signer, Clock: bootClock(),
			})
			return err
		})
		return s
	}
	run := 0
	s := open()
	add := func() {
		run++
		check(s.Append(runID(run), sites(run, 1+run%7, 100+run%5*700)))
	}
	say := func(sync func() error) {
		again(sync)
		fmt.Println("durable", run)
	}
	flush := func() error { return s.Flush(ended) }

	add()
	say(s.Sync) // the first chunk, of a log that there is not yet
	add()
	say(flush)
	for range 3 { // three chunks under one checkpoint
		add()
		s.Seal()
	}
	say(s.Sync)
	add()
	say(s.Sync)
	add()
	say(s.Sync) // a file that grows
	say(flush)
	r, err := spool.NewReader(filepath.Join(dir, "spool"), "one")
	check(err)
	items, err := r.Pending(context.Background())
	check(err)
	again(func() error { _, err := r.Ack(context.Background(), items[1]); return err })
	fmt.Println("collect", 0)
	again(func() error { _, err := s.Collect(context.Background()); return err })
	add()
	say(s.Sync)
	if err := s.Close(); err == nil {
		fmt.Println("closed", run)
	}
	s = open()
	add()
	say(s.Sync)
	add()
	say(flush)
	add()
	say(s.Sync)
	os.Exit(0) // like a kill: a file is left
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// op is one thing that the script did to the disk, or said.
type op struct {
	call string // create, write, sync, rename, unlink, mkdir, rmdir, say
	path string
	to   string // of rename
	file *inode // of create, write and sync of a file
	at   int64
	data []byte
}

// inode is a file, whatever its name.
type inode struct {
	size    int64 // as the script sees it
	durable []byte
	pending []op // writes since its last fsync
}

// record runs the script under strace and returns what it did below dir, in order.
func record(t *testing.T, dir string, inject ...string) (ops []op, syncs int) {
	t.Helper()
	need.Command(t, "strace")
	out := filepath.Join(t.TempDir(), "strace")
	args := append([]string{"-f", "-xx", "-s", "99999999", "-o", out, "-e", "trace=" + traced}, inject...)
	cmd := exec.Command("strace", append(args, os.Args[0])...)
	cmd.Env = append(os.Environ(), "SPOOL_TEST_SCRIPT="+dir)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	b, err := os.ReadFile(out)
	must(t, err)
	return parseStrace(t, string(b), dir)
}

const traced = "openat,close,write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,ftruncate,dup3,copy_file_range,sendfile"

var (
	straceLine = regexp.MustCompile(`^(\d+) +(\w+)\((.*)\) += (-?\d+|\?)`)
	unfinished = regexp.MustCompile(`^(\d+) +(.*) <unfinished \.\.\.>$`)
	resumed    = regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>(.*)$`)
)

func parseStrace(t *testing.T, text, dir string) (ops []op, syncs int) {
	t.Helper()
	type open struct {
		path string
		file *inode
		at   int64
	}
	fds := map[string]*open{}
	files := map[string]*inode{}
	begun := map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		if m := unfinished.FindStringSubmatch(line); m != nil {
			begun[m[1]] = m[2]
			continue
		}
		if m := resumed.FindStringSubmatch(line); m != nil {
			line = m[1] + " " + begun[m[1]] + m[2]
		}
		m := straceLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		call, args, result := m[2], strings.Split(m[3], ", "), m[4]
		if strings.Contains(call, "sync") {
			syncs++
		}
		if strings.HasPrefix(result, "-") || result == "?" {
			continue // it did nothing
		}
		unhex := func(i int) []byte {
			b, err := hex.DecodeString(strings.ReplaceAll(strings.Trim(args[i], `"`), `\x`, ""))
			must(t, err)
			return b
		}
		at := func(fd, name int) string {
			p := string(unhex(name))
			if !filepath.IsAbs(p) && args[fd] != "AT_FDCWD" {
				p = filepath.Join(fds[args[fd]].path, p)
			}
			return filepath.Clean(p)
		}
		below := func(p string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
		switch call {
		case "openat":
			o := &open{path: at(0, 1)}
			fds[result] = o
			if !below(o.path) {
				continue
			}
			o.file = files[o.path]
			flags := args[2]
			if strings.Contains(flags, "O_CREAT") && (o.file == nil || strings.Contains(flags, "O_EXCL")) {
				o.file = &inode{}
				files[o.path] = o.file
				ops = append(ops, op{call: "create", path: o.path, file: o.file})
			} else if strings.Contains(flags, "O_TRUNC") {
				t.Fatalf("a file that was there is cut: %s", line)
			}
		case "write":
			b := unhex(1)
			if args[0] == "1" {
				ops = append(ops, op{call: "say", path: strings.TrimSpace(string(b))})
				continue
			}
			o := fds[args[0]]
			if o == nil || !below(o.path) {
				continue
			}
			n, err := strconv.Atoi(result)
			must(t, err)
			ops = append(ops, op{call: "write", path: o.path, file: o.file, at: o.at, data: b[:n]})
			o.at += int64(n)
		case "pwrite64":
			o := fds[args[0]]
			if o == nil || !below(o.path) {
				continue
			}
			n, err := strconv.Atoi(result)
			must(t, err)
			at, err := strconv.ParseInt(args[3], 10, 64)
			must(t, err)
			ops = append(ops, op{call: "write", path: o.path, file: o.file, at: at, data: unhex(1)[:n]})
		case "fsync", "fdatasync":
			if o := fds[args[0]]; below(o.path) {
				ops = append(ops, op{call: "sync", path: o.path, file: o.file})
			}
		case "close":
			delete(fds, args[0])
		case "mkdirat":
			if p := at(0, 1); below(p) {
				ops = append(ops, op{call: "mkdir", path: p})
			}
		case "unlinkat":
			p := at(0, 1)
			switch {
			case !below(p):
			case args[2] == "AT_REMOVEDIR":
				ops = append(ops, op{call: "rmdir", path: p})
			default:
				ops = append(ops, op{call: "unlink", path: p, file: files[p]})
				delete(files, p)
			}
		case "renameat", "renameat2":
			from, to := at(0, 1), at(2, 3)
			if !below(from) {
				continue
			}
			if files[from] == nil {
				t.Fatalf("a rename of what is no file: %s", line)
			}
			ops = append(ops, op{call: "rename", path: from, to: to, file: files[from]})
			files[to] = files[from]
			delete(files, from)
		default:
			t.Fatalf("a system call that the model does not know: %s", line)
		}
	}
	return ops, syncs
}

// newKey makes a node's directory with a key, which is older than all that is
// recorded.
func newKey(t testing.TB, dir string) {
	t.Helper()
	must(t, os.Mkdir(dir, 0o700))
	_, err := sign.LoadOrCreate(dir)
	must(t, err)
}

// sector is what a disk writes whole.
const sector = 512

// How much of what was not synced a crash leaves.
type loss int

const (
	loseAll  loss = iota
	loseNone      // a kill: the kernel has all
	loseSome      // any of the names, any of the writes, any of their sectors
)

// disk is what a crash leaves: names, and what the files hold.
type disk struct {
	dirs  map[string]bool
	files map[string]*inode
	data  map[*inode][]byte
}

// after is a disk after a crash behind the first ops. What was synced is there; of
// all else how decides. An operation on a name is on the disk as a whole or not at
// all, a rename too, and none waits for one before it. Of a write any sectors may be
// there; others read as zeros, or the file ends before them.
func after(ops []op, how loss, r *rand.Rand) disk {
	kept := func() bool { return how == loseNone || how == loseSome && r.IntN(2) == 0 }
	// Which operations on names are durable: an fsync of their directory follows.
	d := disk{map[string]bool{}, map[string]*inode{}, map[*inode][]byte{}}
	synced := map[string]int{}
	for i, o := range ops {
		if o.call == "sync" && o.file == nil {
			synced[o.path] = i
		}
	}
	type image struct {
		durable []byte
		pending []op
	}
	files := map[*inode]*image{}
	for i, o := range ops {
		name := o.path
		if o.call == "rename" {
			name = o.to
		}
		on := synced[filepath.Dir(name)] > i
		switch o.call {
		case "create":
			files[o.file] = &image{}
			if on || kept() {
				d.files[o.path] = o.file
			}
		case "write":
			files[o.file].pending = append(files[o.file].pending, o)
		case "sync":
			if f := files[o.file]; f != nil {
				for _, w := range f.pending {
					f.durable = put(f.durable, w.at, w.data)
				}
				f.pending = nil
			}
		case "mkdir":
			if on || kept() {
				d.dirs[o.path] = true
			}
		case "rmdir":
			if on || kept() {
				delete(d.dirs, o.path)
			}
		case "unlink":
			if (on || kept()) && d.files[o.path] == o.file {
				delete(d.files, o.path)
			}
		case "rename":
			if on || kept() {
				if d.files[o.path] == o.file {
					delete(d.files, o.path)
				}
				d.files[o.to] = o.file
			}
		}
	}
	for ino, f := range files {
		b := bytes.Clone(f.durable)
		long := how == loseNone || how == loseSome && r.IntN(2) == 0 // the size is there, whatever of the data is
		for _, w := range f.pending {
			for off := int64(0); off < int64(len(w.data)); {
				end := min(int64(len(w.data)), (w.at+off)/sector*sector+sector-w.at)
				switch {
				case kept():
					b = put(b, w.at+off, w.data[off:end])
				case long:
					b = put(b, w.at+off, make([]byte, end-off))
				}
				off = end
			}
		}
		d.data[ino] = b
	}
	return d
}

func put(b []byte, at int64, data []byte) []byte {
	if end := int(at) + len(data); end > len(b) {
		b = append(b, make([]byte, end-len(b))...)
	}
	copy(b[at:], data)
	return b
}

// write makes the disk real, below to. A file is there if all directories above it
// are.
func (d disk) write(t testing.TB, from, to string) {
	t.Helper()
	reached := func(p string) bool {
		for p = filepath.Dir(p); p != from; p = filepath.Dir(p) {
			if !d.dirs[p] {
				return false
			}
		}
		return true
	}
	dirs := make([]string, 0, len(d.dirs))
	for p := range d.dirs {
		dirs = append(dirs, p)
	}
	slices.Sort(dirs)
	for _, p := range dirs {
		if reached(p) {
			must(t, os.Mkdir(filepath.Join(to, strings.TrimPrefix(p, from)), 0o750))
		}
	}
	for p, f := range d.files {
		if reached(p) {
			must(t, os.WriteFile(filepath.Join(to, strings.TrimPrefix(p, from)), d.data[f], 0o600))
		}
	}
}

// promises is what was said to be durable before an operation.
type promises struct {
	durable int // runs
	collect bool
	closed  int // as of the last close
}

func said(ops []op) (p promises) {
	for _, o := range ops {
		if o.call != "say" {
			continue
		}
		what, number, _ := strings.Cut(o.path, " ")
		n, _ := strconv.Atoi(number)
		switch what {
		case "durable":
			p.durable = n
		case "collect":
			p.collect = true
		case "closed":
			p.closed = n
		}
	}
	return p
}

// shown are the checkpoints that somebody may have read before the end of ops: each
// from the moment when it had its name, durable or not.
func shown(ops []op) (notes [][]byte) {
	files := map[*inode][]byte{}
	for _, o := range ops {
		switch o.call {
		case "write":
			files[o.file] = put(files[o.file], o.at, o.data)
		case "rename":
			if strings.HasSuffix(o.to, "/"+spool.LogDir+"/"+tlog.CheckpointFile) {
				notes = append(notes, bytes.Clone(files[o.file]))
			}
		}
	}
	return notes
}

// grewFrom wants the node's log to have grown out of every checkpoint that somebody
// may have read.
func (n *node) grewFrom(t testing.TB, notes [][]byte) {
	t.Helper()
	r := tlog.NewReader(os.DirFS(filepath.Join(n.cfg.Dir, spool.LogDir)))
	note, err := r.Checkpoint()
	must(t, err)
	now, err := tlog.Claim(note)
	must(t, err)
	for _, note := range notes {
		was, err := tlog.Claim(note)
		must(t, err)
		if was.Origin != now.Origin {
			t.Errorf("a checkpoint of %s was there to read, and the log is %s", was.Origin, now.Origin)
			continue
		}
		if at, err := r.At(now, was.Size); err != nil || at != was {
			t.Errorf("a checkpoint of size %d with root %s was there to read; the log's root of that size is %s (%v)", was.Size, was.Root, at.Root, err)
		}
	}
}

// survives starts on what a crash left, and wants everything that was promised.
// power says that the machine has started again.
func survives(t testing.TB, n *node, p promises, read [][]byte, power bool) {
	t.Helper()
	if power {
		n.cfg.BootID = otherBoot
	}
	s := n.open(t)
	const newRun = 1000
	must(t, errors.Join(s.Append(runID(newRun), sites(newRun, 1, 10)), s.Flush(t.Context()), s.Close()))
	n.grewFrom(t, read)
	rep := n.verify(t)
	rows := map[string]int{}
	for _, r := range rep.Rows {
		rows[r.RunID]++
	}
	for run := 1; run <= p.durable; run++ {
		if got, want := rows[runID(run)], 1+run%7; got != want && !(p.collect && got == 0 && run <= 3) {
			t.Errorf("run %d has %d sites, and %d were durable", run, got, want)
		}
	}
	if rep.Lines != len(rep.Rows) {
		t.Errorf("%d lines about %d sites: something is said twice", rep.Lines, len(rep.Rows))
	}
	if p.durable > 0 && len(rep.Logs) != 1 {
		t.Errorf("%d logs", len(rep.Logs))
	}
	for _, h := range rep.Holes {
		collected := p.collect && h.From == 1 && h.To <= 2
		if !collected && !power || h.To-h.From >= 64 {
			t.Errorf("a hole: %+v", h)
		}
	}
	if left := n.wals(t); len(left) != 0 {
		t.Errorf("write-ahead files that nobody needs: %v", left)
	}
}

// crashed makes the disks of crashes, and starts on each: pick says after which
// operation, and how much is lost.
func crashed(t *testing.T, ops []op, recorded string, states int, random *rand.Rand, pick func(i int) (cut int, how loss)) {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(recorded, "node.key"))
	must(t, err)
	work := memoryDir(t)
	at := ""
	defer func() {
		if t.Failed() {
			t.Log(at)
		}
	}()
	for i := range states {
		cut, how := pick(i)
		p := said(ops[:cut])
		at = fmt.Sprintf("state %d, the first %d operations (last %s %s), %v lost, promised %+v", i, cut, ops[cut-1].call, ops[cut-1].path, how, p)
		dir := filepath.Join(work, strconv.Itoa(i))
		must(t, os.Mkdir(dir, 0o700))
		after(ops[:cut], how, random).write(t, recorded, dir)
		must(t, os.WriteFile(filepath.Join(dir, "node.key"), key, 0o600))
		n := nodeIn(t, dir)
		survives(t, n, p, shown(ops[:cut]), true)
		if t.Failed() {
			return
		}
		must(t, os.RemoveAll(dir))
	}
}

// Whatever of the writes, and of the names, that were not synced a loss of power
// takes, and at whichever moment: what was promised is there, once, and the log goes
// on, from whatever checkpoint somebody may have read. The system calls are those
// that were really made.
func TestLostWrites(t *testing.T) {
	recorded := filepath.Join(memoryDir(t), "node")
	newKey(t, recorded)
	ops, syncs := record(t, recorded)
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 2))
	states := crashes(t, len(ops))
	t.Logf("%d operations, %d fsyncs, %d states, seed %d", len(ops), syncs, states, seed)
	crashed(t, ops, recorded, states, random, func(i int) (int, loss) {
		// Each moment at least once, and then any.
		how := loseSome
		switch i / len(ops) {
		case 0:
			how = loss(random.IntN(3))
		case 1:
			how = loss(random.IntN(2))
		}
		return i%len(ops) + 1, how
	})
}

// A kill at each moment of an installation's first commits leaves nothing to be
// explained: no number is missing, though its state does not say yet which log is its
// own.
func TestKilledAtFirst(t *testing.T) {
	recorded := filepath.Join(memoryDir(t), "node")
	newKey(t, recorded)
	ops, _ := record(t, recorded)
	key, err := os.ReadFile(filepath.Join(recorded, "node.key"))
	must(t, err)
	first := 0 // the second checkpoint's name
	for shownSo := 0; first < len(ops) && shownSo < 2; first++ {
		shownSo = len(shown(ops[:first+1]))
	}
	work := memoryDir(t)
	random := rand.New(rand.NewPCG(1, 1)) // nothing is lost, so it does not matter
	for cut := 1; cut <= first && !t.Failed(); cut++ {
		p := said(ops[:cut])
		dir := filepath.Join(work, strconv.Itoa(cut))
		must(t, os.Mkdir(dir, 0o700))
		after(ops[:cut], loseNone, random).write(t, recorded, dir)
		must(t, os.WriteFile(filepath.Join(dir, "node.key"), key, 0o600))
		survives(t, nodeIn(t, dir), p, shown(ops[:cut]), false)
		if t.Failed() {
			t.Logf("killed after %d operations of %d, last %s %s, promised %+v", cut, first, ops[cut-1].call, ops[cut-1].path, p)
		}
		must(t, os.RemoveAll(dir))
	}
}

// The same where an fsync had failed before: what is cleared away after that must
// not be what the disk still asks for.
func TestLostWritesAfterFailedSync(t *testing.T) {
	const each = 40
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 4))
	t.Logf("seed %d", seed)
	for range max(1, crashes(t, each)/each) {
		recorded := filepath.Join(memoryDir(t), "node")
		newKey(t, recorded)
		which := 1 + random.IntN(95)
		ops, syncs := record(t, recorded, "-e", fmt.Sprintf("inject=fsync,fdatasync:error=EIO:when=%d", which))
		if syncs < which {
			t.Fatalf("%d fsyncs: number %d did not fail", syncs, which)
		}
		crashed(t, ops, recorded, each, random, func(int) (int, loss) { return 1 + random.IntN(len(ops)), loss(random.IntN(3)) })
	}
}

// Each fsync in its turn fails once. Nothing that was promised is lost by it, the
// file is not relied on, and the log is still one.
func TestFailedSync(t *testing.T) {
	dir := filepath.Join(memoryDir(t), "node")
	newKey(t, dir)
	_, syncs := record(t, dir)
	step := max(1, syncs/crashes(t, 8))
	random := rand.New(rand.NewPCG(rand.Uint64(), 3))
	for which := 1 + random.IntN(step); which <= syncs; which += step {
		t.Run(strconv.Itoa(which), func(t *testing.T) {
			dir := filepath.Join(memoryDir(t), "node")
			newKey(t, dir)
			ops, syncs := record(t, dir, "-e", fmt.Sprintf("inject=fsync,fdatasync:error=EIO:when=%d", which))
			if syncs < which {
				t.Fatalf("%d fsyncs: none failed", syncs)
			}
			p := said(ops)
			if p.durable == 0 {
				t.Fatal("it said nothing")
			}
			survives(t, nodeIn(t, dir), p, shown(ops), false)
		})
	}
}
