package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"probity/agent"
)

// nriFacts is what a runtime's effective configuration says of NRI.
type nriFacts struct {
	off           string // why it is off; "" if it is on
	socket        string
	noConnections bool          // no plugin may connect from outside, as the agent does
	register      time.Duration // what a plugin has to register
	request       time.Duration // what a plugin has to answer
}

// nriAsked is a runtime whose configuration says f. Set is a command that changes a
// key of its NRI configuration and has the runtime take it.
type nriAsked struct {
	name    string
	where   string // its configuration
	running bool
	restart string
	on      string // a command that switches NRI on
	set     func(key, value string) string
	agent   string // the agent's configuration file
}

// check judges what can be judged alike for every runtime.
func (r nriAsked) check(f nriFacts, cfg agent.Config) check {
	found := func(status, what, advice string) check { return check{r.name, status, what, r.where, advice} }
	switch {
	case f.off != "":
		return found(checkFail, "NRI is off ("+f.off+"): its containers are not armed", r.on)
	case f.noConnections:
		return found(checkFail, "NRI is on, and lets no plugin connect: its containers are not armed", r.set("disable_connections", "false"))
	case slices.Contains(cfg.NRISockets, "none"):
		return found(checkWarn, "NRI is on, and the agent is told not to use it (nriSockets: none)", then("take nriSockets: [none] out of "+r.agent, restart("probity")))
	case !slices.ContainsFunc(cfg.NRISockets, func(s string) bool { return s == f.socket || samePath(s, f.socket) }):
		return found(checkFail, fmt.Sprintf("NRI is at %s, and the agent connects to %s", f.socket, strings.Join(cfg.NRISockets, ", ")),
			then(fmt.Sprintf("add %s to nriSockets in %s", quote(f.socket), r.agent), restart("probity")))
	case f.request > 0 && f.request <= cfg.Barrier:
		return found(checkWarn, fmt.Sprintf("a plugin has %s to answer and the agent may hold a start for %s: it can be cut off", f.request, cfg.Barrier), r.set("plugin_request_timeout", `"2s"`))
	case !r.running:
		return found(checkOK, "NRI is on at "+f.socket+"; it does not run", "")
	}
	if status, what, advice := socketRights(f.socket, r.restart); status != checkOK {
		return found(status, what, advice)
	}
	what := "NRI is on at " + f.socket
	if f.request > 0 {
		what += fmt.Sprintf("; a plugin has %s to register and %s to answer", f.register, f.request)
	}
	return found(checkOK, what, "")
}

// socketRights: who may connect to a runtime's NRI socket may change every container.
func socketRights(socket, restart string) (status, what, advice string) {
	real, err := filepath.EvalSymlinks(socket)
	var st unix.Stat_t
	if err == nil {
		err = unix.Stat(real, &st)
	}
	switch {
	case os.IsNotExist(err):
		return checkFail, "NRI is on in the configuration, and " + socket + " is not there: the runtime was started with another one", restart
	case err != nil:
		return checkUnknown, err.Error(), asRoot
	}
	if is, err := listening(socket); err != nil || !is {
		return checkFail, "NRI is on in the configuration, and nobody listens on " + socket, restart
	}
	if st.Mode&0o022 == 0 {
		return checkOK, "", ""
	}
	// Its directory may keep the others out.
	for dir := filepath.Dir(real); dir != "/"; dir = filepath.Dir(dir) {
		if err := unix.Stat(dir, &st); err == nil && st.Mode&0o011 == 0 {
			return checkOK, "", ""
		}
	}
	return checkWarn, socket + " can be connected to by others than root, who can change every container", "chmod go-w " + quote(real)
}
