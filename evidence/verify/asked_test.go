package verify_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/tlog"
	"probity/evidence/verify"
)

// aWitness cosigns checkpoints (C2SP tlog-cosignature).
type aWitness struct {
	name string
	key  ed25519.PrivateKey
}

func newWitness(t testing.TB, name string) aWitness {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	return aWitness{name, key}
}

func (w aWitness) hash() []byte {
	pub := append([]byte{4}, w.key.Public().(ed25519.PublicKey)...)
	sum := sha256.Sum256(append([]byte(w.name+"\n"), pub...))
	return sum[:4]
}

// line is the witness in a file of witnesses.
func (w aWitness) line() string {
	pub := append([]byte{4}, w.key.Public().(ed25519.PublicKey)...)
	return fmt.Sprintf("%s+%x+%s", w.name, w.hash(), base64.StdEncoding.EncodeToString(pub))
}

func (w aWitness) cosign(checkpoint []byte, at uint64) []byte {
	text, _, _ := bytes.Cut(checkpoint, []byte("\n\n"))
	sig := ed25519.Sign(w.key, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s\n", at, text))
	b := binary.BigEndian.AppendUint64(w.hash(), at)
	return fmt.Appendf(bytes.Clone(checkpoint), "— %s %s\n", w.name, base64.StdEncoding.EncodeToString(append(b, sig...)))
}

func (w aWitness) list(t testing.TB) []*tlog.Witness {
	t.Helper()
	list, err := verify.ParseWitnesses([]byte("# who watches\n\n" + w.line() + "\n"))
	must(t, err)
	return list
}

// Who names witnesses wants to be told that one of them has seen the log.
func TestWitnesses(t *testing.T) {
	base := newTheNode(t)
	w, other := newWitness(t, "witness.test/w1"), newWitness(t, "witness.test/w2")
	const at = 1_700_000_000
	spoiled := func(b []byte) []byte { // another signature, and still base64
		b = bytes.Clone(b)
		if at := &b[len(b)-10]; *at == 'A' {
			*at = 'B'
		} else {
			*at = 'A'
		}
		return b
	}
	for _, c := range []struct {
		why    string
		own    func([]byte) []byte // what becomes of the log's own checkpoint
		kept   func([]byte) []byte // and of the one that is kept, nil if none is
		want   []verify.Kind
		leaves uint64 // witnessed
	}{
		{"nobody has cosigned", nil, nil, kinds(verify.Unwitnessed), 0},
		{"another witness has", nil, func(b []byte) []byte { return other.cosign(b, at) }, kinds(verify.Unwitnessed), 0},
		{"a kept checkpoint", nil, func(b []byte) []byte { return w.cosign(b, at) }, nil, 10},
		{"two witnesses, one is named", nil, func(b []byte) []byte { return w.cosign(other.cosign(b, at), at) }, nil, 10},
		{"the log's own checkpoint", func(b []byte) []byte { return w.cosign(b, at) }, nil, nil, 15},
		{"a signature that is not the witness's", nil, func(b []byte) []byte { return spoiled(w.cosign(b, at)) }, kinds(verify.Unwitnessed), 0},
		{"the same in the log", func(b []byte) []byte { return spoiled(w.cosign(b, at)) }, nil, kinds(verify.Unwitnessed), 0},
		{"at no time", nil, func(b []byte) []byte { return w.cosign(b, 1<<62) }, kinds(verify.Unwitnessed), 0},
		{"a cosignature under another state", nil, func(b []byte) []byte {
			lines := bytes.SplitAfter(w.cosign(base.last, at), []byte("\n"))
			return append(bytes.Clone(b), lines[len(lines)-2]...)
		}, kinds(verify.Unwitnessed), 0},
	} {
		t.Run(c.why, func(t *testing.T) {
			n := base.copied(t)
			opts := verify.Options{Witnesses: w.list(t)}
			if c.own != nil {
				edit(t, filepath.Join(n.dir, "log", "checkpoint"), c.own)
			}
			if c.kept != nil {
				k, err := verify.ParseKept("kept", c.kept(n.kept))
				must(t, err)
				opts.Kept = append(opts.Kept, k)
			}
			rep, err := verify.Path(t.Context(), []string{n.dir}, n.signer.Public(), opts)
			must(t, err)
			if got := namesOf(rep.Findings); !slices.Equal(got, c.want) {
				t.Fatalf("found %v, want %v: %v", got, c.want, rep.Findings)
			}
			if c.want != nil {
				return
			}
			said := rep.Logs[0].Witnessed
			if len(said) != 1 || said[0].Witness != w.name || said[0].At.Std().Unix() != at || said[0].Leaves != c.leaves {
				t.Errorf("%+v", said)
			}
			var table bytes.Buffer
			must(t, rep.WriteTable(&table))
			if want := fmt.Sprintf("witnessed by %s at 2023-11-14T22:13:20.000Z, up to %d leaves", w.name, c.leaves); !strings.Contains(table.String(), want) {
				t.Errorf("no %q in\n%s", want, table.String())
			}
		})
	}
	// A witness can speak only for a log.
	rep, err := verify.Path(t.Context(), base.chunks(t), base.signer.Public(), verify.Options{Witnesses: w.list(t)})
	if got := namesOf(rep.Findings); err != nil || !slices.Equal(got, kinds(verify.Unwitnessed)) {
		t.Errorf("files alone: %v, %v", rep.Findings, err)
	}
}

func TestParseWitnesses(t *testing.T) {
	w := newWitness(t, "witness.test/w1")
	for why, text := range map[string]string{
		"empty": "", "only a comment": "# x\n", "no key": "witness\n", "twice": w.line() + "\n" + w.line(), "another hash": strings.Replace(w.line(), "+", "+0", 1),
		"something behind": w.line() + " x",
	} {
		if list, err := verify.ParseWitnesses([]byte(text)); err == nil {
			t.Errorf("%s: %d witnesses", why, len(list))
		}
	}
	var many strings.Builder
	for i := range 65 {
		many.WriteString(newWitness(t, fmt.Sprint("w", i)).line() + "\n")
	}
	if _, err := verify.ParseWitnesses([]byte(many.String())); err == nil {
		t.Error("65 witnesses are taken")
	}
}

func FuzzWitnesses(f *testing.F) {
	f.Add([]byte("# x\n" + newWitness(f, "w").line()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if list, err := verify.ParseWitnesses(b); (err == nil) != (len(list) > 0) {
			t.Error(len(list), err)
		}
	})
}

// asked are chunks with a run of two images, in a spool without a log.
func asked(t *testing.T, opts verify.Options, more ...evidence.Line) verify.Report {
	t.Helper()
	s, dir := signer(t), t.TempDir()
	_, lines := vectorLines(t)
	name, data := chunk(t, s, 1, append(lines, more...), nil)
	put(t, dir, name, data)
	rep, err := verify.Path(t.Context(), []string{dir}, s.Public(), opts)
	must(t, err)
	return rep
}

// What was not asked for is checked, and not listed.
func TestSinceAndImage(t *testing.T) {
	_, lines := vectorLines(t)
	first, second := lines[0].(*evidence.Coverage), lines[4].(*evidence.Coverage)
	end := first.To.Std() // the second run goes on a millisecond longer
	for _, c := range []struct {
		why        string
		opts       verify.Options
		rows, gaps int
		of         string // the only run
	}{
		{"all", verify.Options{}, 5, 2, ""},
		{"since before", verify.Options{Since: end.Add(-time.Hour)}, 5, 2, ""},
		{"since the end of the first", verify.Options{Since: end}, 5, 1, ""},
		{"since the end of the second", verify.Options{Since: second.To.Std()}, 2, 1, second.RunID},
		{"since later", verify.Options{Since: end.Add(time.Hour)}, 0, 1, ""},
		{"an image by its digest", verify.Options{Images: []string{first.ImageDigest}}, 3, 2, first.RunID},
		{"an image by its name", verify.Options{Images: []string{second.Image}}, 2, 1, second.RunID},
		{"both", verify.Options{Images: []string{second.Image, first.ImageDigest}}, 5, 2, ""},
		{"half of a name", verify.Options{Images: []string{"demo"}}, 0, 1, ""},
		{"no name", verify.Options{Images: []string{""}}, 0, 1, ""},
	} {
		t.Run(c.why, func(t *testing.T) {
			rep := asked(t, c.opts)
			if !rep.Sound() || len(rep.Rows) != c.rows || len(rep.Gaps) != c.gaps || rep.Lines != 9 || rep.Runs != 2 {
				t.Fatalf("%d rows, %d gaps, %v", len(rep.Rows), len(rep.Gaps), rep.Findings)
			}
			for _, r := range rep.Rows {
				if c.of != "" && r.RunID != c.of {
					t.Errorf("%+v", r)
				}
			}
			var table bytes.Buffer
			must(t, rep.WriteTable(&table))
			if said := strings.Contains(table.String(), "No container of the image"); said != (c.rows == 0 && c.opts.Images != nil) {
				t.Errorf("%s", table.String())
			}
			if said := strings.Contains(table.String(), "since: "); said == c.opts.Since.IsZero() {
				t.Errorf("%s", table.String())
			}
			if _, err := json.Marshal(rep); err != nil {
				t.Error(err)
			}
		})
	}
}

// What was not asked for is not left unchecked.
func TestNarrowedIsChecked(t *testing.T) {
	n := newTheNode(t)
	edit(t, n.chunks(t)[0], func(b []byte) []byte { return replaced(t, b, "/bin/f", "/bin/g") })
	rep, err := verify.Path(t.Context(), []string{n.dir}, n.signer.Public(), verify.Options{Since: time.Now().Add(time.Hour), Images: []string{"x"}})
	if err != nil || rep.Sound() || len(rep.Rows) != 0 {
		t.Errorf("%v, %v", rep.Findings, err)
	}
}

// Everything for which what is listed may not be all that happened is a finding, and
// says so.
func TestRequireComplete(t *testing.T) {
	base := newTheNode(t)
	complete := verify.Options{RequireComplete: true}
	for _, c := range []struct {
		why  string
		opts verify.Options
		do   func(t *testing.T, n *theNode)
		want []string // in the findings, in order
	}{
		{"complete", complete, func(*testing.T, *theNode) {}, nil},
		{"the same, and it is not asked for", verify.Options{}, func(*testing.T, *theNode) {}, nil},
		{"an image that is not there", verify.Options{RequireComplete: true, Images: []string{"x"}}, func(*testing.T, *theNode) {}, []string{"no container of the image x"}},
		{"removed by the node itself", complete, func(t *testing.T, n *theNode) { n.buried(t) }, []string{"1 chunk of "}},
		{"the log before is not here", complete, func(t *testing.T, n *theNode) { n.startedOver(t) }, []string{", which was before"}},
	} {
		t.Run(c.why, func(t *testing.T) {
			n := base.copied(t)
			c.do(t, n)
			rep, err := verify.Path(t.Context(), []string{n.dir}, n.signer.Public(), c.opts)
			must(t, err)
			saysIncomplete(t, rep, c.want)
		})
	}
	rep, err := verify.Path(t.Context(), base.chunks(t), base.signer.Public(), complete)
	must(t, err)
	saysIncomplete(t, rep, []string{"nobody can know: 9 chunks in no log"})
	name := filepath.Join(t.TempDir(), "x")
	must(t, os.WriteFile(name, nil, 0o600))
	if rep, _ := verify.Path(t.Context(), []string{name}, base.signer.Public(), complete); !slices.ContainsFunc(rep.Findings, func(f verify.Finding) bool { return strings.Contains(f.Reason, "no sound chunk") }) {
		t.Errorf("%v", rep.Findings)
	}
}

func saysIncomplete(t *testing.T, rep verify.Report, want []string) {
	t.Helper()
	if len(rep.Findings) != len(want) {
		t.Fatalf("%v, want %q", rep.Findings, want)
	}
	for i, f := range rep.Findings {
		if f.Kind != verify.Incomplete || !strings.Contains(f.Reason, want[i]) || f.File != "" {
			t.Errorf("%v, want %q", f, want[i])
		}
	}
	var table bytes.Buffer
	must(t, rep.WriteTable(&table))
	if strings.Contains(table.String(), "NOT COMPLETE: ") != (len(want) > 0) || strings.Contains(table.String(), "NOT SOUND") {
		t.Error(table.String())
	}
}

// What the rows say is held to it too.
func TestRequireCompleteOfRows(t *testing.T) {
	r := newShortRun(t)
	gap := r.gap("n", evidence.GapRuntimeDisconnected, 0, time.Second)
	gap.Scope, gap.Source, gap.RunID, gap.ContainerID = evidence.ScopeSource, "nri", "", ""
	var got []string
	dropped := *gap
	dropped.GapID, dropped.Scope, dropped.Source, dropped.Reason, dropped.Count.N = "m", evidence.ScopeNode, "", evidence.GapSpoolDropped, 7
	for _, f := range asked(t, verify.Options{RequireComplete: true}, gap, &dropped).Findings {
		if f.Kind != verify.Incomplete {
			t.Errorf("%v", f)
		}
		got = append(got, f.Reason)
	}
	want := []string{
		"containers may have lived unseen: runtimeDisconnected",
		"containers may have lived unseen: runtimeDisconnected",
		"containers may have lived unseen: spoolDropped (node), from ",
		"probe data-volume of container shop/web-0/web-ü\"<&> 111111111111: 1 of 1 row not covered throughout, the first is partial (search incomplete) (gaps: fileChanged)",
		"probe data-volume of container shop/web-0/web-ü\"<&> 111111111111: not all files were searched: /data is a volume",
		"probe libgreet-hello of container shop/web-0/web-ü\"<&> 111111111111: 1 of 1 row not covered throughout, the first is hit",
		"nobody can know: 1 chunk in no log",
	}
	if len(got) != len(want) {
		t.Fatalf("%d findings:\n%s", len(got), strings.Join(got, "\n"))
	}
	for i := range want {
		if !strings.Contains(got[i], want[i]) {
			t.Errorf("%q, want %q", got[i], want[i])
		}
	}
}

// buried is a node that has three chunks and removes the third.
func (n *theNode) buried(t testing.TB) {
	t.Helper()
	list := n.entries(t)[1:4] // behind the epoch
	n.insider(t, func(add func(evidence.Leaf)) {
		for _, e := range list {
			l, err := evidence.DecodeLeaf(string(e))
			must(t, err)
			add(l)
		}
		name := strings.TrimSuffix(filepath.Base(n.chunks(t)[2]), ".ndjson")
		add(&evidence.TombstoneLeaf{Chunk: name, Of: 3, Reason: evidence.TombstoneAcknowledged})
	})
	for _, p := range n.chunks(t)[2:] {
		must(t, os.Remove(p))
	}
}

// startedOver is the node after its state was lost: a new log that names the one before,
// of which nothing is left.
func (n *theNode) startedOver(t testing.TB) {
	t.Helper()
	must(t, os.Remove(filepath.Join(n.dir, "log", "checkpoint")))
	n.life(t, 10)
	for _, p := range n.chunks(t)[:9] {
		must(t, os.Remove(p))
	}
	must(t, os.RemoveAll(filepath.Join(n.dir, "retired")))
}

// A set whose list of entries is not whole does not say all that happened, though it
// was covered throughout.
func TestRequireCompleteOfSets(t *testing.T) {
	s := signer(t)
	for _, c := range []struct {
		reason evidence.GapReason
		whole  bool
	}{{evidence.GapSetFull, false}, {evidence.GapClockStep, true}} {
		var lines []evidence.Line
		for _, l := range lines2(t) {
			switch v := l.(type) {
			case *evidence.Coverage:
				lines = append(lines, v)
			case *evidence.Observation:
				if v.Set == evidence.SetSyscalls {
					v.Complete, v.Gaps = true, nil
					lines = append(lines, v, &evidence.Gap{GapID: "g", Scope: evidence.ScopeRun, Reason: c.reason, From: v.From, RunID: v.RunID, ContainerID: v.ContainerID})
				}
			}
		}
		dir := t.TempDir()
		name, data := chunk2(t, 1, lines)
		put(t, dir, name, data)
		rep, err := verify.Path(t.Context(), []string{dir}, s.Public(), verify.Options{RequireComplete: true})
		must(t, err)
		said := slices.ContainsFunc(rep.Findings, func(f verify.Finding) bool { return strings.Contains(f.Reason, "gaps: "+string(c.reason)) })
		if len(rep.Rows) != 1 || said == c.whole {
			t.Errorf("%s: %d rows, %v", c.reason, len(rep.Rows), rep.Findings)
		}
	}
}

// A window that a later gap ends is not covered throughout, though the site's line does
// not know of it.
func TestRequireCompleteOfLaterGaps(t *testing.T) {
	r, s := newShortRun(t), signer(t)
	for _, c := range []struct {
		why   string
		later []evidence.Line
		said  bool
	}{
		{"none", []evidence.Line{r.covered(9 * time.Second)}, false},
		{"the agent was killed, and nothing came after it", []evidence.Line{r.gap("g", evidence.GapAgentDown, time.Second, 0)}, true},
		{"the agent was killed, and the next one found that the run had ended", []evidence.Line{r.gap("g", evidence.GapAgentDown, time.Second, 3*time.Second), r.covered(9 * time.Second)}, true},
		{"the file changed", []evidence.Line{r.gap("g", evidence.GapFileChanged, time.Second, 0), r.covered(9 * time.Second)}, true},
		{"the machine slept", []evidence.Line{&evidence.Gap{GapID: "g", Scope: evidence.ScopeNode, Reason: evidence.GapSuspended, From: r.at(time.Second), To: r.at(2 * time.Second)}, r.covered(9 * time.Second)}, false},
		{"detail was lost", []evidence.Line{r.gap("g", evidence.GapRingFull, time.Second, 0), r.covered(9 * time.Second)}, false},
	} {
		spool := t.TempDir()
		for i, lines := range [][]evidence.Line{{r.covered(0), r.site}, c.later} {
			name, data := chunk3(t, uint64(i+1), lines)
			put(t, spool, name, data)
		}
		rep, err := verify.Path(t.Context(), []string{spool}, s.Public(), verify.Options{RequireComplete: true})
		must(t, err)
		said := slices.ContainsFunc(rep.Findings, func(f verify.Finding) bool {
			return strings.Contains(f.Reason, "not covered throughout, the first is armedNoHit") || strings.Contains(f.Reason, "lived unseen")
		})
		if said != c.said {
			t.Errorf("%s: %v", c.why, rep.Findings)
		}
	}
}
