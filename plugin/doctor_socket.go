package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"probity/agent"
)

func startAgent() string {
	if bySystemd() {
		return "systemctl start probity"
	}
	return "start it: probity agent"
}

// checkSockets looks at those on which the agent listens.
func checkSockets(cfg agent.Config) (all []check) {
	for _, s := range []struct{ name, path string }{
		{"hook socket", cfg.HookSocket}, {"rootless socket", cfg.RootlessHookSocket}, {"admin socket", cfg.AdminSocket},
	} {
		if s.path != "none" {
			all = append(all, checkSocket(s.name, s.path))
		}
	}
	return all
}

func checkSocket(name, path string) check {
	found := func(status, what, advice string) check { return check{name, status, what, path, advice} }
	var st, dir unix.Stat_t
	err := unix.Lstat(path, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return found(checkFail, "absent: the agent does not run", startAgent())
	case err != nil:
		return found(checkUnknown, err.Error(), asRoot)
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return found(checkFail, "not a socket", then("rm "+quote(path), restart("probity")))
	}
	if err := unix.Stat(filepath.Dir(path), &dir); err != nil {
		return found(checkUnknown, err.Error(), asRoot)
	}
	if st.Uid != 0 || dir.Uid != 0 || dir.Mode&0o022 != 0 {
		return found(checkFail, "others than root may replace it",
			then(fmt.Sprintf("chown root %[1]s && chmod 0755 %[1]s", quote(filepath.Dir(path))), restart("probity")))
	}
	switch is, err := listening(path); {
	case err != nil:
		return found(checkUnknown, "find who listens: "+err.Error(), "mount /proc, and look again")
	case !is:
		return found(checkFail, "nobody listens: the agent does not run", startAgent())
	}
	return found(checkOK, fmt.Sprintf("mode %04o", st.Mode&0o777), "")
}

// listening reports whether somebody listens on a socket file. It does not connect,
// which whoever listens would have to answer. What listens in another network
// namespace is not seen.
func listening(path string) (bool, error) {
	// It lists the name that was bound: its directory need not be spelled as the
	// configuration does, and the agent binds PATH.new and renames it (handoff.Listen).
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(table)) {
		// Num RefCount Protocol Flags Type St Inode Path; 00010000 is __SO_ACCEPTCON.
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 8)
		if len(f) < 8 || f[3] != "00010000" {
			continue
		}
		_, bound, ok := strings.Cut(strings.TrimLeft(f[6]+" "+f[7], " "), " ")
		if ok && samePath(strings.TrimSuffix(bound, ".new"), path) {
			return true, nil
		}
	}
	return false, nil
}

// samePath reports whether two paths are the same name in the same directory.
func samePath(a, b string) bool {
	if filepath.Base(a) != filepath.Base(b) {
		return false
	}
	da, err := filepath.EvalSymlinks(filepath.Dir(a))
	if err != nil {
		return false
	}
	db, err := filepath.EvalSymlinks(filepath.Dir(b))
	return err == nil && da == db
}
