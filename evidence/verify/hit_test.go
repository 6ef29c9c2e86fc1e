package verify_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/verify"
)

// A hit stays, whatever later lines say and in whatever order they are read: of the same
// agent that is a finding, and of one that took the run up it may be all that it knows.
func TestHitStays(t *testing.T) {
	r, s := newShortRun(t), signer(t)
	n := evidence.Uint64(3)
	hit := *r.site
	hit.State, hit.Count, hit.FirstAt, hit.LastAt, hit.Complete = evidence.Hit, &n, hit.To, hit.To, true
	quiet := func(d time.Duration) []evidence.Line {
		o := *r.site
		o.To = r.at(d)
		return []evidence.Line{r.covered(d), &o}
	}
	executed := []evidence.Line{r.covered(0), &hit}
	down := r.gap("g", evidence.GapAgentDown, time.Second, 2*time.Second)
	opened := r.gap("g", evidence.GapAgentDown, time.Second, 0)
	for _, c := range []struct {
		why      string
		chunks   [3][]evidence.Line
		found    string // chunk of the finding
		complete bool
	}{
		{"taken back", [3][]evidence.Line{quiet(0), executed, quiet(5 * time.Second)}, "3", false},
		{"taken back twice", [3][]evidence.Line{executed, quiet(3 * time.Second), quiet(5 * time.Second)}, "3", false},
		{"and said again", [3][]evidence.Line{executed, quiet(3 * time.Second), executed}, "", true},
		{"hit once more", [3][]evidence.Line{quiet(0), executed, executed}, "", true},
		{"by another agent", [3][]evidence.Line{quiet(0), executed, append([]evidence.Line{down}, quiet(5*time.Second)...)}, "", false},
		{"between two lines of a gap, both by one agent", [3][]evidence.Line{{opened}, append(executed, quiet(3*time.Second)...), append(quiet(5*time.Second), down)}, "3", false},
		{"by the agent that came after another", [3][]evidence.Line{{down}, executed, quiet(5 * time.Second)}, "3", false},
	} {
		dir := t.TempDir()
		var files [3]string
		for i, lines := range c.chunks {
			name, data := chunk3(t, uint64(i+1), lines)
			put(t, dir, name, data)
			files[i] = filepath.Join(dir, "ready", filepath.FromSlash(evidence.ChunkPath(name)))
		}
		for _, order := range [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
			rep, err := verify.Path(t.Context(), []string{files[order[0]], files[order[1]], files[order[2]]}, s.Public(), verify.Options{Workers: 1})
			if err != nil || len(rep.Rows) != 1 {
				t.Fatal(c.why, rep.Findings, err, len(rep.Rows))
			}
			if row := rep.Rows[0]; row.State != evidence.Hit || *row.Count != 3 || row.Complete != c.complete {
				t.Errorf("%s, read as %v: %s, complete %v", c.why, order, row.State, row.Complete)
			}
			switch {
			case c.found == "" && rep.Sound():
			case c.found != "" && len(rep.Findings) == 1 && rep.Findings[0].Kind == verify.HitTakenBack && rep.Findings[0].File == files[2] && rep.Findings[0].Line == 3:
			default:
				t.Errorf("%s, read as %v: %v", c.why, order, rep.Findings)
			}
		}
	}
}

// An agent whose state and spool were lost numbers its chunks from 1 again. Where they were
// carried to, what it says comes after what the one before said all the same.
func TestStateWasLost(t *testing.T) {
	var args [][]string
	var names []string
	var ours []bool
	for _, c := range []struct {
		why    string
		before []func(evidence.Clock) []evidence.Line
		after  func(evidence.Clock) []evidence.Line
		state  evidence.State
		sound  bool
	}{
		{"a hit that came later", []func(evidence.Clock) []evidence.Line{aRun(50), aRun(50), aRun(50)}, aHit(50), evidence.Hit, true},
		{"another state", []func(evidence.Clock) []evidence.Line{aRun(50), aRun(50), aRun(50)}, notArmed(50), evidence.NotArmed, true},
		{"a hit that was taken back", []func(evidence.Clock) []evidence.Line{aRun(50), aRun(50), aHit(50)}, aRun(50), evidence.Hit, false},
	} {
		n := nodeAt(t, t.TempDir())
		n.write(t, 50, c.before...)
		old := t.TempDir()
		must(t, errors.Join(os.CopyFS(old, os.DirFS(n.dir)), os.RemoveAll(n.dir), os.RemoveAll(n.state)))
		n.write(t, 50, c.after)
		must(t, errors.Join(os.CopyFS(filepath.Join(n.dir, "ready"), os.DirFS(filepath.Join(old, "ready"))), os.CopyFS(filepath.Join(n.dir, "retired", "x"), os.DirFS(filepath.Join(old, "log")))))
		rep, err := check(t, n.signer.Public(), n.dir)
		if err != nil || rep.Sound() != c.sound || len(rep.Rows) != 1 || rep.Rows[0].State != c.state || rep.Rows[0].Complete != (c.sound && c.state == evidence.Hit) || len(rep.Logs) != 2 {
			t.Errorf("%s: %v, %v, %+v", c.why, rep.Findings, err, rep.Rows)
		}
		pub := filepath.Join(t.TempDir(), "node.pub")
		must(t, os.WriteFile(pub, n.signer.Public().PEM(), 0o600))
		args, names, ours = append(args, []string{pub, n.dir}), append(names, c.why), append(ours, rep.Sound())
	}
	agree(t, args, names, ours, 2)
}
