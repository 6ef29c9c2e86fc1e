package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// runtimePrograms are what is asked for its version. docker is its daemon: the
// client alone runs no container here.
var runtimePrograms = []struct {
	name, program string
	serves        bool // it runs as a service
}{
	{"containerd", "containerd", true}, {"cri-o", "crio", true}, {"docker", "dockerd", true}, {"podman", "podman", false}, {"runc", "runc", false}, {"crun", "crun", false},
}

// service is a process of root's on this host, outside any container.
type service struct {
	pid     int
	program string // as it was started: it may have been exchanged since
	args    []string
	dir     string // where relative names in args begin
	unit    string // the service it is of, or ""
}

// host is what doctor finds before it looks: which daemons run. Dirs is where
// programs are looked for, and config the agent's configuration file.
type host struct {
	dirs    []string
	config  string
	daemons map[string][]service // by program
}

func findHost() *host {
	h := &host{dirs: systemDirs, daemons: map[string][]service{}}
	procs, _ := filepath.Glob("/proc/[0-9]*") // without /proc none is seen to run
	for _, proc := range procs {
		for _, r := range runtimePrograms {
			if d, ok := daemonOf(proc, r.program); ok && r.serves {
				h.daemons[r.program] = append(h.daemons[r.program], d)
			}
		}
	}
	return h
}

// maxArgs bounds what is read of a command line, and maxDaemons how many of one
// program are looked at.
const (
	maxArgs    = 64 << 10
	maxDaemons = 8
)

// daemonOf looks at one process. One in a container has another root or another
// tree of processes; one of a user's own has his id.
func daemonOf(proc, program string) (service, bool) {
	exe, err := os.Readlink(proc + "/exe")
	exe = strings.TrimSuffix(exe, " (deleted)")
	if err != nil || filepath.Base(exe) != program {
		return service{}, false
	}
	var st unix.Stat_t
	if err := unix.Stat(proc, &st); err != nil || st.Uid != 0 {
		return service{}, false
	}
	for _, same := range []string{"root", "ns/pid", "ns/user"} {
		a, aErr := os.Stat(filepath.Join(proc, same))
		b, bErr := os.Stat(filepath.Join("/proc/self", same))
		if aErr != nil || bErr != nil || !os.SameFile(a, b) {
			return service{}, false
		}
	}
	line, err := os.ReadFile(proc + "/cmdline")
	if err != nil || len(line) == 0 || len(line) > maxArgs {
		return service{}, false
	}
	args := strings.Split(string(bytes.TrimSuffix(line, []byte{0})), "\x00")
	d := service{program: exe, args: args[1:]}
	d.pid, _ = strconv.Atoi(filepath.Base(proc))
	d.dir, _ = os.Readlink(proc + "/cwd")
	if cgroups, err := os.ReadFile(proc + "/cgroup"); err == nil {
		d.unit = unitOf(string(cgroups))
	}
	return d, true
}

// unitName is a name of a unit that needs no quoting.
var unitName = regexp.MustCompile(`/([A-Za-z0-9_.@:-]+\.service)(?:/|\n|$)`)

func unitOf(cgroups string) string {
	if m := unitName.FindStringSubmatch(cgroups); m != nil {
		return m[1]
	}
	return ""
}

// restart is how a daemon begins anew.
func (d service) restart(unit string) string {
	if d.unit != "" {
		unit = d.unit
	}
	return restart(unit)
}

func restart(unit string) string {
	if bySystemd() {
		return "systemctl restart " + unit
	}
	return "start " + unit + " anew"
}

// then is a command with the restart that it takes to be effective.
func then(command, restart string) string {
	if bySystemd() {
		return command + " && " + restart
	}
	return command + "; then " + restart
}

// bySystemd reports whether services here are systemd's.
func bySystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// option returns the last value of an option of a command line, by any of its names:
// --name V or --name=V, with one dash or two.
func option(args []string, names ...string) (value string, ok bool) {
	for i, a := range args {
		if a = strings.TrimPrefix(a, "-"); !strings.HasPrefix(args[i], "-") {
			continue
		}
		a = strings.TrimPrefix(a, "-")
		for _, name := range names {
			if v, cut := strings.CutPrefix(a, name+"="); cut {
				value, ok = v, true
			} else if a == name && i+1 < len(args) {
				value, ok = args[i+1], true
			}
		}
	}
	return value, ok
}

// find returns where a program is: of a daemon that runs, or in the host's directories.
func (h *host) find(program string) (string, error) {
	if ds := h.daemons[program]; len(ds) > 0 {
		_, err := trusted(ds[0].program)
		return ds[0].program, err
	}
	return findProgram(program, h.dirs)
}

func (h *host) has(program string) bool {
	path, _ := h.find(program)
	return path != ""
}

var versionText = regexp.MustCompile(`(?:^|\s)v?(\d+\.\d+[^\s,]*)`)

// checkRuntimes asks every runtime for its version, all at once.
func (h *host) checkRuntimes(ctx context.Context) []check {
	found := make([]*check, len(runtimePrograms))
	var wg sync.WaitGroup
	for i, r := range runtimePrograms {
		wg.Go(func() { found[i] = h.checkRuntime(ctx, r.name, r.program) })
	}
	wg.Wait()
	var all []check
	var absent []string
	for i, ch := range found {
		if ch == nil {
			absent = append(absent, runtimePrograms[i].name)
			continue
		}
		all = append(all, *ch)
	}
	switch {
	case len(all) == 0:
		return []check{{"runtimes", checkWarn, "none is installed in " + strings.Join(h.dirs, ", "), "", "install the one that is to be watched: containerd, cri-o or podman"}}
	case len(absent) > 0:
		all = append(all, check{"runtimes", checkSkip, "not installed: " + strings.Join(absent, ", "), "", ""})
	}
	return all
}

func (h *host) checkRuntime(ctx context.Context, name, program string) *check {
	path, err := h.find(program)
	switch {
	case path == "":
		return nil
	case errors.Is(err, errOthers):
		return &check{name, checkFail, "not asked for its version: " + err.Error(), path, "as root: chown root FILE && chmod go-w FILE, of what is named"}
	case err != nil:
		return &check{name, checkUnknown, err.Error(), path, path + " --version"}
	}
	out, err := tell(ctx, path, "--version")
	m := versionText.FindStringSubmatch(out)
	if err == nil && m == nil {
		err = fmt.Errorf("%s --version: no version in its answer", path)
	}
	if err != nil {
		return &check{name, checkUnknown, err.Error(), path, path + " --version"}
	}
	what := m[1]
	for _, d := range h.daemons[program] {
		what += fmt.Sprintf(", runs as process %d", d.pid)
	}
	return &check{name, checkOK, what[:min(len(what), 200)], path, ""}
}
