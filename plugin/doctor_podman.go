package main

import (
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"probity/runtime/handoff/wire"
)

const (
	// defaultHooks is where podman reads hooks unless told otherwise, and
	// overrideHooks where CRI-O and some podmans do, too.
	defaultHooks  = "/usr/share/containers/oci/hooks.d"
	overrideHooks = "/etc/containers/oci/hooks.d"

	createHook   = "probity-create.json"
	poststopHook = "probity-poststop.json"

	hooksName = "podman hooks"
)

// podmanConfigs are the files that podman reads when root runs it, in its order.
var podmanConfigs = []string{
	"/usr/share/containers/containers.conf", "/usr/share/containers/containers.conf.d/*.conf",
	"/etc/containers/containers.conf", "/etc/containers/containers.conf.d/*.conf",
}

// podmanHooks returns the directories that podman reads hooks from, and the file that
// says so: a list there replaces what was said before, unless it is told to append.
func podmanHooks(configs []string) (dirs []string, from string, err error) {
	dirs = []string{defaultHooks}
	for _, pattern := range configs {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return nil, "", err
		}
		for _, name := range names[:min(len(names), maxFiles)] {
			b, err := readFile(name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, "", fmt.Errorf("read %s: %w", name, err)
			}
			t, err := parseTOML(b)
			if err != nil {
				return nil, "", fmt.Errorf("read %s: %w", name, err)
			}
			said, ok := t.table("engine")["hooks_dir"].([]any)
			if !ok {
				continue
			}
			here := t.table("engine").texts("hooks_dir")
			if slices.ContainsFunc(said, func(v any) bool { m, _ := v.(map[string]any); return m["append"] == true }) {
				here = append(dirs, here...)
			}
			dirs, from = here, name
		}
	}
	return dirs, from, nil
}

// hooks is where podman's hooks are looked for.
type hooks struct {
	dirs   []string // that podman reads: of two files of one name it takes the later one
	from   string   // the file that says so, or ""
	others []string // where ours could have been put, and have no effect
	podman bool     // is installed
	socket string   // the agent's
}

// checkHooks looks where podman reads hooks, or, where one was named, in that
// directory.
func checkHooks(named string, podman bool, socket string) []check {
	h := hooks{dirs: []string{named}, podman: podman, socket: socket}
	if named != "" {
		return h.check()
	}
	dirs, from, err := podmanHooks(podmanConfigs)
	if err != nil {
		return []check{{hooksName, checkFail, err.Error() + ": podman does not start with it", "", "mend what is named, and see: podman info"}}
	}
	h.dirs, h.from = dirs, from
	for _, d := range []string{defaultHooks, overrideHooks} {
		if !slices.Contains(dirs, d) {
			h.others = append(h.others, d)
		}
	}
	return h.check()
}

// ourHook is what a hook file of ours says.
type ourHook struct {
	file    string
	program string
	asks    string // the socket
}

// check looks at every file of the directories, since one that is not JSON breaks
// every podman run, at the program that ours name, and at the socket where they ask.
func (h hooks) check() []check {
	if len(h.dirs) == 0 && h.podman && h.socket != "none" {
		return []check{{hooksName, checkFail, "hooks_dir is empty: podman reads no hooks, and its containers are not armed", h.from,
			fmt.Sprintf(`set hooks_dir = ["%s"] below [engine] in %s`, defaultHooks, h.from)}}
	}
	ours, bad := map[string]ourHook{}, []check(nil)
	for _, dir := range h.dirs {
		found, broken := readHooks(dir)
		maps.Copy(ours, found)
		bad = append(bad, broken...)
	}
	if len(bad) > 0 {
		return bad
	}
	create, there := ours[createHook]
	poststop, stops := ours[poststopHook]
	switch {
	case !h.podman && !there:
		return []check{{hooksName, checkSkip, "podman is not installed", "", ""}}
	case h.socket == "none" && !there:
		return []check{{hooksName, checkSkip, "none of ours, and none is wanted (hookSocket: none): podman's containers are not armed", "", ""}}
	case h.socket == "none":
		return []check{{hooksName, checkWarn, "it asks an agent that has no hook socket (hookSocket: none)", create.file,
			"rm " + quote(filepath.Dir(create.file)) + "/probity-*.json, or take hookSocket: none out of the configuration"}}
	case !there:
		return []check{h.missing()}
	}
	all := []check{h.asksHere(create, "podman's containers are not armed")}
	switch {
	case !stops:
		all = append(all, check{hooksName, checkWarn, "absent: the end of a container is found later, by its cgroup", filepath.Join(filepath.Dir(create.file), poststopHook),
			install(filepath.Dir(create.file), poststopHook)})
	default:
		all = append(all, h.asksHere(poststop, "the end of a container is found later, by its cgroup"))
	}
	all = append(all, checkProgram(create.program))
	if stops && poststop.program != create.program {
		all = append(all, checkProgram(poststop.program))
	}
	return all
}

// install is a command that puts hook files where podman reads them. By rename:
// podman reads half-written files.
func install(dir string, names ...string) string {
	into, from, to := quote(filepath.Dir(dir)), "", ""
	for _, name := range names {
		from += " packaging/hooks/" + name
		to += " " + into + "/" + name
	}
	return fmt.Sprintf("mkdir -p %[1]s && install -m 644 -t %[2]s%[3]s && mv -t %[1]s%[4]s", quote(dir), into, from, to)
}

// missing says that ours are not where podman reads, and where they are instead.
func (h hooks) missing() check {
	to := h.dirs[len(h.dirs)-1]
	for _, dir := range h.others {
		if _, err := os.Lstat(filepath.Join(dir, createHook)); err != nil {
			continue
		}
		why := ""
		if h.from != "" {
			why = " as " + h.from + " says"
		}
		return check{hooksName, checkFail, fmt.Sprintf("present, but not effective: podman reads %s%s; its containers are not armed", strings.Join(h.dirs, ", "), why),
			filepath.Join(dir, createHook), fmt.Sprintf("mkdir -p %[1]s && mv -t %[1]s %[2]s/probity-*.json", quote(to), quote(dir))}
	}
	return check{hooksName, checkFail, "no " + createHook + ": podman's containers are not armed", strings.Join(h.dirs, ", "), install(to, createHook, poststopHook)}
}

func (h hooks) asksHere(o ourHook, otherwise string) check {
	if o.asks != h.socket {
		return check{hooksName, checkFail, fmt.Sprintf("it asks on %s, the agent listens on %s: %s", o.asks, h.socket, otherwise), o.file,
			fmt.Sprintf(`end the args of %s with "--socket", "%s"`, o.file, h.socket)}
	}
	return check{hooksName, checkOK, "asks on " + o.asks, o.file, ""}
}

// readHooks reads the hook files of a directory: ours by their names, and what is
// wrong with any.
func readHooks(dir string) (ours map[string]ourHook, bad []check) {
	files, err := filepath.Glob(filepath.Join(globbed(dir), "*.json"))
	if err != nil {
		return nil, []check{{hooksName, checkFail, err.Error(), dir, "name another directory"}}
	}
	ours = map[string]ourHook{}
	for _, name := range files {
		var h struct {
			Hook struct {
				Path string   `json:"path"`
				Args []string `json:"args"`
			} `json:"hook"`
		}
		data, err := readFile(name)
		if err == nil {
			err = json.Unmarshal(data, &h)
		}
		if err != nil {
			bad = append(bad, check{hooksName, checkFail, fmt.Sprintf("%v: podman may start no container", err), name, "mend or remove " + name})
			continue
		}
		ours[filepath.Base(name)] = ourHook{name, h.Hook.Path, socketOf(h.Hook.Args)}
	}
	return ours, bad
}

// globbed is a name as a pattern that only it matches.
func globbed(name string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(name)
}

// socketOf returns where a hook with these arguments asks: its own name, the stage,
// and pairs of an option and its value.
func socketOf(args []string) string {
	socket := wire.DefaultPath
	for i := 2; i+1 < len(args); i += 2 {
		if args[i] == "--socket" {
			socket = args[i+1]
		}
	}
	return socket
}

// checkProgram: podman skips a program that is missing and says nothing.
func checkProgram(path string) check {
	const do = "install bin/probity-hook there, owned by root, mode 0755"
	fail := func(why string) check { return check{"hook program", checkFail, why, path, do} }
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fail(err.Error() + ": podman skips it silently")
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fail("not a regular file")
	case st.Mode&0o111 == 0:
		return fail("not executable")
	case st.Uid != 0 || st.Mode&0o022 != 0:
		return fail("others than root may change it")
	}
	f, err := elf.Open(path)
	if err != nil {
		return fail("not an ELF program: " + err.Error())
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fail("not static")
		}
	}
	return check{"hook program", checkOK, "static, and only root can change it", path, ""}
}
