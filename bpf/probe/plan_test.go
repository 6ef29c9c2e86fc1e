package probe

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"probity/bpf/policy"
	"probity/evidence"
	"probity/runtime/image"
	"probity/tests/need"
)

// one is a tree that holds one file, which every pattern matches.
type one struct {
	layer string
	*Inspector
}

func (f one) Glob(string) ([]image.Match, bool, string) {
	return []image.Match{{Path: "/bin/target", Layer: image.Layer{Dir: f.layer}, Rel: "bin/target", Kind: "regular", Origin: "imageLayer"}}, true, ""
}

// A real program for another machine: qemu-user runs such, this kernel does not.
func TestForeignArchitecture(t *testing.T) {
	need.Command(t, "go")
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	layer := t.TempDir()
	must(t, os.WriteFile(layer+"/main.go", []byte("package main\n\nfunc main() { println(\"hello\") }\n"), 0o600))
	must(t, os.Mkdir(layer+"/bin", 0o755))
	cmd := exec.Command("go", "build", "-o", "bin/target", "main.go")
	cmd.Dir = layer
	cmd.Env = append(os.Environ(), "GOARCH="+other, "CGO_ENABLED=0", "GO111MODULE=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	plan := MakePlan([]policy.Probe{{ID: "p", Type: "uprobe", File: "/bin/*", Symbols: []string{"main.main"}, Offsets: []policy.Offset{{Entry: true}}}},
		one{layer, &Inspector{}}, Host())
	// One line for the file: where in it its sites would be is not said.
	if len(plan.Sites) != 1 || plan.Sites[0].Reason != evidence.ForeignArchitecture || plan.Sites[0].Detail == "" || plan.Sites[0].HasOffset {
		t.Errorf("%+v", plan.Sites)
	}
	// It was looked for everywhere, and found.
	if !plan.Searches[0].Complete {
		t.Errorf("%+v", plan.Searches)
	}
}

// A layer on FUSE whose server never answers: nothing may touch it, not even
// a stat. The test would hang if anything did.
func TestRemoteFilesystem(t *testing.T) {
	layer := filepath.Join(t.TempDir(), "layer")
	must(t, os.Mkdir(layer, 0o755))
	need.DeadFUSE(t, layer)
	plan := MakePlan([]policy.Probe{symbols("hello", "goodbye")}, one{layer, &Inspector{}}, Host())
	if len(plan.Sites) != 1 || plan.Sites[0].Reason != evidence.RemoteFilesystem {
		t.Errorf("%+v", plan.Sites)
	}
	if s := plan.Searches[0]; s.Complete || s.Why == "" {
		t.Errorf("a file that was not read leaves the search complete: %+v", s)
	}
}

// Whatever a policy asks for, one coverage line can list it.
func TestManyProbes(t *testing.T) {
	var probes []policy.Probe
	for i := range 3 * MaxProbes {
		probes = append(probes, policy.Probe{ID: "p" + strconv.Itoa(i), Type: "tracepoint", Event: policy.ProcessExec})
	}
	longer := slices.Clone(probes)
	for i := range longer {
		longer[i].ID += strings.Repeat("x", 120)
	}
	if n := len(Refuse(longer, evidence.SharedCgroup, "why").Searches); n == 0 || n >= MaxProbes || n*(probeBytes+120) > maxProbeBytes {
		t.Errorf("%d probes with long ids", n)
	}
	for name, plan := range map[string]Plan{
		"planned": MakePlan(probes, one{t.TempDir(), &Inspector{}}, Host()),
		"refused": Refuse(probes, evidence.SharedCgroup, "why"),
	} {
		if n := len(plan.Searches); n != MaxProbes {
			t.Errorf("%s: %d searches, at most %d fit into a line", name, n, MaxProbes)
		}
		if n := len(plan.Sites); n != len(probes) {
			t.Errorf("%s: %d sites for %d probes", name, n, len(probes))
		}
		over := slices.IndexFunc(plan.Sites, func(s Site) bool { return s.Reason == evidence.OverBudget })
		if over != MaxProbes {
			t.Errorf("%s: the first over budget is %d", name, over)
		}
	}
}

// What is in the kernel has a site for each place that the policy names, and
// no file; a set has one.
func TestPlanKernel(t *testing.T) {
	plan := MakePlan([]policy.Probe{
		{ID: "a", Type: policy.Kprobe, Functions: []string{"do_exit", "vfs_read"}, Syscalls: []string{"openat"}},
		{ID: "b", Type: policy.RawTracepoint, Event: "sys_enter"},
		{ID: "c", Set: policy.SetNetwork},
	}, nil, Host())
	type site struct {
		id, function, event, set string
		syscall                  bool
		requested                evidence.ProbeType
	}
	var got []site
	for _, s := range plan.Sites {
		got = append(got, site{s.Probe.ID, s.Function, s.Event, s.Set, s.Syscall, s.Requested})
		if s.File != nil || s.HasOffset || s.Reason != "" {
			t.Errorf("%+v", s)
		}
	}
	want := []site{
		{"a", "do_exit", "", "", false, evidence.Kprobe}, {"a", "vfs_read", "", "", false, evidence.Kprobe}, {"a", "openat", "", "", true, evidence.Kprobe},
		{"b", "", "sys_enter", "", false, evidence.RawTracepoint},
		{"c", "", "", "network", false, evidence.Fentry},
	}
	for _, set := range policy.Sets {
		if setTypes[set] == "" {
			t.Errorf("set %s asks for no type", set)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	for _, s := range plan.Searches {
		if !s.Complete {
			t.Errorf("%+v", s)
		}
	}
}
