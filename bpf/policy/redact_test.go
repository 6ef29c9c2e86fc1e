package policy

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"probity/runtime/container"
)

const redacting = `name: privacy
redact:
  - id: home
    paths: [/home/<*>/**, /srv/<**>, "/**/.ssh/<*>", /etc/secret]
    keyed: true
  - id: peers
    addresses: [10.0.0.0/8, 192.0.2.7, "fd00::/8", "::ffff:198.51.100.1"]
    ports: true
  - id: every.peer
    addresses: [all]
  - id: customers
    images: ["registry.example/customers/**"]
  - id: tasks
    comms: true
`

func TestParseRedact(t *testing.T) {
	p, err := Parse("f", []byte(redacting))
	if err != nil {
		t.Fatal(err)
	}
	for i := range p.Redact[0].Paths {
		p.Redact[0].Paths[i] = PathPattern{Glob: p.Redact[0].Paths[i].Glob}
	}
	want := []Rule{
		{ID: "home", Keyed: true, Paths: []PathPattern{{Glob: "/home/*/**"}, {Glob: "/srv/**"}, {Glob: "/**/.ssh/*"}, {Glob: "/etc/secret"}}},
		{ID: "peers", Ports: true, Addresses: []netip.Prefix{
			netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("198.51.100.1/32"),
		}},
		{ID: "every.peer", AllAddresses: true},
		{ID: "customers", Images: []string{"registry.example/customers/**"}},
		{ID: "tasks", Comms: true},
	}
	if !reflect.DeepEqual(p.Redact, want) || len(p.Probes) != 0 {
		t.Errorf("%+v\nwant\n%+v", p.Redact, want)
	}
}

// wrongRule says what Parse should not have taken.
func wrongRule(r Rule) string {
	kinds := 0
	for _, is := range []bool{len(r.Paths) > 0, r.AllAddresses || len(r.Addresses) > 0, len(r.Images) > 0, r.Comms} {
		if is {
			kinds++
		}
	}
	if kinds != 1 || r.ID == "" || len(r.ID) > maxRuleName || r.Ports && !r.AllAddresses && len(r.Addresses) == 0 {
		return "not one rule"
	}
	for _, p := range r.Paths {
		for _, path := range []string{"a", "home/a/b", "a/.ssh/b", strings.Repeat("x/", 200) + "y"} {
			names := strings.Split(path, "/")
			if from, to, whole, ok := p.Part(names); ok && (from < 0 || to > len(names) || to <= from && !whole) {
				return fmt.Sprintf("part %d to %d of %d", from, to, len(names))
			}
		}
		p.MayBeIn("open /home/a/b: no such file")
	}
	r.Has("192.0.2.1")
	r.HasImage("registry.example/x:1")
	return ""
}

func TestRedactMistakes(t *testing.T) {
	rule := func(s string) string { return "name: a\nredact:\n  - " + s + "\n" }
	for _, c := range []struct{ what, data, want string }{
		{"nothing", "name: a\nselect: {}\n", "f:1:1: policy: no probes, and nothing to redact"},
		{"null", "name: a\nredact:\n", "redact: want a list of rules, not nothing"},
		{"empty", "name: a\nredact: []\n", "f:2:9: redact: empty: leave it out"},
		{"no id", rule("paths: [/a]"), "f:3:5: rule: no id"},
		{"no kind", rule("id: r"), "nothing to redact: want one of paths, addresses, images and comms (arguments and environment are never recorded)"},
		{"arguments", rule("{id: r, arguments: true}"), `unknown key "arguments"; there are addresses, comms, id, images, keyed, paths, ports`},
		{"two kinds", rule("{id: r, paths: [/a], comms: true}"), "rule r: paths, comms: one rule is for one of them: make it 2 rules"},
		{"ports alone", rule("{id: r, paths: [/a], ports: true}"), "f:3:33: rule r: ports: only with addresses"},
		{"keyed comms", rule("{id: r, comms: true, keyed: true}"), "no room for a mark"},
		{"false", rule("{id: r, comms: false}"), "f:3:20: comms: false does nothing: leave it out"},
		{"long id", rule("{id: " + strings.Repeat("r", 33) + ", comms: true}"), "33 characters, a rule's id has at most 32"},
		{"bad id", rule("{id: a b, comms: true}"), `id "a b": want letters`},
		{"same id", rule("{id: r, comms: true}\n  - {id: r, paths: [/a]}"), `f:4:10: id "r" is taken by the rule at line 3`},
		{"relative", rule("{id: r, paths: [home/*]}"), `f:3:21: paths: "home/*" is not absolute`},
		{"empty pattern", rule("{id: r, paths: ['']}"), "paths: empty"},
		{"number", rule("{id: r, paths: [1]}"), "paths: want text in quotes"},
		{"twice", rule("{id: r, paths: [/a, /a]}"), `paths: "/a" is there twice`},
		{"root", rule("{id: r, paths: [/]}"), "such a pattern matches nothing"},
		{"dots", rule("{id: r, paths: [/a/../b]}"), "such a pattern matches nothing"},
		{"part of a name", rule("{id: r, paths: ['/home/u<*>/x']}"), "want angle brackets around one whole name"},
		{"brackets that do not match", rule("{id: r, paths: ['/home/<*/x']}"), "want angle brackets around one whole name"},
		{"empty brackets", rule("{id: r, paths: ['/home/<>/x']}"), "want angle brackets around one whole name"},
		{"two parts", rule("{id: r, paths: ['/<*>/<*>']}"), "more than one part in angle brackets"},
		{"uncertain", rule("{id: r, paths: ['/**/<*>/**']}"), "which part is meant is not certain"},
		{"uncertain rest", rule("{id: r, paths: ['/**/a/<**>']}"), "which part is meant is not certain"},
		{"stars in a name", rule("{id: r, paths: ['/a**']}"), "** stands for whole names"},
		{"many stars", rule("{id: r, paths: ['/**/a/**/b/**']}"), "at most 2 times **"},
		{"braces over names", rule("{id: r, paths: ['/{a/b,c}/d']}"), "a '/' in braces"},
		{"no glob", rule("{id: r, paths: ['/a[']}"), "is not a glob"},
		{"no address", rule("{id: r, addresses: [example.com]}"), `f:3:25: addresses: "example.com": want an address, a prefix such as 10.0.0.0/8`},
		{"bits", rule("{id: r, addresses: [10.0.0.1/8]}"), "has bits past its length: want 10.0.0.0/8"},
		{"mapped", rule("{id: r, addresses: ['::ffff:10.0.0.0/104']}"), "write it as IPv4"},
		{"no image", rule("{id: r, images: ['a{']}"), "images: "},
	} {
		_, err := Parse("f", []byte(c.data))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
	}
	_, err := NewSet([]Source{{"a.yaml", []byte("name: a\nredact: [{id: r, comms: true}]\n")}, {"b.yaml", []byte("name: b\nredact: [{id: r, comms: true}]\n")}})
	if err == nil || !strings.Contains(err.Error(), `b.yaml:2:15: the rule's id "r" is taken by a.yaml`) {
		t.Errorf("%v", err)
	}
}

func TestPart(t *testing.T) {
	for _, c := range []struct{ pattern, path, want string }{ // want: the path with what is taken out in brackets
		{"/home/<*>/**", "home/alice/x/y", "home [alice] x y"},
		{"/home/<*>/**", "home/alice", "home [alice]"},
		{"/home/<*>/**", "home", ""},
		{"/home/<*>/**", "homes/alice/x", ""},
		{"/home/<*>", "home/alice/x", ""},
		{"/home/<a*>/**", "home/bob/x", ""},
		{"/srv/<**>", "srv/a/b/c", "srv [a b c]"},
		{"/srv/<**>", "srv", ""},
		{"/srv/<**>/log", "srv/a/b/log", "srv [a b] log"},
		{"/srv/<**>/log", "srv/log", ""},
		{"/<**>", "a/b", "[a b]"},
		{"/**/.ssh/<*>", "root/.ssh/id", "root .ssh [id]"},
		{"/**/.ssh/<*>", ".ssh/id", ".ssh [id]"},
		{"/**/.ssh/<*>", "a/b/.ssh/id/x", ""},
		{"/**/users/<*>/mail", "a/users/bob/mail", "a users [bob] mail"},
		{"/<{a,b}>/c", "b/c", "[b] c"},
		{"/etc/secret", "etc/secret", "whole"},
		{"/etc/secret", "etc/secret/x", ""},
		{"/**/*.key", "a/b.key", "whole"},
		{"/**/*.key", "a/b.pem", ""},
		{"/**", "a", "whole"},
	} {
		p, err := Parse("f", fmt.Appendf(nil, "name: a\nredact: [{id: r, paths: ['%s']}]\n", c.pattern))
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		names := strings.Split(c.path, "/")
		from, to, whole, ok := p.Redact[0].Paths[0].Part(names)
		got := ""
		switch {
		case ok && whole:
			got = "whole"
		case ok:
			parts := slices.Clone(names)
			parts[from] = "[" + parts[from]
			parts[to-1] += "]"
			got = strings.Join(parts, " ")
		}
		if got != c.want {
			t.Errorf("%s of %s: %q, want %q", c.pattern, c.path, got, c.want)
		}
		if ok && !p.Redact[0].Paths[0].MayBeIn("open /var/lib/x/diff/"+c.path+": permission denied") {
			t.Errorf("%s may be in a text that has it", c.pattern)
		}
	}
}

func TestRuleHas(t *testing.T) {
	p, err := Parse("f", []byte(redacting))
	if err != nil {
		t.Fatal(err)
	}
	peers, every := &p.Redact[1], &p.Redact[2]
	for address, want := range map[string]bool{
		"10.1.2.3": true, "11.0.0.1": false, "192.0.2.7": true, "192.0.2.8": false, "fd12::1": true, "fe80::1": false, "::ffff:10.9.9.9": true,
		"198.51.100.1": true, "/run/x.sock": false, "@x": false, "3:1024": false,
	} {
		if peers.Has(address) != want || !every.Has(address) {
			t.Errorf("%s: %v, want %v", address, !want, want)
		}
	}
	if r := (Rule{Images: []string{"registry.example/**"}}); !r.HasImage("registry.example/a/b:1") || r.HasImage("other/a") || r.HasImage("") {
		t.Error("images")
	}
}

// What is not known of a container does not keep it from being redacted.
func TestRedactOfUnknown(t *testing.T) {
	set, err := NewSet([]Source{{"a.yaml", []byte(`name: a
select:
  namespaces: [prod]
  images: ["registry.example/**"]
  podLabels: {tier: a}
  annotations: {x: y}
  containers: [web]
  runtimes: [podman]
redact: [{id: r, comms: true}]
`)}, {"b.yaml", []byte("name: b\nprobes: [{id: x, set: exec}]\n")}})
	if err != nil {
		t.Fatal(err)
	}
	known := container.Identity{Runtime: container.Podman, Name: "web", Image: container.Image{Name: "registry.example/a"}, Annotations: map[string]string{"x": "y"},
		Pod: &container.Pod{Namespace: "prod", Labels: map[string]string{"tier": "a"}}}
	change := func(f func(*container.Identity)) container.Identity {
		id, pod := known, *known.Pod
		id.Pod = &pod
		f(&id)
		return id
	}
	for _, c := range []struct {
		what string
		id   container.Identity
		want int
	}{
		{"all is known", known, 1},
		{"no pod", change(func(id *container.Identity) { id.Pod = nil }), 1},
		{"no labels", change(func(id *container.Identity) { id.Pod.Labels = nil }), 1},
		{"no image", change(func(id *container.Identity) { id.Image.Name = "" }), 1},
		{"no name", change(func(id *container.Identity) { id.Name = "" }), 1},
		{"no annotations", change(func(id *container.Identity) { id.Annotations = nil }), 1},
		{"another namespace", change(func(id *container.Identity) { id.Pod.Namespace = "test" }), 0},
		{"another label", change(func(id *container.Identity) { id.Pod.Labels = map[string]string{"tier": "b"} }), 0},
		{"another image", change(func(id *container.Identity) { id.Image.Name = "other/a" }), 0},
		{"another runtime", change(func(id *container.Identity) { id.Runtime = container.Docker }), 0},
	} {
		if got := set.Redact(c.id); len(got) != c.want {
			t.Errorf("%s: %d rules, want %d", c.what, len(got), c.want)
		}
	}
	if len(set.RedactAll()) != 1 || len(set.Select(known)) != 1 {
		t.Errorf("%v %v", set.RedactAll(), set.Select(known))
	}
}
