// Package shippers has tests that hand a spool to real log shippers: each carries
// chunks while there come more, is killed (-9) in between, and what arrives is put
// together (evidence/delivery), compared byte by byte with the spool, and verified.
package shippers

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/delivery"
	"probity/evidence/redact"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/evidence/verify"
)

const bootID = "5b1a7f9e-3c0d-4e2a-9b8c-7d6e5f4a3b2c"

// chunks is how many are carried: few by itself, and as many as $PROBITY_SHIPPED
// says in `make test-full`.
func chunks(t *testing.T, few int) int {
	t.Helper()
	text := os.Getenv("PROBITY_SHIPPED")
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	must(t, err)
	return n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// node seals chunks, as an agent does.
type node struct {
	dir     string // the spool
	signer  *sign.Signer
	s       *spool.Spool
	made    int
	instant int64             // of boot time, ns
	taken   map[string][]byte // chunks that were acknowledged and removed
}

// newNode has its spool in memory where there is such a directory: what a killed
// shipper leaves behind is the kernel's in either case.
func newNode(t *testing.T) *node {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "probity-shippers")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	n := &node{dir: filepath.Join(dir, "spool"), instant: 1e12, taken: map[string][]byte{}}
	n.signer, err = sign.LoadOrCreate(dir)
	must(t, err)
	n.s, err = spool.Open(spool.Config{
		Dir: n.dir, State: filepath.Join(dir, "state"), Node: "node-a", BootID: bootID, Agent: "probity test", Signer: n.signer,
		Clock: func() evidence.Clock {
			n.instant += 1e6
			return evidence.Clock{BootNs: evidence.Uint64(n.instant), Wall: evidence.TimeOf(time.Unix(1_700_000_000, n.instant))}
		},
	})
	must(t, err)
	t.Cleanup(func() { must(t, n.s.Close()) })
	return n
}

// awkward are texts that somebody on the way might change: every second one becomes
// a line that is nearly as long as lines may be.
var awkward = []string{
	`plain`,
	"control \x01\x02\x1b[31m \t \r \n \x7f end",
	`quotes " \" \\ ' and a \u0041 that is none`,
	"<html>&amp; %msg% $!metadata {{.}} ${env:HOME} #012",
	"\u00e9 \u4e16\u754c \u2028 \u2029 \ufeff \U0001f980 \u202e",
	"  spaces  around and a tab at the end\t",
	`{"file":"/x","offset":0,"message":"a record in a record"}`,
}

// grow publishes so many chunks more.
func (n *node) grow(t *testing.T, count int) {
	t.Helper()
	for i := range count {
		id := n.made
		n.made++
		must(t, n.s.Append(fmt.Sprintf("%032x", id), func(c evidence.Clock) []redact.Line { return noRules.Lines(linesOf(id, c)...) }))
		n.s.Seal()
		if i%32 == 31 || i == count-1 {
			must(t, n.s.Flush(t.Context()))
		}
	}
}

const linesPerChunk = 2 + 2 // and header and envelope

// noRules redacts nothing.
var noRules *redact.Redactor

func linesOf(id int, c evidence.Clock) []evidence.Line {
	at, run, container := c.Time(int64(c.BootNs)), fmt.Sprintf("%032x", id), fmt.Sprintf("container-%d", id)
	text := awkward[id%len(awkward)]
	long := text
	if id%14 == 1 { // 1 character, 6 bytes
		long = strings.Repeat("\x01", evidence.MaxPath-1-len(text)) + text
	}
	return []evidence.Line{
		&evidence.Coverage{
			RunID: run, ContainerID: container, Runtime: "podman", Image: text, ImageDigestReason: "no image", BootID: bootID,
			CgroupID: 7, Attribution: "cgroup", Source: "hook", From: c.Time(int64(c.BootNs) - 100), To: at, Final: true, GapReasons: []evidence.GapReason{evidence.GapFileChanged},
		},
		&evidence.Gap{GapID: fmt.Sprintf("%032x", id), Scope: "file", Reason: evidence.GapFileChanged, RunID: run, ContainerID: container, Path: "/" + long, From: at, To: at, Detail: text},
	}
}

// all returns the chunks of a spool or of what was put together, by their names.
func all(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	must(t, filepath.WalkDir(filepath.Join(dir, spool.ReadyDir), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		out[d.Name()], err = os.ReadFile(path)
		return err
	}))
	return out
}

func (n *node) instance(t *testing.T) string {
	t.Helper()
	pattern := filepath.Join(n.dir, spool.ReadyDir, "*", "*.ndjson")
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %v", pattern, err)
	}
	return strings.TrimSuffix(filepath.Base(names[0])[17:], ".ndjson")
}

// joined puts together what was delivered.
func joined(t *testing.T, dir string, files ...string) delivery.Report {
	t.Helper()
	j, err := delivery.Open(dir)
	must(t, err)
	defer j.Close()
	for _, name := range files {
		f, err := os.Open(name)
		must(t, err)
		err = j.Read(t.Context(), name, f)
		f.Close()
		must(t, err)
	}
	r, err := j.Report()
	must(t, err)
	return r
}

// arrived compares what was put together with the spool, and has it verified as the
// far side would, with a copy of the node's log.
func (n *node) arrived(t *testing.T, dir string) {
	t.Helper()
	want, far := all(t, n.dir), filepath.Join(dir, n.instance(t))
	maps.Copy(want, n.taken)
	got := all(t, far)
	if len(want) != n.made || len(got) != len(want) {
		t.Fatalf("%d chunks were made, %d are or were in the spool, %d arrived", n.made, len(want), len(got))
	}
	for name, b := range want {
		if !bytes.Equal(got[name], b) {
			t.Errorf("%s: %d bytes arrived, not the %d in the spool", name, len(got[name]), len(b))
		}
	}
	must(t, os.CopyFS(filepath.Join(far, spool.LogDir), os.DirFS(filepath.Join(n.dir, spool.LogDir))))
	rep, err := verify.Path(t.Context(), []string{far}, n.signer.Public(), verify.Options{})
	if err != nil || !rep.Sound() || rep.Chunks != n.made || rep.Log != verify.LogSound {
		t.Errorf("verify: %d chunks of %d, log %s, %v, %v", rep.Chunks, n.made, rep.Log, rep.Findings, err)
	}
}

// acknowledge has the node acknowledge and remove what the far side says is whole.
func (n *node) acknowledge(t *testing.T, together string) {
	t.Helper()
	has := map[string]string{}
	must(t, delivery.Whole(t.Context(), together, func(c delivery.Chunk) error { has[c.Chunk] = c.Digest; return nil }))
	r, err := spool.NewReader(n.dir, "far")
	must(t, err)
	got, err := r.AckReceived(t.Context(), func(chunk string) string { return has[chunk] })
	if err != nil || got.Pending != 0 || got.Chunks+len(n.taken) != n.made {
		t.Fatalf("of %d chunks, %d of them removed: %+v, %v", n.made, len(n.taken), got, err)
	}
	maps.Copy(n.taken, all(t, n.dir))
	gone, err := n.s.Collect(t.Context())
	if err != nil || gone != got.Chunks {
		t.Fatalf("%d chunks were removed, %d acknowledged: %v", gone, got.Chunks, err)
	}
}

// missing is what verify says of what arrived so far: chunks that the log names and
// that are not there.
func (n *node) missing(t *testing.T, dir string) int {
	t.Helper()
	far := filepath.Join(dir, n.instance(t))
	must(t, os.CopyFS(filepath.Join(far, spool.LogDir), os.DirFS(filepath.Join(n.dir, spool.LogDir))))
	defer func() { must(t, os.RemoveAll(filepath.Join(far, spool.LogDir))) }()
	rep, err := verify.Path(t.Context(), []string{far}, n.signer.Public(), verify.Options{})
	must(t, err)
	count := 0
	for _, f := range rep.Findings {
		if f.Kind != verify.Removed {
			t.Errorf("verify, of what arrived so far: %s", f)
		}
		count++
	}
	return count
}

// configuration is one of packaging/shippers, with other values in the places that
// a user changes, too. Each has to be in it.
func configuration(t *testing.T, name string, change map[string]string) string {
	t.Helper()
	b, err := os.ReadFile("../../packaging/shippers/" + name)
	must(t, err)
	var pairs []string
	for from, to := range change {
		if !strings.Contains(string(b), from) {
			t.Fatalf("%s has no %q", name, from)
		}
		pairs = append(pairs, from, to)
	}
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, []byte(strings.NewReplacer(pairs...).Replace(string(b))), 0o600))
	return path
}

// What was put in is not changed once more: a directory's random name may have the port
// in it that rsyslog.conf has.
func TestConfiguration(t *testing.T) {
	for range 50 { // a map has no order
		b, err := os.ReadFile(configuration(t, "rsyslog.conf", map[string]string{"/var/lib/probity-rsyslog": "/tmp/x2514y", "2514": "1"}))
		if err != nil || !strings.Contains(string(b), `"/tmp/x2514y"`) || !strings.Contains(string(b), `port="1"`) {
			t.Fatalf("%v\n%s", err, b)
		}
	}
}

// until asks again and again; what it waits for is caused, and only its moment is not
// known. It does not wait for a program that has ended by itself.
func until(t *testing.T, what string, d time.Duration, p *program, met func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); !met(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, d)
		}
		if !p.running() {
			t.Fatalf("%s: %s has ended: %v", what, p.args[0], p.cmd.ProcessState)
		}
	}
}
