package policy

import (
	"strings"
	"testing"

	"probity/runtime/container"
)

// What each probe requires comes of the policy and of itself.
func TestRequires(t *testing.T) {
	const two = "probes:\n  - {id: a, set: exec}\n  - {id: b, set: files%s}\n"
	for _, c := range []struct {
		fail, requires string
		want           [2]string
		closed         bool
	}{
		{"", "", [2]string{"", ""}, false},
		{"failPolicy: open\n", "", [2]string{"", ""}, false},
		{"failPolicy: closed\n", "", [2]string{RequireArmed, RequireArmed}, true},
		{"failPolicy: closed\n", ", requires: nothing", [2]string{RequireArmed, RequireNothing}, true},
		{"failPolicy: closed\n", ", requires: armedIfPresent", [2]string{RequireArmed, RequireArmedIfPresent}, true},
		{"", ", requires: nothing", [2]string{"", RequireNothing}, false},
		{"", ", requires: armed", [2]string{"", RequireArmed}, true},
		{"failPolicy: open\n", ", requires: armedIfPresent", [2]string{"", RequireArmedIfPresent}, true},
	} {
		p, err := Parse("f", []byte("name: n\n"+c.fail+strings.Replace(two, "%s", c.requires, 1)))
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		if got := [2]string{p.Probes[0].Requires, p.Probes[1].Requires}; got != c.want || p.Closed() != c.closed {
			t.Errorf("%+v: %v, closed: %v", c, got, p.Closed())
		}
		for _, pr := range p.Probes {
			if pr.Required() != strings.HasPrefix(pr.Requires, "armed") {
				t.Errorf("%+v is required: %v", pr, pr.Required())
			}
		}
	}
}

func TestRequiresProblems(t *testing.T) {
	const probes = "probes:\n  - id: a\n    type: uprobe\n    file: /a\n    symbols: [x]\n    requires: %s\n"
	for data, want := range map[string]string{
		"name: n\nfailPolicy: shut\nprobes: [{id: a, set: exec}]\n":                                    `f:2:13: failPolicy: unknown value "shut": want open or closed`,
		"name: n\nfailPolicy:\nprobes: [{id: a, set: exec}]\n":                                         "f:2:12: failPolicy: want text, not nothing",
		"name: n\nfailPolicy: true\nprobes: [{id: a, set: exec}]\n":                                    "f:2:13: failPolicy: want text in quotes, not a boolean",
		"name: n\nfail: closed\nprobes: [{id: a, set: exec}]\n":                                        `f:2:1: policy: unknown key "fail": did you mean failPolicy?`,
		"name: n\nselect: {failPolicy: closed}\nprobes: [{id: a, set: exec}]\n":                        `f:2:10: select: unknown key "failPolicy"; there are annotations, containers, images, namespaces, podLabels, runtimes`,
		"name: n\nfailPolicy: closed\nprobes: [{id: a, set: exec, requires: nothing}]\n":               "f:2:13: failPolicy: closed, and no probe is required: it would not keep anything from starting",
		"name: n\nfailPolicy: closed\nredact:\n  - {id: r, paths: [/home/<*>/**]}\n":                   "f:2:13: failPolicy: closed, and no probe is required: it would not keep anything from starting",
		"name: n\n" + strings.Replace(probes, "%s", "attached", 1):                                     `f:7:15: requires: unknown value "attached": want nothing, armedIfPresent or armed`,
		"name: n\n" + strings.Replace(probes, "%s", "[armed]", 1):                                      "f:7:15: requires: want text, not a list",
		"name: n\nfailPolicy: closed\nprobes:\n  - {id: a, set: exec, requires: Armed}\n":              `f:4:34: requires: unknown value "Armed": want nothing, armedIfPresent or armed`,
		"name: n\nprobes:\n  - {id: a, set: exec, requires: armed, requires: nothing}\n":               `f:3:41: probe: "requires" is there twice`,
		"name: n\nfailPolicy: closed\nfailPolicy: open\nprobes:\n  - {id: a, set: exec}\n":             `f:3:1: policy: "failPolicy" is there twice`,
		"name: n\nprobes:\n  - {id: a, type: tracepoint, event: 'a:b', requires: armed, require: x}\n": `f:3:62: probe: unknown key "require": did you mean requires?`,
	} {
		if _, err := Parse("f", []byte(data)); err == nil || err.Error() != want {
			t.Errorf("%s: got\n%v\nwant\n%s", data, err, want)
		}
	}
}

func TestMayRefuse(t *testing.T) {
	set := &Set{Policies: []Policy{
		{Name: "open", Probes: []Probe{{ID: "o"}}},
		{Name: "pods", Select: Selector{Namespaces: []string{"pay"}}, Probes: []Probe{{ID: "a", Requires: RequireArmed}}},
		{Name: "web", Select: Selector{Containers: []string{"web-*"}, Images: []string{"shop/*"}, Annotations: map[string]string{"a": "b"}}, Probes: []Probe{{ID: "b", Requires: RequireArmedIfPresent}, {ID: "c"}}},
		{Name: "crun", Select: Selector{Runtimes: []container.Runtime{container.Crun}}, Probes: []Probe{{ID: "d", Requires: RequireArmed}}},
	}}
	image, have := container.Image{Name: "shop/x"}, map[string]string{"a": "b"}
	for _, c := range []struct {
		id   container.Identity
		want string
	}{
		{container.Identity{Runtime: container.Containerd, Name: "web-1", Image: image, Annotations: have}, "web"},
		{container.Identity{Runtime: container.Containerd, Name: "db", Image: image, Annotations: have}, ""},
		{container.Identity{Runtime: container.Containerd, Name: "web-1", Image: container.Image{Name: "other"}, Annotations: have}, ""},
		{container.Identity{Runtime: container.Containerd, Name: "web-1", Image: image}, ""},
		{container.Identity{Runtime: container.Containerd, Name: "web-1", Image: image, Cut: true}, "web"},
		{container.Identity{Runtime: container.Containerd, Name: "web-1", Annotations: have}, "web"}, // its image was not looked at
		{container.Identity{Runtime: container.Containerd, Image: image, Annotations: have}, "web"},
		{container.Identity{Runtime: container.Containerd, Name: "x", Pod: &container.Pod{Namespace: "pay"}}, "pods"},
		{container.Identity{Runtime: container.Containerd, Name: "x", Pod: &container.Pod{Namespace: "dev"}}, ""},
		{container.Identity{Runtime: container.Crun, Name: "x"}, "crun"},
		{container.Identity{Cut: true}, "web"}, // nothing is known
		{container.Identity{}, "crun"},
	} {
		if got := set.MayRefuse(c.id); got != c.want {
			t.Errorf("%+v: %q, want %q", c.id, got, c.want)
		}
	}
	if got := (&Set{Policies: set.Policies[:1]}).MayRefuse(container.Identity{Cut: true}); got != "" {
		t.Errorf("all policies are open, and %s may refuse", got)
	}
}
