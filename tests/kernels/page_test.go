package kernels

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"testing"
)

// The page says what the results say, and the results are what must be so.
func TestPageAgrees(t *testing.T) {
	b, err := os.ReadFile("../../docs/kernels.json")
	if err != nil {
		t.Fatal(err)
	}
	var m Matrix
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/kernels.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != m.Markdown() {
		t.Error("docs/kernels.md is not what docs/kernels.json makes; make test-kernels writes both")
	}
	machines, err := Machines()
	if err != nil {
		t.Fatal(err)
	}
	expected, err := Expected()
	if err != nil {
		t.Fatal(err)
	}
	for _, machine := range machines {
		i := slices.IndexFunc(m.Kernels, func(k Kernel) bool { return k.Name == machine.Name })
		if i < 0 {
			t.Errorf("docs/kernels.json has no %s", machine.Name)
			continue
		}
		k := m.Kernels[i]
		if k.Release == "" || k.Arch != machine.Arch || k.Suite != machine.Suite {
			t.Errorf("%s: %s, %s, %s", machine.Name, k.Release, k.Arch, k.Suite)
		}
		want := expected.Machines[machine.Name]
		judge(t, "docs/kernels.json, "+machine.Name+": ", want, k.Report)
		if want.WithoutTypes != nil {
			if k.WithoutTypes == nil || k.GivenTypes == nil {
				t.Errorf("docs/kernels.json, %s: nothing of the kernel without types", machine.Name)
				continue
			}
			judge(t, "docs/kernels.json, "+machine.Name+" without types: ", *want.WithoutTypes, *k.WithoutTypes)
			judge(t, "docs/kernels.json, "+machine.Name+" with given types: ", *want.GivenTypes, *k.GivenTypes)
		}
		for _, pkg := range engine {
			if k.Tests[pkg] == 0 {
				t.Errorf("docs/kernels.json, %s: no test of %s passed", machine.Name, pkg)
			}
		}
	}
}
