package witness

import (
	"strings"
	"testing"

	"probity/bpf/policy"
	"probity/evidence"
)

// A gap's detail begins with what a process called the file: a relative name, or one
// that is not clean, is no path that a rule's names are found in, and goes all the
// same.
func TestRedactedNameInADetail(t *testing.T) {
	const rules = "  - {id: home, paths: [/home/<*>/**, /srv/data/<*>/**]}\n"
	home := evidence.Mark("home", "")
	for _, c := range []struct{ name, detail, want string }{
		{"alice/tool", "there was no time", home + ": there was no time"},
		{"alice-tool", "there was no time", home + ": there was no time"},
		{"/srv//data/alice/tool", "there was no time", home + ": there was no time"},
		{"/srv/data/alice/tool", "there was no time", "/srv/data/" + home + "/tool: there was no time"},
		{"alice/tool", "open /alice/tool in the container's root: no such file", home + ": " + home},
		{"/usr/tool", "open /home/alice/tool: no such file", "/usr/tool: " + home},
		{"/usr/tool", "there was no time", "/usr/tool: there was no time"},
		{"/usr/\u2039tool", "there was no time", home + ": there was no time"},
		{"/" + strings.Repeat("alice/", 50) + "tool", "there was no time", home + ": there was no time"},
	} {
		for _, p := range []policy.Probe{{ID: "copies", BuildID: "00"}, {ID: "glob", File: "/lib/libx.so"}} { // of the probe, and of the whole run
			for what, tell := range map[string]func(*stage){
				"a path": func(st *stage) { st.UnarmedMapping(st.id, c.name, 6000, 0, c.detail) },
				"a name": func(st *stage) { st.UnarmedFile(st.id, c.name, 6000, c.detail) },
			} {
				st := redactingStage(t, rules, forFile(1, p, "/bin/target"))
				st.Publish(st.id, 0)
				tell(st)
				gaps := take[*evidence.Gap](st.out)
				if len(gaps) != 1 || gaps[0].Detail != c.want || gaps[0].Path != "" || (gaps[0].Redacted != nil) != strings.Contains(c.want, home) {
					t.Errorf("%s, %s, %s:", what, p.ID, c.name)
					for _, g := range gaps {
						t.Errorf("%+v, want the detail %s", g, c.want)
					}
				}
			}
		}
	}
}
