package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"probity/agent"
)

const (
	crioName   = "cri-o NRI"
	crioConfig = "/etc/crio/crio.conf"
	crioDrops  = "/etc/crio/crio.conf.d"
)

// checkCRIO asks the CRI-O that runs, or else the one that is installed, what holds.
func (h *host) checkCRIO(ctx context.Context, cfg agent.Config) []check {
	path, err := h.find("crio")
	if path == "" || err != nil {
		return nil // checkRuntimes says so
	}
	d, running := service{program: path}, false
	if ds := h.daemons["crio"]; len(ds) > 0 {
		d, running = ds[0], true
	}
	return crio{d, running, h.config}.check(ctx, cfg)
}

// crio is a CRI-O, and the agent's configuration file.
type crio struct {
	service
	running bool
	agent   string
}

func (c crio) check(ctx context.Context, cfg agent.Config) []check {
	file, ok := option(c.args, "config", "c")
	if !ok {
		file = crioConfig
	}
	r := nriAsked{name: crioName, where: file, running: c.running, restart: c.restart("crio"), agent: c.agent}
	r.set = func(key, value string) string { return then(setCRIO(c.args, "nri_"+key, value), r.restart) }
	r.on = then(setCRIO(c.args, "enable_nri", "true"), r.restart)
	out, command, err := c.ask(ctx)
	if ctx.Err() != nil || errors.Is(err, errOthers) {
		return []check{{crioName, checkUnknown, err.Error(), file, command}}
	}
	if err != nil {
		return []check{{crioName, checkFail, err.Error() + ": CRI-O does not start with it", file, "mend what this names: " + command}}
	}
	f, known, err := crioFacts(out)
	switch {
	case err != nil:
		return []check{{crioName, checkUnknown, err.Error(), file, command}}
	case !known:
		return []check{{crioName, checkFail, "this CRI-O has no NRI: its containers are not armed", c.program, "install CRI-O 1.30 or newer, which has NRI switched on"}}
	}
	return []check{r.check(f, cfg)}
}

// listens is where `crio config` says that CRI-O's socket is.
var listens = regexp.MustCompile(`(?m)^(?:# ?)?listen *= *"([^"\n]*)"`)

// ask has the program read the files, and asks the running one, on the socket that they
// name, for what it has made of them. The command is the one that says it.
func (c crio) ask(ctx context.Context) (out, command string, err error) {
	var args []string
	command = quote(c.program)
	for _, o := range []struct{ long, short string }{{"config", "c"}, {"config-dir", "d"}} {
		if v, ok := option(c.args, o.long, o.short); ok {
			args = append(args, "--"+o.long+"="+v)
			command += " --" + o.long + "=" + quote(v)
		}
	}
	command += " config"
	out, err = tell(ctx, c.program, append(args, "config")...)
	if err != nil || !c.running {
		return out, command, err
	}
	socket, ok := option(c.args, "listen")
	if m := listens.FindStringSubmatch(out); !ok && m != nil {
		socket = m[1]
	}
	live, err := tell(ctx, c.program, "status", "--socket="+socket, "config")
	if ctx.Err() != nil {
		return "", command, err
	}
	if err != nil { // an older one has no such command: what the files say
		return out, command, nil
	}
	return live, fmt.Sprintf("%s status --socket=%s config", quote(c.program), quote(socket)), nil
}

// defaulted is a key of NRI's that `crio config` shows as a comment, because it has
// its default.
var defaulted = regexp.MustCompile(`(?m)^# ?((?:enable_nri|nri_listen|nri_disable_connections|nri_plugin_registration_timeout|nri_plugin_request_timeout) *=)`)

// crioFacts reads what CRI-O prints of its configuration; known is false of one that
// has no NRI.
func crioFacts(out string) (f nriFacts, known bool, err error) {
	t, err := parseTOML([]byte(defaulted.ReplaceAllString(out, "$1")))
	if err != nil {
		return f, false, fmt.Errorf("read CRI-O's configuration: %w", err)
	}
	nri := t.table("crio", "nri")
	on, known := nri["enable_nri"].(bool)
	if known && !on {
		f.off = "enable_nri = false"
	}
	f.socket, _ = nri["nri_listen"].(string)
	f.noConnections, _ = nri["nri_disable_connections"].(bool)
	f.register, f.request = nri.duration("nri_plugin_registration_timeout"), nri.duration("nri_plugin_request_timeout")
	return f, known, nil
}

// setCRIO is a command that sets a key in a file of its own, which is read last.
func setCRIO(args []string, key, value string) string {
	dir, ok := option(args, "config-dir", "d")
	if !ok || dir == "" {
		dir = crioDrops
	}
	return fmt.Sprintf(`mkdir -p %s && printf '%%s\n' '[crio.nri]' %s > %s`, quote(dir), quote(key+" = "+value), quote(dir+"/99-"+key+".conf"))
}
