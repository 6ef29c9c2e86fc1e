package agent

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"probity/evidence"
	"probity/runtime/container"
	"probity/tests/need"
)

// everything is a policy that asks for all that can be recorded.
const everything = `probes:
  - {id: exec, set: exec}
  - {id: libraries, set: libraries}
  - {id: files, set: files}
  - {id: network, set: network}
  - {id: syscalls, set: syscalls}
  - {id: events, type: tracepoint, event: sched:sched_process_exec}
  - {id: hello, type: uprobe, file: /bin/*, symbols: [hello], stack: true}
  - {id: tool, type: uprobe, file: "/**/tool", symbols: [hello], stack: true}
  - {id: start, type: uprobe, program: entrypoint, offsets: [entry]}
  - {id: none, type: uprobe, program: no-such-program, offsets: [entry]}
`

// inState lists the files of the state directory, the spool and its write-ahead
// files among them, that have a text in them.
func (n *node) inState(text string) (files []string) {
	n.t.Helper()
	seen := 0
	must(n.t, filepath.WalkDir(n.cfg.State, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			files = append(files, path)
		}
		seen++
		return err
	}))
	if seen < 5 {
		n.t.Errorf("only %d files were looked at", seen)
	}
	return files
}

// Arguments and environment of a container are in nothing that the agent writes,
// whatever is asked for: there is no rule for them because there is nothing to take
// out. Neither are labels and annotations.
func TestNoArgumentNoEnvironment(t *testing.T) {
	need.Root(t)
	need.Command(t, "gcc")
	t.Setenv("PROBITY_TEST_PASSWORD", "secret-in-environment")
	bin, err := target()
	must(t, err)
	n := newNodeWith(t, Config{}, "name: all\n"+everything)
	b := newBoxOf(t, map[string][]byte{"bin/target": bin, "bin/tool": bin}, 1, "serve", "secret-in-argument")
	notice := b.notice("c1")
	notice.Identity.Annotations = map[string]string{"secret-annotation": "secret-in-annotation"}
	notice.Identity.Pod = &container.Pod{Name: "pod", Namespace: "ns", UID: "u", Labels: map[string]string{"secret-label": "secret-in-label"}}
	notice.Command = container.Command{Arg0: "/bin/target", Path: "/secret-in-path:/bin", Dir: "/"}
	n.notify(context.Background(), notice, yes)
	b.run()
	b.exec("/bin/tool", "secret-as-argument")
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.allLines("c1")
	sets := map[string]bool{}
	for _, o := range obs {
		sets[o.Set] = sets[o.Set] || o.State == evidence.Hit
	}
	for _, set := range []string{evidence.SetExec, evidence.SetFiles, evidence.SetSyscalls} {
		if !sets[set] {
			t.Errorf("the set %s saw nothing", set)
		}
	}
	if files := n.inState("/bin/tool"); len(files) == 0 {
		t.Error("the search finds nothing at all")
	}
	for _, text := range []string{"secret-", "PROBITY_TEST_PASSWORD"} {
		if files := n.inState(text); len(files) != 0 {
			t.Errorf("%q is in %v", text, files)
		}
	}
}

// Of what the policy keeps out of evidence nothing is in what the agent writes, and
// the evidence is sound and says what was taken out.
func TestRedactedEvidence(t *testing.T) {
	need.Root(t)
	need.Command(t, "gcc")
	bin, err := target()
	must(t, err)
	n := newNodeWith(t, Config{}, "name: all\n"+everything+`redact:
  - {id: home, paths: ["/**/home/<*>/*"], keyed: true}
  - {id: acme, paths: ["/**/srv/<*>", "/**/srv/<*>/*"]}
  - {id: customers, images: ["registry.example/**"]}
`)
	b := newBoxWith(t, map[string][]byte{"bin/target": bin}, func(dir string) {
		for _, name := range []string{"home/alice", "home/bobby", "srv/acme-payroll"} {
			must(t, os.MkdirAll(dir+"/merged/"+name, 0o755))
			must(t, os.WriteFile(dir+"/merged/"+name+"/tool", bin, 0o755))
		}
		must(t, os.WriteFile(dir+"/merged/srv/acme-script", []byte("#!/home/bobby/tool now\n"), 0o755))
	}, 1, "serve")
	notice := b.notice("c1")
	notice.Identity.Image.Name = "registry.example/alice/image:1"
	n.notify(context.Background(), notice, yes)
	b.run()
	b.exec("/home/alice/tool", "hello")
	b.exec("/home/bobby/tool", "hello")
	b.exec("/srv/acme-payroll/tool", "hello")
	b.exec("/srv/acme-script", "hello")
	must(t, os.WriteFile(b.dir+"/merged/home/alice/tool", append(bytes.Clone(bin), 'x'), 0o755)) // changed, and armed again
	b.exec("/home/alice/tool", "hello")
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, gaps := n.allLines("c1")
	for _, text := range []string{"alice", "bobby", "acme-"} {
		for _, f := range n.inState(text) {
			t.Errorf("%q is in %s", text, f)
		}
	}
	tools, tokens, members := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, o := range obs {
		for _, x := range o.Redacted {
			members[x.Member] = true
		}
		if o.ProbeID == "tool" && o.State == evidence.Hit {
			tools[o.Path] = true
		}
		if o.Set == evidence.SetExec && strings.Contains(o.Path, "redacted:home:") {
			tokens[o.Path] = true
		}
	}
	if len(tools) != 3 { // alice's, bobby's, acme's
		t.Errorf("sites that were hit: %v", tools)
	}
	if len(tokens) != 2 {
		t.Errorf("programs: %v", tokens)
	}
	for _, m := range []string{"path", "entry.argument", "entry.inode", "entry.device", "processes.path", "stack.frames.path"} {
		if !members[m] {
			t.Errorf("nothing is redacted in %s: %v", m, members)
		}
	}
	for _, g := range gaps {
		if strings.Contains(g.Path+g.Detail, "/tool") && !evidence.HasMark(g.Path+g.Detail) {
			t.Errorf("%+v", g)
		}
	}
	key, err := os.Stat(n.cfg.State + "/redact.key")
	must(t, err)
	if key.Mode().Perm() != 0o600 {
		t.Errorf("the key is %v", key.Mode())
	}
}
