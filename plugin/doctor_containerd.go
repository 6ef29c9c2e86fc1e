package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"probity/agent"
)

const (
	containerdConfig = "/etc/containerd/config.toml"
	nriPlugin        = "io.containerd.nri.v1.nri"
)

// criPlugins are those that serve CRI: of 1.x, of 2.x, and by its old name.
var criPlugins = []string{"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "cri"}

// tree is a TOML document.
type tree map[string]any

func parseTOML(b []byte) (t tree, err error) {
	err = toml.Unmarshal(b, &t)
	return t, err
}

func (t tree) table(keys ...string) tree {
	for _, k := range keys {
		t, _ = t[k].(map[string]any)
	}
	return t
}

// texts returns an array's strings.
func (t tree) texts(key string) (out []string) {
	values, _ := t[key].([]any)
	for _, v := range values {
		if s, ok := v.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

func (t tree) duration(key string) time.Duration {
	if ns, ok := t[key].(int64); ok {
		return time.Duration(ns)
	}
	s, _ := t[key].(string)
	d, _ := time.ParseDuration(s)
	return d
}

// checkContainerd looks at every containerd that runs, else at the one that is
// installed: what it was told, and what holds of it.
func (h *host) checkContainerd(ctx context.Context, cfg agent.Config) (all []check) {
	var found []containerd
	for _, d := range h.daemons["containerd"] {
		c := containerd{service: d, file: containerdFile(d.args, d.dir), running: true, agent: h.config}
		if !slices.ContainsFunc(found, func(o containerd) bool { return o.program == c.program && o.file == c.file }) && len(found) < maxDaemons {
			found = append(found, c)
		}
	}
	if len(found) == 0 {
		path, err := h.find("containerd")
		if path == "" || err != nil {
			return nil // checkRuntimes says so
		}
		args := h.execStart(ctx, "containerd")
		found = []containerd{{service: service{program: path, args: args}, file: containerdFile(args, "/"), agent: h.config}}
	}
	var at []string
	for _, c := range found {
		effective, absent, bad := c.effective(ctx)
		if bad != nil {
			all = append(all, *bad)
			continue
		}
		all = append(all, c.judge(effective, absent, cfg)...)
		if address := c.address(effective); address != "" {
			at = append(at, address)
		}
	}
	// The agent asks one of them about images, and for the containers of ctr, nerdctl and docker.
	if len(at) > 0 && !slices.ContainsFunc(at, func(a string) bool { return a == cfg.ContainerdAddress || samePath(a, cfg.ContainerdAddress) }) {
		all = append(all, check{"containerd socket", checkWarn, fmt.Sprintf("the agent asks at %s about images and containers outside CRI: nobody is there", cfg.ContainerdAddress), at[0],
			then(fmt.Sprintf("set containerdAddress: %s in %s", at[0], h.config), restart("probity"))})
	}
	return all
}

// address is where it listens, or "".
func (c containerd) address(effective tree) string {
	if a, ok := option(c.args, "address", "a"); ok {
		return a
	}
	for _, t := range []tree{effective.table("plugins", "io.containerd.server.v1.grpc"), effective.table("grpc")} { // of 2.x, of 1.x
		if a, _ := t["address"].(string); a != "" {
			return a
		}
	}
	return ""
}

// containerdFile is the configuration file that a command line names.
func containerdFile(args []string, dir string) string {
	file, ok := option(args, "config", "c")
	if !ok {
		return containerdConfig
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	return filepath.Clean(file)
}

// execStart returns the arguments with which systemd starts a service.
func (h *host) execStart(ctx context.Context, unit string) []string {
	systemctl, err := findProgram("systemctl", h.dirs)
	if systemctl == "" || err != nil {
		return nil
	}
	out, err := tell(ctx, systemctl, "show", unit, "--property=ExecStart", "--value")
	if err != nil {
		return nil // systemd does not run: the default holds
	}
	_, argv, _ := strings.Cut(out, "argv[]=")
	argv, _, _ = strings.Cut(argv, " ; ")
	return strings.Fields(argv)
}

// containerd is one of them, and its configuration file.
type containerd struct {
	service
	file    string
	running bool
	agent   string // the agent's configuration file
}

const nriName = "containerd NRI"

// effective asks for the configuration that holds; absent if there is no file. Bad is
// why there is none.
func (c containerd) effective(ctx context.Context) (effective tree, absent bool, bad *check) {
	found := func(status, what, advice string) (tree, bool, *check) {
		return nil, false, &check{nriName, status, what, c.file, advice}
	}
	_, err := trusted(c.file)
	absent = errors.Is(err, os.ErrNotExist)
	switch {
	case absent: // the defaults hold
	case errors.Is(err, errOthers):
		return found(checkFail, "not read: "+err.Error(), "as root: chown root FILE && chmod go-w FILE, of what is named")
	case err != nil:
		return found(checkUnknown, err.Error(), asRoot)
	}
	command := fmt.Sprintf("%s --config %s config dump", quote(c.program), quote(c.file))
	out, err := tell(ctx, c.program, "--config", c.file, "config", "dump")
	if ctx.Err() != nil || errors.Is(err, errOthers) {
		return found(checkUnknown, err.Error(), command)
	}
	if err == nil {
		effective, err = parseTOML([]byte(out))
	}
	if err != nil {
		return found(checkFail, err.Error()+": containerd does not start with it", "mend what this names: "+command)
	}
	return effective, absent, nil
}

// judge compares what holds with what the files beside it say.
func (c containerd) judge(effective tree, absent bool, cfg agent.Config) []check {
	off := effective.texts("disabled_plugins")
	plugin := effective.table("plugins", nriPlugin)
	f := nriFacts{register: plugin.duration("plugin_registration_timeout"), request: plugin.duration("plugin_request_timeout")}
	f.socket, _ = plugin["socket_path"].(string)
	f.noConnections, _ = plugin["disable_connections"].(bool)
	disabled, _ := plugin["disable"].(bool)
	files := c.files()
	r := nriAsked{name: nriName, where: c.file, running: c.running, restart: c.restart("containerd"), agent: c.agent}
	r.set = func(key, value string) string { return then(c.set(files, absent, key, value), r.restart) }
	switch {
	case slices.ContainsFunc(criPlugins, func(p string) bool { return slices.Contains(off, p) }):
		return []check{{nriName, checkSkip, "CRI is off (disabled_plugins): it runs no pods, and NRI tells of nothing else", c.file, ""}}
	case slices.Contains(off, nriPlugin):
		f.off, r.on = "disabled_plugins", then(c.enable(files), r.restart)
	case plugin == nil:
		return []check{{nriName, checkFail, "this containerd has no NRI: its containers are not armed", c.program, "install containerd 1.7 or newer; 2.0 or newer has NRI switched on"}}
	case disabled:
		f.off, r.on = "disable = true", r.set("disable", "false")
	}
	inert := c.notImported(files)
	advice := then(c.imports(absent), r.restart)
	on := slices.IndexFunc(inert, func(d configFile) bool { return d.tree.table("plugins", nriPlugin)["disable"] == false })
	if disabled && on >= 0 {
		f.off += "; " + inert[on].name + " says disable = false, which is not imported: present, but not effective"
		inert, r.on = nil, advice // it is all that is needed
	}
	all := []check{r.check(f, cfg)}
	for _, d := range inert {
		all = append(all, check{nriName, checkWarn, fmt.Sprintf("says something of NRI and is not imported by %s: present, but not effective", c.file), d.name, advice})
	}
	return all
}

// maxFiles bounds how many configuration files are read.
const maxFiles = 64

// configFile is one of containerd's files.
type configFile struct {
	name string
	tree tree
}

// files are those that containerd reads, in their order: the last one that says
// something wins. containerd's own list of imports is not to be believed: 2.4 shows
// its default there even where a file says imports = [].
func (c containerd) files() (files []configFile) {
	pending := []string{c.file}
	for seen := map[string]bool{}; len(pending) > 0 && len(files) < maxFiles; pending = pending[1:] {
		name := pending[0]
		if seen[name] {
			continue
		}
		seen[name] = true
		b, err := readFile(name)
		if err != nil {
			continue
		}
		t, err := parseTOML(b)
		if err != nil {
			continue
		}
		files = append(files, configFile{name, t})
		for _, pattern := range t.texts("imports") {
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(name), pattern)
			}
			if matches, err := filepath.Glob(pattern); strings.Contains(pattern, "*") && err == nil {
				pending = append(pending, matches...)
			} else {
				pending = append(pending, filepath.Clean(pattern))
			}
		}
	}
	return files
}

func (c containerd) dropIns() string { return filepath.Join(filepath.Dir(c.file), "conf.d", "*.toml") }

// notImported are the drop-in files that say something of NRI and are not read.
func (c containerd) notImported(read []configFile) (found []configFile) {
	matches, _ := filepath.Glob(c.dropIns()) // the pattern is well formed
	for _, name := range matches[:min(len(matches), maxFiles)] {
		if slices.ContainsFunc(read, func(f configFile) bool { return f.name == name }) {
			continue
		}
		b, err := readFile(name)
		if err != nil {
			continue
		}
		// One that cannot be parsed may say so, too.
		if t, err := parseTOML(b); err != nil || t.table("plugins", nriPlugin) != nil || slices.Contains(t.texts("disabled_plugins"), nriPlugin) {
			found = append(found, configFile{name, t})
		}
	}
	return found
}

// imports is a command that has the main file import the drop-in files.
func (c containerd) imports(absent bool) string {
	line := fmt.Sprintf(`imports = ["%s"]`, c.dropIns())
	file := quote(c.file)
	switch main := c.files(); {
	case file != c.file: // what a shell would need quoted sed might not take as it is
		return fmt.Sprintf("make %s the first line of %s", line, c.file)
	case absent || len(main) > 0 && len(main[0].tree) == 0: // sed cannot insert into an empty file
		return fmt.Sprintf(`printf '%%s\n' 'version = 2' %s >> %s`, quote(line), file)
	case len(main) > 0 && main[0].tree["imports"] != nil:
		return fmt.Sprintf(`sed -i %s %s`, quote(`s|^\s*imports\s*=.*|`+line+`|`), file)
	default: // before the first table
		return fmt.Sprintf(`sed -i %s %s`, quote("1i "+line), file)
	}
}

// nriHeader begins the plugin's table, for us and for sed.
const nriHeader = `^\s*\[.*io\.containerd\.nri\.v1\.nri.\]`

var nriHeaders = regexp.MustCompile("(?m)" + nriHeader)

// set is a command that gives a key of the plugin's another value, where it is set
// last, or else in the main file.
func (c containerd) set(files []configFile, absent bool, key, value string) string {
	section := fmt.Sprintf(`'[plugins."%s"]' %s`, nriPlugin, quote("  "+key+" = "+value))
	if absent {
		return fmt.Sprintf(`mkdir -p %s && printf '%%s\n' 'version = 2' %s > %s`, quote(filepath.Dir(c.file)), section, quote(c.file))
	}
	for _, has := range []func(tree) bool{func(t tree) bool { return t[key] != nil }, func(t tree) bool { return t != nil }} {
		for _, f := range slices.Backward(files) {
			table := f.tree.table("plugins", nriPlugin)
			if !has(table) {
				continue
			}
			if b, err := readFile(f.name); err != nil || !nriHeaders.Match(b) { // by dots, or in one line
				return fmt.Sprintf(`set %s = %s in [plugins."%s"] of %s`, key, value, nriPlugin, f.name)
			}
			edit := `/` + nriHeader + `/a ` + key + ` = ` + value
			if table[key] != nil {
				edit = `/` + nriHeader + `/,/^\s*\[/ s|^\(\s*` + key + `\s*=\).*|\1 ` + value + `|`
			}
			return fmt.Sprintf(`sed -i %s %s`, quote(edit), quote(f.name))
		}
	}
	return fmt.Sprintf(`printf '%%s\n' '' %s >> %s`, section, quote(c.file)) // its last line may have no end
}

// enable is a command that takes the plugin out of every list of disabled ones.
func (c containerd) enable(files []configFile) string {
	var names []string
	for _, f := range files {
		if slices.Contains(f.tree.texts("disabled_plugins"), nriPlugin) {
			names = append(names, quote(f.name))
		}
	}
	return fmt.Sprintf(`sed -i %s %s`, quote(`/^\s*\[/! s/.io\.containerd\.nri\.v1\.nri.\s*,\{0,1\}//`), strings.Join(names, " "))
}
