// Command probity-runtime is an OCI runtime that adds the agent's hooks to a
// container's bundle and becomes the real runtime: for docker, which has no
// directory of hooks (docs/docker.md).
//
// In: the command line of an OCI runtime, before which may stand --real PATH (the
// runtime; runc, as PATH finds it, if it is not said) and --hook PATH. Out: the real
// runtime, executed in this very process with that command line. At `create` and `run`
// the bundle's config.json then names probity-hook at createRuntime and at poststop; all
// its other bytes are as they were, and it is replaced whole or not at all.
//
// Whatever goes wrong before is no reason not to become the real runtime: the
// container then starts as if this program did not exist, and the system log says
// why the agent will not hear of it. The container's own stdout and stderr are this
// program's at `create`, so nothing is written there, unless there is no runtime to
// become.
//
// It trusts who calls it and who may write the bundle, as the runtime does. It is not
// a control: who may start a container may name another runtime.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	defaultHook = "/usr/libexec/probity/probity-hook"
	systemLog   = "/dev/log"
)

func main() {
	o, args := parse(os.Args[1:])
	if err := o.prepare(args); err != nil {
		tell(systemLog, err)
	}
	path, err := o.runtime(os.Getenv("PATH"))
	if err == nil {
		err = syscall.Exec(path, append([]string{path}, args...), os.Environ())
	}
	fmt.Fprintf(os.Stderr, "probity-runtime: execute the real runtime %s: %v\n", path, err)
	os.Exit(127) // as a shell says it
}

// options are what is said to this program, and not to the runtime.
type options struct {
	real string
	hook string
}

// parse takes them from the front of the command line; the rest is the runtime's.
func parse(args []string) (o options, rest []string) {
	o.hook = defaultHook
	for len(args) >= 2 {
		switch args[0] {
		case "--real":
			o.real = args[1]
		case "--hook":
			o.hook = args[1]
		default:
			return o, args
		}
		args = args[2:]
	}
	return o, args
}

// prepare adds the hooks, if the command line makes a container.
func (o options) prepare(args []string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("probity-runtime: %v", p)
		}
	}()
	bundle, ok := creates(args)
	if !ok {
		return nil
	}
	// A runtime that cannot execute a hook makes no container.
	st, err := os.Stat(o.hook)
	if err == nil && (!st.Mode().IsRegular() || !filepath.IsAbs(o.hook)) {
		err = errors.New("not a program by its whole path")
	}
	if err == nil {
		err = syscall.Access(o.hook, 1) // X_OK
	}
	if err != nil {
		return fmt.Errorf("%s: the hook %s: %w", bundle, o.hook, err)
	}
	return addTo(filepath.Join(bundle, "config.json"), o.hook)
}

// runtime returns the program to become: never this one.
func (o options) runtime(search string) (string, error) {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	candidates := []string{o.real}
	if o.real == "" {
		candidates = nil
		for _, dir := range append(filepath.SplitList(search), "/usr/sbin", "/usr/bin") {
			if filepath.IsAbs(dir) {
				candidates = append(candidates, filepath.Join(dir, "runc"))
			}
		}
	}
	for _, path := range candidates {
		st, err := os.Stat(path)
		if err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 && !os.SameFile(st, self) {
			return path, nil
		}
	}
	return o.real, errors.New("there is no such program, or it is this one")
}

// tell writes to the system log if somebody reads it, and waits for nobody.
func tell(path string, err error) {
	fd, e := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if e != nil {
		return
	}
	defer syscall.Close(fd)
	const warning = "<28>" // facility daemon, severity warning (RFC 5424, 6.2.1)
	text := strings.ToValidUTF8(err.Error(), "?")
	syscall.Sendto(fd, []byte(warning+"probity-runtime: not hooked: "+text[:min(len(text), 1024)]), 0, &syscall.SockaddrUnix{Name: path})
}
