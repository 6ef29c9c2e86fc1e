package runtimes

import (
	"encoding/csv"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"probity/tests/plot"
)

var writeSoak = flag.Bool("write-soak", false, "have TestSoakPage write the pictures and the tables of docs/soak.md")

const soakPage, soakDir = "../../docs/soak.md", "../../docs/soak"

// The page says what the last soak's results say, and those are of one that found nothing.
func TestSoakPage(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(soakDir, "soak.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r soakResult
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Balance.Wrong) > 0 || r.Balance.Starts != r.Balance.Exact+r.Balance.Late+r.Balance.Unsure+r.Balance.Unseen || r.Balance.Starts == 0 {
		t.Errorf("not everything is accounted for: %+v", r.Balance)
	}
	pictures := soakPictures(t)
	page, err := os.ReadFile(soakPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(page), soakBegin)
	has, after, ok := strings.Cut(rest, soakEnd)
	if !ok {
		t.Fatal("docs/soak.md has no place for what is made")
	}
	if *writeSoak {
		pictures[soakPage] = before + soakBegin + r.page() + soakEnd + after
		for name, text := range pictures {
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	if has != r.page() {
		t.Error("docs/soak.md is not what docs/soak/soak.json makes")
	}
	for name, want := range pictures {
		if text, err := os.ReadFile(name); err != nil || string(text) != want {
			t.Errorf("%s is not what docs/soak/samples.csv makes: %v", name, err)
		}
	}
}

const soakBegin, soakEnd = "<!-- made by TestSoak -->\n", "<!-- end of what is made -->\n"

// soakPictures makes the pictures of the samples, by their paths.
func soakPictures(t *testing.T) map[string]string {
	t.Helper()
	f, err := os.Open(filepath.Join(soakDir, "samples.csv"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil || len(rows) < 2 || strings.Join(rows[0], ",") != sampleHead {
		t.Fatalf("%d samples: %v", len(rows), err)
	}
	column := map[string][]float64{}
	for _, row := range rows[1:] {
		for i, name := range rows[0] {
			v, err := strconv.ParseFloat(row[i], 64)
			if err != nil {
				t.Fatal(err)
			}
			column[name] = append(column[name], v)
		}
	}
	minutes := scaled(column["seconds"], 1./60)
	there := column["fds"] // 0 while there is no agent
	of := func(name string, by float64) []float64 {
		out := scaled(column[name], by)
		for i := range out {
			if there[i] == 0 {
				out[i] = math.NaN()
			}
		}
		return out
	}
	out := map[string]string{}
	for name, p := range map[string]struct {
		picture plot.Picture
		curves  []plot.Curve
	}{
		"memory": {plot.Picture{Title: "Memory of the agent, and runs that it watches", Y: "MiB, runs"}, []plot.Curve{{Name: "resident, MiB", Y: of("rssKiB", 1./1024)}, {Name: "live runs", Y: of("live", 1)}}},
		"objects": {plot.Picture{Title: "What the agent has open", Y: "number"}, []plot.Curve{
			{Name: "descriptors", Y: of("fds", 1)}, {Name: "goroutines", Y: of("goroutines", 1)}, {Name: "BPF links", Y: of("links", 1)}, {Name: "BPF maps", Y: of("maps", 1)}, {Name: "BPF programs", Y: of("programs", 1)},
		}},
		"containers": {plot.Picture{Title: "Containers that have ended, and agents", Y: "number"}, []plot.Curve{{Name: "containers", Y: column["containers"]}, {Name: "agents, times 100", Y: scaled(column["agent"], 100)}}},
		"spool":      {plot.Picture{Title: "The spool and its disk", Y: "MiB"}, []plot.Curve{{Name: "disk, used", Y: scaled(column["disk"], 1./(1<<20))}, {Name: "published chunks", Y: of("spool", 1./(1<<20))}, {Name: "waiting in memory", Y: of("waiting", 1./(1<<20))}}},
	} {
		p.picture.X, p.picture.Linear = "minutes", true
		out[filepath.Join(soakDir, name+".svg")] = p.picture.SVG(minutes, p.curves...)
	}
	return out
}

func scaled(values []float64, by float64) (out []float64) {
	for _, v := range values {
		out = append(out, v*by)
	}
	return out
}

// page is what is generated of docs/soak.md.
func (r soakResult) page() string {
	var b strings.Builder
	table := func(head string, rows ...[]any) {
		fmt.Fprintf(&b, "| %s | |\n|---|---:|\n", head)
		for _, row := range rows {
			fmt.Fprintf(&b, "| %v | %v |\n", row...)
		}
		b.WriteString("\n")
	}
	x := r.Balance
	fmt.Fprintf(&b, "`make soak FOR=%s SEED=%d` at commit %s.\n\n", r.For, r.Seed, r.Commit)
	var rows [][]any
	for _, name := range slices.Sorted(maps.Keys(r.Disturbed)) {
		rows = append(rows, []any{name, r.Disturbed[name]})
	}
	table("what happened to them", rows...)
	rows = [][]any{{"containers", x.Containers}, {"starts, with those started again", x.Starts}}
	for _, name := range slices.Sorted(maps.Keys(x.ByRuntime)) {
		rows = append(rows, []any{"of these " + name, x.ByRuntime[name]})
	}
	rows = append(rows,
		[]any{"starts that failed, because podman or containerd was killed", x.Refused},
		[]any{"runs in the evidence, each sealed once", x.Runs},
		[]any{"**exact**: armed before the first instruction, and each call counted", x.Exact},
		[]any{"calls of these, all counted", x.Called},
		[]any{"**late**: found running, which is a signed gap", x.Late},
		[]any{"calls of these, and how many were counted", fmt.Sprintf("%d, %d", x.CalledLate, x.CountedLate)},
		[]any{"**unseen**: started in a signed window without agent or runtime, and over soon after", x.Unseen},
		[]any{"**unsure**: what it did is not known, because the runtime was killed while it was asked", x.Unsure},
		[]any{"armed under a policy that a reload had put in force", x.Reloaded},
		[]any{"not accounted for, or wrong", len(x.Wrong)},
	)
	table("containers", rows...)
	rows = [][]any{{"chunks, each carried away, verified and acknowledged once", x.Chunks}, {"lines", x.Lines}}
	for _, name := range slices.Sorted(maps.Keys(x.Windows)) {
		rows = append(rows, []any{"windows of the node or a source: " + name, x.Windows[name]})
	}
	for _, name := range slices.Sorted(maps.Keys(x.Gaps)) {
		rows = append(rows, []any{"runs with a gap: " + name, x.Gaps[name]})
	}
	table("evidence", rows...)
	b.WriteString("| the agent, idle | at the beginning | at the end |\n|---|---:|---:|\n")
	for _, row := range []struct {
		name       string
		begin, end any
	}{
		{"descriptors", r.Begin.FDs, r.End.FDs}, {"goroutines", r.Begin.Goroutines, r.End.Goroutines}, {"BPF maps", r.Begin.Maps, r.End.Maps},
		{"BPF programs", r.Begin.Programs, r.End.Programs}, {"BPF links", r.Begin.Links, r.End.Links}, {"resident, KiB", r.Begin.RSS, r.End.RSS},
	} {
		fmt.Fprintf(&b, "| %s | %v | %v |\n", row.name, row.begin, row.end)
	}
	b.WriteString("\n")
	for _, name := range []string{"memory", "objects", "containers", "spool"} {
		fmt.Fprintf(&b, "![%s](soak/%s.svg)\n", name, name)
	}
	return b.String()
}
