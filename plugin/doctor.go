package main

import (
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"probity/agent"
	"probity/bpf/kernel"
	"probity/evidence/verify"
	"probity/runtime/handoff/wire"
)

// The results of a check.
const (
	checkOK   = "ok"
	checkWarn = "warn"
	checkFail = "fail"
)

// check is one thing that was looked at. Do is what to do about it, and is
// empty only where the result is ok.
type check struct {
	Check  string `json:"check"`
	Result string `json:"result"`
	Reason string `json:"reason"`
	Do     string `json:"do,omitempty"`
}

// defaultHooks is where podman and CRI-O read hooks unless told otherwise.
const defaultHooks = "/usr/share/containers/oci/hooks.d"

func (c *cli) doctor() *cobra.Command {
	var file, hooks string
	cmd := &cobra.Command{
		Use: "doctor", Short: "Say what is wrong on this host, and what to do about it",
		Long: `Doctor looks at the configuration file, the kernel, podman's hooks and the
agent's sockets, and says of each whether it is well and what to do if not. It
changes nothing and needs no agent. It does not look at NRI, which status shows
of a running agent.

It exits with 0 if all is well, and with 1 if something is to be done: after a
warning as after a failure.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, first := checkConfig(file, cmd.Flags().Changed("config"))
			checks := append([]check{first}, checkKernel()...)
			_, err := exec.LookPath("podman")
			checks = append(checks, checkHooks(hooks, err == nil, cfg.HookSocket)...)
			if cfg.HookSocket != "none" {
				checks = append(checks, checkSocket("hook socket", cfg.HookSocket))
			}
			checks = append(checks, checkSocket("admin socket", cfg.AdminSocket))
			if err := c.print(checks, func(w io.Writer) error { return printChecks(w, checks) }); err != nil {
				return err
			}
			for _, ch := range checks {
				if ch.Result != checkOK {
					return exitError{code: exitFinding}
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "config", defaultConfig, "configuration `file`")
	cmd.Flags().StringVar(&hooks, "hooks-dir", defaultHooks, "`directory` of podman's hooks")
	return cmd
}

func printChecks(w io.Writer, checks []check) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "CHECK\tRESULT\tWHY")
	for _, ch := range checks {
		fmt.Fprintf(t, "%s\t%s\t%s\n", ch.Check, ch.Result, verify.Printable(ch.Reason))
		if ch.Do != "" {
			fmt.Fprintf(t, "\t\tto do: %s\n", verify.Printable(ch.Do))
		}
	}
	return t.Flush()
}

// checkConfig returns what an agent would start with; where it would not start,
// its sockets.
func checkConfig(file string, named bool) (agent.Config, check) {
	const what = "configuration"
	well := check{what, checkOK, file, ""}
	cfg, err := agent.ReadConfig(file)
	if errors.Is(err, os.ErrNotExist) && !named {
		well.Reason, err = file+" is absent: the defaults hold", nil
	}
	if err == nil {
		cfg, err = cfg.WithDefaults()
	}
	if err != nil {
		// Its sockets may be there all the same. Only the node's name can fail, which is not looked at.
		cfg, _ = agent.Config{HookSocket: cfg.HookSocket, AdminSocket: cfg.AdminSocket}.WithDefaults()
		return cfg, check{what, checkFail, err.Error(), "mend " + file + "; the agent does not start with it"}
	}
	return cfg, well
}

func checkKernel() []check {
	f, err := kernel.Look()
	if err != nil && !errors.Is(err, kernel.ErrNotTried) {
		return []check{{"kernel", checkFail, err.Error(), "see: probity kernel"}}
	}
	cg := check{"cgroups", checkOK, fmt.Sprint(f.Cgroups), ""}
	if err != nil {
		return []check{{"kernel", checkWarn, err.Error(), "run as root: sudo probity doctor"}, cg}
	}
	if u := f.Type("uprobe"); !u.Supported {
		return []check{{"kernel", checkFail, "no uprobes: " + u.Reason, "see: probity kernel"}, cg}
	}
	return []check{{"kernel", checkOK, f.Release + " has uprobes", ""}, cg}
}

// checkHooks looks at every file of the directory, since one that is not JSON
// breaks every podman run, at the program that ours names, and at the socket where
// that asks. socket is the agent's.
func checkHooks(dir string, podman bool, socket string) []check {
	const what = "podman hooks"
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return []check{{what, checkFail, err.Error(), "name the directory with --hooks-dir"}}
	}
	var out []check
	program, asks := "", ""
	for _, name := range files {
		var h struct {
			Hook struct {
				Path string   `json:"path"`
				Args []string `json:"args"`
			} `json:"hook"`
		}
		data, err := readHook(name)
		if err == nil {
			err = json.Unmarshal(data, &h)
		}
		if err != nil {
			out = append(out, check{what, checkFail, fmt.Sprintf("read %s: %v: podman may start no container", name, err), "mend or remove " + name})
			continue
		}
		if filepath.Base(name) == "probity-create.json" {
			program, asks = h.Hook.Path, socketOf(h.Hook.Args)
		}
	}
	switch {
	case len(out) > 0:
		return out
	case program == "" && !podman:
		return []check{{what, checkOK, "podman is not installed", ""}}
	case program == "":
		return []check{{what, checkFail, dir + " has no probity-create.json: podman's containers are not armed", "install packaging/hooks/*.json there"}}
	}
	file := filepath.Join(dir, "probity-create.json")
	well := check{what, checkOK, file, ""}
	switch {
	case socket == "none":
		well = check{what, checkWarn, file + " is there, and the agent has no hook socket (hookSocket: none)", "remove " + dir + "/probity-*.json, or take hookSocket: none out of the configuration"}
	case asks != socket:
		well = check{what, checkFail, fmt.Sprintf("the hook of %s asks on %s, the agent listens on %s: podman's containers are not armed", file, asks, socket),
			fmt.Sprintf(`end the args of %s/probity-*.json with "--socket", "%s"`, dir, socket)}
	}
	return []check{well, checkProgram(program)}
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

// maxHook bounds a file of the hooks directory.
const maxHook = 1 << 20

func readHook(name string) ([]byte, error) {
	// A FIFO in its place is not waited for.
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(errors.New("not a regular file"), err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxHook+1))
	if err == nil && len(b) > maxHook {
		err = fmt.Errorf("longer than %d bytes", maxHook)
	}
	return b, err
}

// checkProgram: podman skips a program that is missing and says nothing.
func checkProgram(path string) check {
	const what, do = "hook program", "install bin/probity-hook there, owned by root, mode 0755"
	fail := func(why string) check { return check{what, checkFail, path + ": " + why, do} }
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
	return check{what, checkOK, path, ""}
}

func checkSocket(what, path string) check {
	var st, dir unix.Stat_t
	err := unix.Lstat(path, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return check{what, checkFail, path + " is absent: the agent does not run", "systemctl start probity"}
	case err != nil:
		return check{what, checkWarn, path + ": " + err.Error(), "run as root: sudo probity doctor"}
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return check{what, checkFail, path + " is not a socket", "remove it, then systemctl restart probity"}
	}
	if err := unix.Stat(filepath.Dir(path), &dir); err != nil {
		return check{what, checkWarn, err.Error(), "run as root: sudo probity doctor"}
	}
	if st.Uid != 0 || dir.Uid != 0 || dir.Mode&0o022 != 0 {
		return check{what, checkFail, path + ": others than root may replace it", "chown root and chmod 0755 " + filepath.Dir(path) + ", then systemctl restart probity"}
	}
	switch is, err := listening(path); {
	case err != nil:
		return check{what, checkWarn, "find who listens on " + path + ": " + err.Error(), "mount /proc, and look again"}
	case !is:
		return check{what, checkFail, path + " is there and nobody listens: the agent does not run", "systemctl start probity"}
	}
	return check{what, checkOK, fmt.Sprintf("%s, mode %04o", path, st.Mode&0o777), ""}
}

// listening reports whether somebody listens on a socket file. It does not connect,
// which whoever listens would have to answer. What listens in another network
// namespace is not seen.
func listening(path string) (bool, error) {
	// It lists the name that was bound: its directory need not be spelled as the
	// configuration does, and the agent binds PATH.new and renames it (handoff.Listen).
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return false, err
	}
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return false, err
	}
	real := filepath.Join(dir, filepath.Base(path))
	for line := range strings.Lines(string(table)) {
		// Num RefCount Protocol Flags Type St Inode Path; 00010000 is __SO_ACCEPTCON.
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 8)
		if len(f) < 8 || f[3] != "00010000" {
			continue
		}
		_, bound, ok := strings.Cut(strings.TrimLeft(f[6]+" "+f[7], " "), " ")
		if !ok {
			continue
		}
		in, err := filepath.EvalSymlinks(filepath.Dir(bound))
		if err == nil && filepath.Join(in, strings.TrimSuffix(filepath.Base(bound), ".new")) == real {
			return true, nil
		}
	}
	return false, nil
}
