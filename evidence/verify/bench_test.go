package verify_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"probity/evidence"
	"probity/evidence/verify"
	"probity/tests/need"
)

// manyLines is a spool of sound chunks: each has the first lines of 30 runs with 100
// sites each.
func manyLines(b *testing.B, chunks int) (spool string, files []string, lines int) {
	b.Helper()
	s := signer(b)
	spool = b.TempDir()
	for seq := range uint64(chunks) {
		_, base := vectorLines(b)
		all := base[:1]
		for i := range 3000 {
			o := *base[[]int{1, 5, 3}[i%3]].(*evidence.Observation)
			o.RunID = fmt.Sprintf("%032x", i/100)
			off := evidence.Uint64(seq<<32 | uint64(i))
			o.Offset = &off
			all = append(all, &o)
		}
		lines += len(all)
		name, data := chunk(b, s, seq+1, all, nil)
		files = append(files, put(b, spool, name, data))
	}
	return spool, files, lines
}

// processor is how many microseconds of processor time were used.
func processor(b *testing.B) float64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e3
}

// used is the same of a program, which has to succeed.
func used(b *testing.B, cmd *exec.Cmd) float64 {
	b.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return float64((cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Nanoseconds()) / 1e3
}

// BenchmarkVerify reports lines per second over a spool of sound chunks, and the
// processor time of a line, which other work on the machine does not change much:
// on C idle cores that is C/1e-6/(cpu-µs/line) lines per second. Beside it is what
// sha256sum takes for the same bytes, in turn.
func BenchmarkVerify(b *testing.B) {
	spool, files, lines := manyLines(b, 16)
	sha256sum := need.Command(b, "sha256sum")[0]
	var ours, sum, ratio []float64
	for b.Loop() {
		before := processor(b)
		rep, err := verify.Path(b.Context(), []string{spool}, signer(b).Public(), verify.Options{})
		if err != nil || !rep.Sound() {
			b.Fatal(rep.Findings, err)
		}
		ours = append(ours, (processor(b)-before)/float64(lines))
		b.StopTimer()
		sum = append(sum, used(b, exec.Command(sha256sum, files...))/float64(lines))
		ratio = append(ratio, ours[len(ours)-1]/sum[len(sum)-1])
		b.StartTimer()
	}
	middle := func(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }
	b.ReportMetric(float64(lines)*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
	b.ReportMetric(middle(ours), "cpu-µs/line")
	b.ReportMetric(middle(sum), "sha256sum-cpu-µs/line")
	b.ReportMetric(middle(ratio), "x-sha256sum")
}

// BenchmarkCosign verifies the same chunks by cosign, one by one as it does, and by
// us. Neither asks a network.
func BenchmarkCosign(b *testing.B) {
	cosign := need.Cosign(b)
	spool, files, lines := manyLines(b, 4)
	dir := b.TempDir()
	bundles, pub := filepath.Join(dir, "bundles"), filepath.Join(dir, "node.pub")
	s := signer(b)
	must(b, os.WriteFile(pub, s.Public().PEM(), 0o600))
	if rep, err := verify.Path(b.Context(), []string{spool}, s.Public(), verify.Options{Bundles: bundles}); err != nil || !rep.Sound() {
		b.Fatal(rep.Findings, err)
	}
	var ours, theirs float64
	for b.Loop() {
		before := processor(b)
		if rep, err := verify.Path(b.Context(), []string{spool}, s.Public(), verify.Options{}); err != nil || !rep.Sound() {
			b.Fatal(rep.Findings, err)
		}
		ours += processor(b) - before
		for _, f := range files {
			name := filepath.Join(bundles, strings.TrimSuffix(filepath.Base(f), ".ndjson"))
			cmd := exec.Command(cosign, "verify-blob-attestation", "--bundle", name+".sigstore.json", "--key", pub,
				"--type", evidence.PredicateType, "--insecure-ignore-tlog", name+".blob")
			cmd.Env = append(os.Environ(), "HOME="+dir, "TUF_ROOT="+dir)
			theirs += used(b, cmd)
		}
	}
	all := float64(lines) * float64(b.N)
	b.ReportMetric(ours/all, "cpu-µs/line")
	b.ReportMetric(theirs/all, "cosign-cpu-µs/line")
}
