package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"probity/runtime/container"
)

const (
	maxConfig    = 8 << 20  // bytes of config.json; a container with all of seccomp has 100 KiB
	maxMountinfo = 16 << 20 // bytes of /proc/PID/mountinfo
)

// config is what is used of a bundle's config.json.
type config struct {
	root        string // as written: may be relative to the bundle
	mounts      []container.Mount
	annotations map[string]string
	command     container.Command
}

func readConfig(bundle *os.File, o owner) (config, error) {
	f, err := o.openFile(bundle, "config.json")
	if err != nil {
		return config{}, err
	}
	defer f.Close()
	b, err := readAllBounded(f, maxConfig)
	if err != nil {
		return config{}, err
	}
	c, err := parseConfig(b)
	if err != nil {
		return config{}, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return c, nil
}

// parseConfig reads the members of an OCI configuration (runtime-spec,
// "Configuration") that are used here; it may have others.
func parseConfig(b []byte) (c config, err error) {
	o, err := parseObject(b)
	if err != nil {
		return c, err
	}
	if err := o.member("annotations", &c.annotations); err != nil {
		return c, err
	}
	var root object
	if err := o.member("root", &root); err != nil {
		return c, err
	}
	if err := root.member("path", &c.root); err != nil {
		return c, err
	}
	if c.root == "" || len(c.root) > container.MaxPath || strings.ContainsRune(c.root, 0) {
		return c, errors.New("member root: no path, or one that is too long")
	}
	if c.command, err = parseCommand(o); err != nil {
		return c, err
	}
	var mounts []object
	if err := o.member("mounts", &mounts); err != nil {
		return c, err
	}
	if len(mounts) > container.MaxPairs {
		// To know only some of them would make a search look complete.
		return c, fmt.Errorf("member mounts: %d of them, at most %d are taken", len(mounts), container.MaxPairs)
	}
	for i, m := range mounts {
		mount, err := parseMount(m)
		if err != nil {
			return c, fmt.Errorf("member mounts, number %d: %w", i, err)
		}
		c.mounts = append(c.mounts, mount)
	}
	return c, nil
}

// parseCommand reads of "process" what finds the program.
func parseCommand(o object) (container.Command, error) {
	var process object
	if err := o.member("process", &process); err != nil {
		return container.Command{}, err
	}
	var args, env []string
	var dir string
	if err := errors.Join(process.member("args", &args), process.member("env", &env), process.member("cwd", &dir)); err != nil {
		return container.Command{}, fmt.Errorf("member process: %w", err)
	}
	return container.CommandOf(args, env, dir), nil
}

func parseMount(o object) (m container.Mount, err error) {
	var options []string
	err = errors.Join(o.member("destination", &m.Destination), o.member("type", &m.Type), o.member("source", &m.Source), o.member("options", &options))
	if err != nil {
		return m, err
	}
	if m.Destination == "" || len(m.Destination)+len(m.Type)+len(m.Source) > 2*container.MaxPath {
		return m, errors.New("no destination, or too long")
	}
	// Runtimes take a relative destination as below the container's root.
	m.Destination = path.Join("/", m.Destination)
	if slices.Contains(options, "bind") || slices.Contains(options, "rbind") {
		m.Type = "bind"
	}
	return m, nil
}

// rootfs returns the path of the root file system, without symlinks. Init has
// prepared it by now: it has mounted it, or at least works in it.
func (c config) rootfs(bundle *os.File, init *process) (string, error) {
	p := c.root
	if !path.IsAbs(p) {
		p = path.Join(bundle.Name(), p)
	}
	fd, err := unix.Open(p, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open the root file system %s: %w", p, err)
	}
	f := os.NewFile(uintptr(fd), p)
	defer f.Close()
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", fmt.Errorf("open the root file system %s: %w", p, err)
	}
	if isDir(procPath(init.pid, "cwd"), f) {
		return real, nil
	}
	b, err := readBounded(procPath(init.pid, "mountinfo"), maxMountinfo)
	if err != nil {
		return "", err
	}
	if !hasMount(b, real) {
		return "", fmt.Errorf("the root file system %s is neither mounted by pid %d nor where it works", real, init.pid)
	}
	return real, nil
}

// rootfsOfUser returns the path of the root file system that a user's runtime has
// prepared, as init sees it. Nothing is opened by it here: in init's mount namespace, and
// behind the directories of a user, it may lead anywhere.
func (c config) rootfsOfUser(bundle *os.File, init *process) (string, error) {
	p := c.root
	if !path.IsAbs(p) {
		p = path.Join(bundle.Name(), p)
	}
	if path.Clean(p) != p || p == "/" {
		return "", fmt.Errorf("the root file system %q: want an absolute, clean path of a directory", p)
	}
	b, err := readBounded(procPath(init.pid, "mountinfo"), maxMountinfo)
	if err != nil {
		return "", err
	}
	if !hasMount(b, p) {
		return "", fmt.Errorf("the root file system %s is not mounted by pid %d", p, init.pid)
	}
	return p, nil
}

// hasMount reports whether a mountinfo file (proc_pid_mountinfo(5)) has a
// mount at the path.
func hasMount(mountinfo []byte, at string) bool {
	for line := range bytes.Lines(mountinfo) {
		fields := bytes.Fields(line)
		if len(fields) >= 5 && unescape(string(fields[4])) == at {
			return true
		}
	}
	return false
}

// unescape decodes the octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// UnmarshalJSON makes a nested object as strict as the outer one.
func (o *object) UnmarshalJSON(b []byte) error {
	if bytes.Equal(b, []byte("null")) {
		return nil
	}
	p, err := parseObject(b)
	*o = p
	return err
}

var _ json.Unmarshaler = (*object)(nil)
