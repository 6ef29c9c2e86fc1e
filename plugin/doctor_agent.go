package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"probity/agent"
	"probity/evidence/nodekey"
	"probity/evidence/sign"
)

const seeLog = "journalctl -u probity -n 50"

// checkService asks systemd for the agent's unit.
func (h *host) checkService(ctx context.Context) []check {
	const name = "service"
	if !bySystemd() {
		return []check{{name, checkSkip, "systemd does not run here", "", ""}}
	}
	systemctl, err := findProgram("systemctl", h.dirs)
	if systemctl == "" && err == nil {
		err = errors.New("no systemctl")
	}
	var out string
	if err == nil {
		out, err = tell(ctx, systemctl, "show", "probity.service", "--property=LoadState,ActiveState,UnitFileState,NRestarts,Result,ExecMainStatus")
	}
	if err != nil {
		return []check{{name, checkUnknown, err.Error(), "probity.service", "systemctl status probity"}}
	}
	return []check{judgeService(out)}
}

// judgeService reads what systemctl show says.
func judgeService(out string) check {
	unit := map[string]string{}
	for line := range strings.Lines(out) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		unit[k] = v
	}
	found := func(status, what, advice string) check {
		return check{"service", status, what, "probity.service", advice}
	}
	state := unit["ActiveState"]
	switch {
	case unit["LoadState"] == "not-found":
		return found(checkWarn, "not installed: nothing starts the agent", "install packaging/systemd/probity.service, see: Install it, in README.md")
	case unit["LoadState"] != "loaded":
		return found(checkFail, "it is "+unit["LoadState"], "systemctl status probity; systemd-analyze verify probity.service")
	case state == "failed" && unit["ExecMainStatus"] == fmt.Sprint(exitPIN):
		return found(checkFail, "the token refused the PIN: it is not tried again, since that would lock the token", "put the right PIN where key: says, then "+startAgent())
	case state == "failed":
		return found(checkFail, fmt.Sprintf("it failed (%s, exit status %s)", unit["Result"], unit["ExecMainStatus"]), seeLog)
	case state != "active":
		return found(checkFail, "it is "+state, "systemctl enable --now probity")
	case unit["UnitFileState"] != "enabled" && unit["UnitFileState"] != "static":
		return found(checkWarn, "it runs, and does not start at boot ("+unit["UnitFileState"]+")", "systemctl enable probity")
	case unit["NRestarts"] != "0" && unit["NRestarts"] != "":
		return found(checkWarn, "it runs, after "+unit["NRestarts"]+" restarts that nobody asked for", seeLog+"; once read: systemctl reset-failed probity")
	}
	return found(checkOK, "it runs, and starts at boot", "")
}

// checkAgent asks the agent that runs, if there is one.
func checkAgent(ctx context.Context, cfg agent.Config) []check {
	const name = "agent"
	if ch := checkSocket(name, cfg.AdminSocket); ch.Status != checkOK {
		return []check{{name, checkSkip, "nothing to ask: see admin socket", "", ""}}
	}
	var st agent.Status
	if err := agent.Ask(ctx, cfg.AdminSocket, "/status", &st); err != nil {
		if errors.Is(err, unix.EACCES) {
			return []check{{name, checkUnknown, err.Error(), cfg.AdminSocket, asRoot}}
		}
		return []check{{name, checkFail, "it does not answer: " + err.Error(), cfg.AdminSocket, seeLog}}
	}
	return judgeAgent(st)
}

func judgeAgent(st agent.Status) []check {
	const name = "agent"
	var all []check
	found := func(status, what, advice string) { all = append(all, check{name, status, what, "", advice}) }
	if st.Version != versionString() {
		found(checkWarn, fmt.Sprintf("it is version %s, this command is %s", st.Version, versionString()), restart("probity"))
	}
	if st.Unsigned != "" {
		found(checkFail, "it cannot sign now, and evidence waits: "+st.Unsigned, seeLog)
	}
	for _, s := range slices.Sorted(maps.Keys(st.Sources)) {
		if strings.HasPrefix(st.Sources[s], "disconnected") {
			found(checkWarn, "of "+s+" it hears nothing: "+st.Sources[s], "start that runtime, or leave it out of the configuration (nriSockets)")
		}
	}
	for _, p := range st.Problems {
		found(checkWarn, p, "probity status; "+seeLog)
	}
	for _, why := range slices.Sorted(maps.Keys(st.Stored.Dropped)) {
		if n := st.Stored.Dropped[why]; n > 0 {
			found(checkWarn, fmt.Sprintf("%d lines dropped since its start, and signed as such (%s)", n, why), "docs/quota.md says what to do about each reason")
		}
	}
	if len(all) == 0 {
		found(checkOK, fmt.Sprintf("it answers; policies: %d, probes: %d, live runs: %d", st.Policies.Policies, st.Policies.Probes, st.Live), "")
	}
	return all
}

// checkKey looks at the node's key. Of a token or a TPM only the public half is
// looked at: a PIN that is tried once more may be the last.
func checkKey(cfg agent.Config) check {
	const name = "key"
	key, _, err := cfg.NodeKey()
	if err != nil {
		return check{name, checkFail, err.Error(), "", "mend key: in the configuration"}
	}
	public, file := filepath.Join(cfg.State, sign.PublicFile), filepath.Join(cfg.State, sign.KeyFile)
	found := func(status, what, where, advice string) check { return check{name, status, what, where, advice} }
	if _, err := os.Lstat(public); errors.Is(err, fs.ErrNotExist) {
		advice := "probity key init"
		if key.Source.Kind == nodekey.File {
			return found(checkSkip, "none yet: the agent makes it at its first start", file, "")
		}
		return found(checkWarn, "none yet, and the agent makes none there ("+key.Source.String()+")", public, advice)
	}
	if key.Source.Kind != nodekey.File {
		pub, _, err := nodekey.Public(cfg.State)
		if err != nil {
			return found(checkUnknown, err.Error(), public, "probity key show")
		}
		return found(checkOK, pub.KeyID()+", in "+key.Source.Kind+", which is not opened here: that could cost a try of the PIN", public, "")
	}
	var st unix.Stat_t
	_, changed := trusted(cfg.State)
	switch err := unix.Lstat(file, &st); {
	case errors.Is(changed, errOthers):
		return found(checkFail, "its directory: "+changed.Error(), cfg.State, "as root: chown root FILE && chmod go-w FILE, of what is named")
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && (st.Uid != 0 || st.Mode&0o077 != 0):
		return found(checkFail, fmt.Sprintf("others than root may read it (mode %04o, user %d): whoever has it can sign as this node", st.Mode&0o7777, st.Uid), file,
			fmt.Sprintf("chown root %[1]s && chmod 0600 %[1]s; then, since somebody may have it: probity key rotate", quote(file)))
	case errors.Is(err, unix.EACCES):
		return found(checkUnknown, err.Error(), file, asRoot)
	}
	shown, _, err := nodekey.Show(key)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return found(checkUnknown, err.Error(), file, asRoot)
	case err != nil:
		return found(checkFail, err.Error(), file, "docs/keys.md says how to get it back; without it: mv "+quote(public)+" away and begin with a new one")
	case shown.Problem != "":
		return found(checkFail, "it cannot sign: "+shown.Problem, file, "probity key show")
	}
	return found(checkOK, shown.KeyID, file, "")
}

// checkClock asks the kernel whether something keeps its clock right.
func checkClock() check {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return check{"clock", checkUnknown, "adjtimex: " + err.Error(), "", "timedatectl"}
	}
	return judgeClock(state, t.Status, time.Duration(t.Maxerror)*time.Microsecond)
}

func judgeClock(state int, status int32, off time.Duration) check {
	const timeError = 5 // TIME_ERROR
	if state == timeError || status&unix.STA_UNSYNC != 0 {
		return check{"clock", checkWarn, "nothing keeps it right: the times in evidence are this host's own", "", "timedatectl set-ntp true, or start chronyd"}
	}
	return check{"clock", checkOK, fmt.Sprintf("synchronised, at most %s off", off.Round(time.Millisecond)), "", ""}
}
