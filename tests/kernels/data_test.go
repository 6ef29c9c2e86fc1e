package kernels

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"probity/bpf/policy"
	"probity/tests/kernels/guest"
	"probity/tests/need"
)

// Every kernel has its expectations, for every probe type, and nothing else has.
func TestExpectationsCover(t *testing.T) {
	machines, err := Machines()
	if err != nil {
		t.Fatal(err)
	}
	expected, err := Expected()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, m := range machines {
		names[m.Name] = true
		of := expected.Machines[m.Name]
		for _, probeType := range policy.Types {
			want, ok := of.ProbeTypes[probeType]
			if !ok {
				t.Errorf("expect.json says nothing of %s on %s", probeType, m.Name)
			} else if (want.Reason == "") != (want.Used != "" && want.Mechanism != "") {
				t.Errorf("%s on %s: neither how it works nor why not: %+v", probeType, m.Name, want)
			}
		}
		if of.WithoutTypes == nil != (of.GivenTypes == nil) {
			t.Errorf("%s: without its types and with given ones are tried together", m.Name)
		}
		for _, other := range machines { // what is promised is the same everywhere
			for check := range expected.Machines[other.Name].Checks {
				if _, ok := of.Checks[check]; !ok {
					t.Errorf("expect.json says nothing of %q on %s, and does on %s", check, m.Name, other.Name)
				}
			}
		}
	}
	for name := range expected.Machines {
		if !names[name] {
			t.Errorf("expect.json has %s, and machines.txt has not", name)
		}
	}
	for test, why := range expected.Skips {
		machine, _, _ := strings.Cut(test, " ")
		if why == "" || !names[machine] {
			t.Errorf("skip %q: %q", test, why)
		}
	}
}

// Both ways: what is missing, and what is more than expected.
func TestJudge(t *testing.T) {
	good := guest.Result{Name: "uprobe", ProbeType: "uprobe", Works: true, Used: "uprobe", Mechanism: "uprobeMulti", CountsMisses: true}
	bad := guest.Result{Name: "kprobe", ProbeType: "kprobe", Reason: "kernelUnsupported: no"}
	holds := guest.Check{Name: "stack", Works: true, Used: "uprobe"}
	not := guest.Check{Name: "set files", Reason: "kernelUnsupported: no"}
	want := ExpectMachine{Sites: 256, Checks: map[string]ExpectCheck{"stack": {Used: "uprobe"}, "set files": {Reason: "kernelUnsupported"}}, ProbeTypes: map[string]ExpectType{
		"uprobe": {Used: "uprobe", Mechanism: "uprobeMulti", CountsMisses: true},
		"kprobe": {Reason: "kernelUnsupported"},
	}}
	for name, c := range map[string]struct {
		change func(*guest.Report)
		want   string // in the one finding
	}{
		"as expected":        {func(*guest.Report) {}, ""},
		"stopped working":    {func(r *guest.Report) { r.Results[0].Works = false }, "must work"},
		"began to work":      {func(r *guest.Report) { r.Results[1].Works = true }, "says that it does not"},
		"another reason":     {func(r *guest.Report) { r.Results[1].Reason = "attachFailed" }, "want \"kernelUnsupported\""},
		"fell back":          {func(r *guest.Report) { r.Results[0].Used = "kprobe" }, "served by kprobe"},
		"another way":        {func(r *guest.Report) { r.Results[0].Mechanism = "perfLink" }, "served by uprobe (perfLink)"},
		"counts less":        {func(r *guest.Report) { r.Results[0].CountsMisses = false }, "counts misses"},
		"not tried":          {func(r *guest.Report) { r.Results = r.Results[:1] }, "was not tried"},
		"unknown":            {func(r *guest.Report) { r.Results = append(r.Results, guest.Result{Name: "new"}) }, "says nothing"},
		"a broken promise":   {func(r *guest.Report) { r.Checks[0].Works = false }, "must hold"},
		"a kept one":         {func(r *guest.Report) { r.Checks[1].Works = true }, "says that it does not"},
		"seen otherwise":     {func(r *guest.Report) { r.Checks[0].Used = "kprobe" }, "by kprobe"},
		"not for that":       {func(r *guest.Report) { r.Checks[1].Reason = "attachFailed" }, "want \"kernelUnsupported\""},
		"not checked":        {func(r *guest.Report) { r.Checks = r.Checks[:1] }, "was not checked"},
		"an unknown promise": {func(r *guest.Report) { r.Checks = append(r.Checks, guest.Check{Name: "new"}) }, "says nothing"},
		"another bound":      {func(r *guest.Report) { r.Sites.Most = 0 }, "bound on sites"},
	} {
		t.Run(name, func(t *testing.T) {
			r := guest.Report{Results: []guest.Result{good, bad}, Checks: []guest.Check{holds, not}, Sites: guest.Sites{Most: 256}}
			c.change(&r)
			findings := want.Judge(r)
			if c.want == "" && len(findings) == 0 {
				return
			}
			if len(findings) != 1 || !strings.Contains(findings[0], c.want) || c.want == "" {
				t.Errorf("findings %q, want one with %q", findings, c.want)
			}
		})
	}
}

// A machine that stops in the middle is an error that shows its last words; a
// line of the kernel in between is none of ours.
func TestListen(t *testing.T) {
	whole := "BIOS\r\n" + guest.Mark + `{"kind":"up","release":"6.1"}` + "\r\n[ 1.0] kernel\n" +
		guest.Mark + `{"kind":"out","step":"a","text":"hello"}` + "\n" + guest.Mark + `{"kind":"end","step":"a","exit":3,"ms":1500}` + "\n" +
		guest.Mark + `{"kind":"down"}` + "\n"
	var b Boot
	if err := b.listen(strings.NewReader(whole), time.Now(), func(guest.Line) {}); err != nil {
		t.Fatal(err)
	}
	s, ok := b.Step("a")
	if !ok || !s.Ended || s.Exit != 3 || s.Took.Milliseconds() != 1500 || !slices.Equal(s.Output, []string{"hello"}) || b.Release != "6.1" {
		t.Errorf("%+v, %+v", b, s)
	}
	for name, c := range map[string]struct{ console, want string }{
		"cut":     {whole[:strings.LastIndex(whole, guest.Mark)] + "Kernel panic\n", "Kernel panic"},
		"failed":  {guest.Mark + `{"kind":"fail","text":"mount"}` + "\n" + whole, "mount"},
		"garbled": {guest.Mark + "{\"kind\n" + whole, "console line"},
	} {
		var b Boot
		if err := b.listen(strings.NewReader(c.console), time.Now(), func(guest.Line) {}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// cpio itself reads what we pack.
func TestArchive(t *testing.T) {
	var buf bytes.Buffer
	a := newArchive(&buf)
	a.file("/a/b/c", 0o755, []byte("12345"))
	a.file("/a/d", 0o600, nil)
	if err := a.end(); err != nil {
		t.Fatal(err)
	}
	cpio := need.Command(t, "cpio")[0]
	dir := t.TempDir()
	cmd := exec.Command(cpio, "--extract", "--make-directories", "--quiet")
	cmd.Dir, cmd.Stdin = dir, &buf
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(dir, "a/b/c"))
	info, statErr := os.Stat(filepath.Join(dir, "a/b/c"))
	if err != nil || statErr != nil || string(got) != "12345" || info.Mode().Perm() != 0o755 {
		t.Errorf("%q, %v, %v, %v", got, err, info, statErr)
	}
}
