package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What one container may have of the spool follows from what all may, and is never
// more.
func TestContainerQuota(t *testing.T) {
	for _, c := range []struct {
		file string
		want int64
		err  string
	}{
		{"", 64, ""},
		{"spoolQuotaMiB: 16", 1, ""},
		{"spoolQuotaMiB: 160", 10, ""},
		{"spoolQuotaMiB: -1", 64, ""},
		{"spoolQuotaMiB: 16\ncontainerQuotaMiB: 16", 16, ""},
		{"containerQuotaMiB: -1", -1, ""},
		{"spoolQuotaMiB: -1\ncontainerQuotaMiB: 5000", 5000, ""},
		{"spoolQuotaMiB: 16\ncontainerQuotaMiB: 17", 0, "containerQuotaMiB: 17: one container may not have more than the whole spool, spoolQuotaMiB: 16"},
		{"containerQuotaMiB: -2", 0, "containerQuotaMiB: -2: want at least 1, or -1 for no bound"},
	} {
		path := filepath.Join(t.TempDir(), "probity.yaml")
		must(t, os.WriteFile(path, []byte(c.file+"\n"), 0o600))
		cfg, err := ReadConfig(path)
		must(t, err)
		cfg, err = cfg.WithDefaults()
		switch {
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%q: %v, want %s", c.file, err, c.err)
		case c.err == "" && (err != nil || cfg.ContainerQuotaMiB != c.want):
			t.Errorf("%q: %d, %v; want %d", c.file, cfg.ContainerQuotaMiB, err, c.want)
		}
	}
}

func TestContainerdEvents(t *testing.T) {
	for text, want := range map[string]string{"": "on", "containerdEvents: on": "on", "containerdEvents: off": "off", "containerdEvents: none": ""} {
		path := filepath.Join(t.TempDir(), "probity.yaml")
		must(t, os.WriteFile(path, []byte(text+"\n"), 0o600))
		cfg, err := ReadConfig(path)
		must(t, err)
		cfg, err = cfg.WithDefaults()
		if want == "" && (err == nil || err.Error() != `containerdEvents: "none": want on or off`) || want != "" && (err != nil || cfg.ContainerdEvents != want) {
			t.Errorf("%q: %q, %v", text, cfg.ContainerdEvents, err)
		}
	}
}
