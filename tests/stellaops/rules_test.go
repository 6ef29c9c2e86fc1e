package stellaops

import (
	"slices"
	"strings"
	"testing"
)

const good = `{"cgroup_id":7,"comm":"caller","container_id":"podman://1111111111111111111111111111111111111111111111111111111111111111",` +
	`"event":{"library":"/lib/l.so","symbol":"f","type":"function_call"},"image_digest":"sha256:2222222222222222222222222222222222222222222222222222222222222222",` +
	`"pid":42,"src":"uprobe:f","tid":43,"ts_ns":1000}` + "\n"

// Each rule is broken by a line, or it would hold nothing.
func TestRulesCanBeBroken(t *testing.T) {
	if b := Broken(good); b != nil {
		t.Fatalf("a good line breaks %q", b)
	}
	open := strings.Replace(good, `{"library":"/lib/l.so","symbol":"f","type":"function_call"}`, `{"path":"/etc/p","type":"file_open"}`, 1)
	exec := strings.Replace(good, `{"library":"/lib/l.so","symbol":"f","type":"function_call"}`, `{"filename":"/bin/p","ppid":1,"type":"process_exec"}`, 1)
	if b := append(Broken(open), Broken(exec)...); b != nil {
		t.Fatalf("good lines break %q", b)
	}
	broken := map[string]bool{}
	for _, c := range [][3]string{
		{good, `,"ts_ns":1000`, ``}, {good, `"ts_ns":1000`, `"ts_ns":-1`}, {good, `"ts_ns":1000`, `"ts_ns":1.5`},
		{good, `"src":"uprobe:f",`, ``}, {good, `"src":"uprobe:f"`, `"src":1`},
		{good, `"pid":42,`, ``}, {good, `"pid":42`, `"pid":0`}, {good, `"tid":43`, `"tid":0`},
		{good, `"cgroup_id":7,`, ``}, {good, `"cgroup_id":7`, `"cgroup_id":"7"`},
		{good, `podman://`, `runc://`}, {good, `"sha256:2`, `"sha256:`},
		{good, `"comm":"caller",`, ``}, {good, `"caller"`, `"a name of 17 runes"`},
		{good, `"event":{"library":"/lib/l.so","symbol":"f","type":"function_call"},`, ``}, {good, `{"library":"/lib/l.so","symbol":"f","type":"function_call"}`, `[]`},
		{good, `"function_call"`, `"file_access"`},
		{open, `"path":"/etc/p",`, ``}, {exec, `"filename":"/bin/p",`, ``}, {exec, `"ppid":1`, `"ppid":"1"`},
		{good, `"ts_ns":1000`, `"ts_ns":1000,"z":1`}, {good, `"pid":42,"src":"uprobe:f"`, `"src":"uprobe:f","pid":42`}, {good, "}\n", "}"},
	} {
		line := strings.Replace(c[0], c[1], c[2], 1)
		if line == c[0] {
			t.Fatalf("%q is not in the line", c[1])
		}
		b := Broken(line)
		if b == nil {
			t.Errorf("%q as %q breaks nothing", c[1], c[2])
		}
		for _, name := range b {
			broken[name] = true
		}
	}
	for _, r := range Rules {
		if !broken[r.Name] || !slices.Contains([]string{"schema", "reference", "fixtures"}, r.Source) {
			t.Errorf("%s (%s): nothing breaks it", r.Name, r.Source)
		}
	}
}
