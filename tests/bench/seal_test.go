package bench

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/tests/need"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("PROBITY_BENCH_SEAL"); dir != "" {
		if err := pacedSealing(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// How much is sealed: 1,000 runs of 100 sites, in 32 chunks, of which cosign signs a
// few.
const (
	sealedRuns  = 1000
	sealedSites = 100
	attested    = 6
)

// pacedFor is how long lines come one by one, each pacedEvery.
const (
	pacedFor   = 3 * time.Second
	pacedEvery = 10 * time.Millisecond
)

func sealSpool(dir string) (*spool.Spool, *sign.Signer, error) {
	signer, err := sign.LoadOrCreate(dir)
	if err != nil {
		return nil, nil, err
	}
	begun := time.Now()
	s, err := spool.Open(spool.Config{
		Dir: filepath.Join(dir, "spool"), State: filepath.Join(dir, "state"), Node: "node-a", BootID: "b", Signer: signer, ContainerQuota: 64 << 20, Quota: 1 << 30,
		Clock: func() evidence.Clock {
			return evidence.Clock{BootNs: evidence.Uint64(1e12 + time.Since(begun).Nanoseconds()), Wall: evidence.TimeOf(time.Now())}
		},
	})
	return s, signer, err
}

var symbols = func() (names [sealedSites]string) {
	for i := range names {
		names[i] = fmt.Sprintf("xmlParseEntity_%d", i)
	}
	return names
}()

// noRules redacts nothing.
var noRules *redact.Redactor

// siteLines are a run's lines of sites of an image, half of which were hit.
func siteLines(run, sites int) func(evidence.Clock) []redact.Line {
	runID, containerID := fmt.Sprintf("%032x", run), fmt.Sprintf("%064x", run)
	image, file, layer, build := "sha256:"+strings.Repeat("1a", 32), "sha256:"+strings.Repeat("2b", 32), "sha256:"+strings.Repeat("4d", 32), strings.Repeat("3c", 20)
	return func(c evidence.Clock) []redact.Line {
		now := int64(c.BootNs)
		lines := make([]redact.Line, sites)
		for i := range lines {
			off, count := evidence.Uint64(0x1000+64*i), evidence.Uint64(0)
			o := &evidence.Observation{
				State: evidence.ArmedNoHit, ProbeType: evidence.Uprobe, RequestedProbeType: evidence.Uprobe, RunID: runID, ContainerID: containerID,
				Runtime: "containerd", ImageDigest: image, ProbeID: "vulnerable-functions", Symbol: symbols[i], Offset: &off,
				Path: "/usr/lib/x86_64-linux-gnu/libxml2.so.2.9.14", FileDigest: file, BuildID: build, Origin: "imageLayer",
				LayerDiffID: layer, SymbolKind: "func", Inline: "unknown", Wanted: "xmlParse*", Count: &count,
				Confidence: evidence.Confidence{Value: 1, Version: "3", Inputs: evidence.Inputs{ProbeType: "uprobe", Attribution: "cgroup", Symbol: "func", Losses: "none"}},
				Complete:   true, From: c.Time(now - 1e9), To: c.Time(now),
			}
			if i%2 == 0 {
				count, o.State = evidence.Uint64(i+1), evidence.Hit
				o.FirstAt, o.LastAt, o.Process = c.Time(now-1e8), c.Time(now-1e6), &evidence.Process{Pid: 4711, Comm: "app", Path: "/usr/bin/app"}
			}
			lines[i] = noRules.Line(o)
		}
		return lines
	}
}

// chunksOf lists the files below ready/, and the bytes of all.
func chunksOf(b *testing.B, dir string) (files []string, bytes int64) {
	b.Helper()
	must(b, filepath.WalkDir(filepath.Join(dir, "spool", spool.ReadyDir), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		st, err := e.Info()
		if err == nil {
			files, bytes = append(files, path), bytes+st.Size()
		}
		return err
	}))
	return files, bytes
}

// peak is the most resident memory that this process has had since reset, in MiB.
func peak(b *testing.B) float64 {
	b.Helper()
	data, err := os.ReadFile("/proc/self/status")
	must(b, err)
	m := regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB$`).FindSubmatch(data)
	if m == nil {
		b.Fatal("/proc/self/status has no VmHWM")
	}
	kb, err := strconv.ParseFloat(string(m[1]), 64)
	must(b, err)
	return kb / 1024
}

func cpuOf(b *testing.B, cmd *exec.Cmd) time.Duration {
	b.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

// BenchmarkSeal is lines on their way to signed chunks in the log and on the disk, by
// the spool alone: what makes them is not in it but as values. Beside it are sha256sum
// over the same bytes and cosign over the same chunks, in one run.
func BenchmarkSeal(b *testing.B) {
	sha256sum := need.Command(b, "sha256sum")[0]
	cosign := need.Cosign(b)
	dir := b.TempDir()
	s, _, err := sealSpool(dir)
	must(b, err)
	base, _ := resident(b)
	must(b, os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)) // VmHWM begins anew
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	before, began := spent(b), time.Now()
	for run := range sealedRuns {
		s.Wait(ctx.Done())
		must(b, s.Append(fmt.Sprintf("%032x", run), siteLines(run, sealedSites)))
	}
	must(b, s.Flush(b.Context()))
	took, used := time.Since(began), spent(b)-before
	most := peak(b)
	dropped := s.Usage().Dropped
	cancel()
	must(b, errors.Join(<-done, s.Close()))
	files, bytes := chunksOf(b, dir)
	if len(dropped) != 0 {
		b.Errorf("dropped: %v", dropped)
	}
	const lines = sealedRuns * sealedSites
	perLine := used / lines
	judged(b, float64(lines)/took.Seconds() >= 100_000, "lines to sealed chunks, the spool alone", ">= 100,000/s", "%.0f/s, %.0f MB/s", float64(lines)/took.Seconds(), float64(bytes)/took.Seconds()/1e6)
	row(b, "the same in processor time", "20 us a line on 2 idle cores", "%.1f us a line", float64(perLine.Nanoseconds())/1e3)
	sum := cpuOf(b, exec.Command(sha256sum, files...))
	row(b, "sealing against sha256sum of the same bytes, processor time", "-", "%.2f x %.1f us a line", used.Seconds()/sum.Seconds(), float64(sum.Microseconds())/lines)
	theirs, of := attest(b, cosign, files[:min(attested, len(files))])
	perByte := theirs.Seconds() / float64(of) // of these chunks
	row(b, "sealing against cosign attest-blob of the same chunks", "-", "%.2f x %.1f us a line", used.Seconds()/float64(bytes)/perByte, perByte*float64(bytes)/lines*1e6)
	row(b, "an observation in a sealed chunk", "-", "%.0f bytes, %d chunks", float64(bytes)/lines, len(files))
	judged(b, most-base <= 96, "memory added while sealing, at most", "96 MiB, the whole agent", "%.1f MiB", most-base)
	fsyncs(b)
}

// attest has cosign sign the statement of each chunk, as it does: a process for each,
// which opens its key first. of is the chunks' bytes.
func attest(b *testing.B, cosign string, files []string) (sum time.Duration, of int) {
	b.Helper()
	dir := b.TempDir()
	run := func(args ...string) time.Duration {
		cmd := exec.Command(cosign, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=", "HOME="+dir, "TUF_ROOT="+dir)
		return cpuOf(b, cmd)
	}
	run("generate-key-pair")
	for i, f := range files {
		data, err := os.ReadFile(f)
		must(b, err)
		of += len(data)
		body := data[:bytes.LastIndexByte(data[:len(data)-1], '\n')+1]
		var envelope struct {
			Payload string `json:"payload"`
		}
		must(b, json.Unmarshal(data[len(body):], &envelope))
		payload, err := base64.StdEncoding.DecodeString(envelope.Payload)
		must(b, err)
		var statement struct {
			Predicate json.RawMessage `json:"predicate"`
		}
		must(b, json.Unmarshal(payload, &statement))
		blob, predicate := filepath.Join(dir, fmt.Sprint(i)), filepath.Join(dir, fmt.Sprint(i, ".json"))
		must(b, errors.Join(os.WriteFile(blob, body, 0o600), os.WriteFile(predicate, statement.Predicate, 0o600)))
		sum += run("attest-blob", "--yes", "--key", "cosign.key", "--predicate", predicate, "--type", evidence.PredicateType,
			"--tlog-upload=false", "--use-signing-config=false", "--new-bundle-format", "--bundle", blob+".bundle", blob)
	}
	return sum, of
}

// pacedSealing is the child whose fsyncs are counted: lines that come one by one.
func pacedSealing(dir string) error {
	s, _, err := sealSpool(dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	tick := time.NewTicker(pacedEvery)
	defer tick.Stop()
	n := 0
	for end := time.After(pacedFor); ; {
		select {
		case <-tick.C:
			n++
			if err := s.Append(fmt.Sprintf("%032x", n%8), siteLines(n%8, 1)); err != nil {
				return err
			}
			continue
		case <-end:
		}
		break
	}
	cancel()
	return errors.Join(<-done, s.Close())
}

// fsyncs counts those of lines that come one by one, which is the most that there are
// of them a second: what comes faster shares them.
func fsyncs(b *testing.B) {
	b.Helper()
	strace := need.Command(b, "strace")[0]
	self, err := os.Executable()
	must(b, err)
	out := filepath.Join(b.TempDir(), "calls")
	cmd := exec.Command(strace, "-f", "--seccomp-bpf", "-o", out, "-e", "trace=fsync,fdatasync", self)
	cmd.Env = append(os.Environ(), "PROBITY_BENCH_SEAL="+b.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	cpuOf(b, cmd)
	took := max(pacedFor, time.Since(began)) // on a busy machine it takes longer, and there are fewer
	calls, err := os.ReadFile(out)
	must(b, err)
	full, data := bytes.Count(calls, []byte(" fsync(")), bytes.Count(calls, []byte(" fdatasync("))
	row(b, fmt.Sprintf("fsync and fdatasync, a line every %v", pacedEvery), "-", "%.0f/s and %.0f/s", float64(full)/took.Seconds(), float64(data)/took.Seconds())
}
