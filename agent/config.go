package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"probity/bpf"
	"probity/bpf/probe"
	"probity/evidence/nodekey"
	"probity/evidence/sign/pkcs11"
	"probity/runtime/oci"
)

// Config configures an Agent. The zero value of a field is the default in
// parentheses. The same fields, in the same spelling, are the configuration
// file's.
type Config struct {
	// Node is the node's name in evidence (the host name).
	Node string `yaml:"node"`
	// State holds the node's key, the sequence and the instance
	// (/var/lib/probity).
	State string `yaml:"state"`
	// Key is where the node's key is: "file" (node.key in the state directory),
	// "credential:NAME" of systemd, "tpm" or "tpm:/PATH" (node.tpm in the state
	// directory), or a pkcs11: URI (file).
	Key string `yaml:"key"`
	// KeyHelper is probity-pkcs11, for a key on a token
	// (/usr/libexec/probity/probity-pkcs11); KeyHelperUser the user that it runs as
	// (the agent's own; another takes CAP_SETUID, CAP_SETGID and CAP_KILL).
	KeyHelper     string `yaml:"keyHelper"`
	KeyHelperUser string `yaml:"keyHelperUser"`
	// Spool is where evidence is published (the state directory's "spool").
	Spool string `yaml:"spool"`
	// SpoolQuotaMiB bounds the chunks in the spool, in MiB (1024; -1: no bound).
	// Past it the oldest go: first what every consumer has acknowledged, then the
	// rest, which is signed.
	SpoolQuotaMiB int64 `yaml:"spoolQuotaMiB"`
	// Group may read the spool: a name or a number (none: only root may).
	Group string `yaml:"group"`
	// ContainerQuotaMiB bounds what the spool holds of one container, in MiB (a
	// sixteenth of SpoolQuotaMiB, or 64 where that has no bound; -1: no bound). Past it
	// further entries of the container's sets are not written, which is signed.
	ContainerQuotaMiB int64 `yaml:"containerQuotaMiB"`
	// Policies is the directory of *.yaml policies (/etc/probity/policies.d).
	Policies string `yaml:"policies"`
	// HookSocket is where OCI hooks ask (/run/probity/hook.sock; "none": nowhere).
	HookSocket string `yaml:"hookSocket"`
	// RootlessHookSocket is where the hooks of users ask who run containers by
	// themselves (none): everybody may connect there, so it is opt in. Of a user's
	// containers it believes what the kernel confirms (docs/rootless.md).
	RootlessHookSocket string `yaml:"rootlessHookSocket"`
	// HookProgram is the OCI hook on the host (/usr/libexec/probity/probity-hook), for
	// containers of CRI-O that a closed policy may refuse.
	HookProgram string `yaml:"hookProgram"`
	// AdminSocket is where the command line asks (/run/probity/admin.sock).
	AdminSocket string `yaml:"adminSocket"`
	// NRISockets are the runtimes' NRI sockets (/var/run/nri/nri.sock; "none": none).
	NRISockets []string `yaml:"nriSockets"`
	// RuntimeStates are directories of runc or crun with the states of containers,
	// which are looked at for those that run when the agent starts (/run/runc and
	// /run/crun, which are podman's too; "none": none).
	RuntimeStates []string `yaml:"runtimeStates"`
	// ContainerdAddress is asked for images that NRI does not describe, and for events
	// (/run/containerd/containerd.sock).
	ContainerdAddress string `yaml:"containerdAddress"`
	// ContainerdEvents says whether containers are taken from containerd's events, too:
	// those that NRI does not tell of (on; "off": they are not).
	ContainerdEvents string `yaml:"containerdEvents"`
	// PodmanRoot is podman's storage (/var/lib/containers/storage).
	PodmanRoot string `yaml:"podmanRoot"`
	// DockerRoot is docker's data-root (/var/lib/docker).
	DockerRoot string `yaml:"dockerRoot"`
	// Barrier is how long a container's start is held at most (1200ms; the
	// runtimes' own limit is 2 s, and a plugin past it is cut off).
	Barrier time.Duration `yaml:"barrier"`
	// Health is the time between two proofs that a site is still armed (5s).
	Health time.Duration `yaml:"health"`
	// BTF is a file with the types of this kernel's structures, or a directory
	// of archives laid out as BTFHub's, for kernels without /sys/kernel/btf
	// (none). A kernel that has its own uses its own.
	BTF string `yaml:"btf"`
	// Linger is how long links stay after their last container (30s).
	Linger time.Duration `yaml:"linger"`
	// KeepIn is a directory below a BPF file system: what counts is pinned there for
	// the next agent, instead of with the service manager. Empty: not.
	KeepIn string `yaml:"keepIn"`

	// BPF sizes the kernel's maps.
	BPF bpf.Options `yaml:"-"`

	// Version is the program's version, for evidence and status.
	Version string `yaml:"-"`
	// Ready is called once every source has been started.
	Ready func() `yaml:"-"`
	// Starting is called at least once for each chunk of the spool that is read before
	// Ready, of which there may be many.
	Starting func() `yaml:"-"`
	// Stopping is called when the agent begins to end, and whenever it got further with
	// that: the last lines of many runs take their time.
	Stopping func() `yaml:"-"`
	// Reread reads the configuration again, for a reload.
	Reread func() (Config, error) `yaml:"-"`
	// Hangup asks for a reload, as SIGHUP does.
	Hangup <-chan struct{} `yaml:"-"`
	// Keeper holds what counts while there is no agent (nil: nobody), and Kept is what
	// it held until now, by name. New takes it over.
	Keeper probe.Keeper          `yaml:"-"`
	Kept   map[string][]*os.File `yaml:"-"`
	// KeepsSockets: the keeper can hold sockets, too.
	KeepsSockets bool `yaml:"-"`
	// Alive is called every AliveEvery (default 5 s), for a watchdog that waits three
	// times as long, unless a loop of the agent hangs.
	Alive      func()        `yaml:"-"`
	AliveEvery time.Duration `yaml:"-"`
	Log        *slog.Logger  `yaml:"-"`
}

// maxConfig bounds a configuration file.
const maxConfig = 1 << 20

// ReadConfig reads a configuration file. Unknown keys are errors. A missing
// file is an error that wraps os.ErrNotExist.
func ReadConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return Config{}, fmt.Errorf("read configuration %s: %w", path, err)
	}
	if len(b) > maxConfig {
		return Config{}, fmt.Errorf("read configuration %s: longer than %d bytes", path, maxConfig)
	}
	var c Config
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("read configuration %s: %s", path, inFile(err))
	}
	return c, nil
}

// inFile makes the decoder's words those of somebody who wrote a file and has
// not seen our types.
func inFile(err error) string {
	text := err.Error()
	for _, r := range []struct{ from, to string }{
		{"construct errors: ", ""}, {" in type agent.Config", ""}, {"field ", "key "}, {"not found", "is not known"},
		{"cannot construct !!int", "want text, or a duration such as 5s, not"}, {"cannot construct !!str", "not a value for this key (a duration is written 5s):"},
		{"cannot construct", "not a value for this key:"}, {"yaml: ", ""}, {" into time.Duration", ""},
	} {
		text = strings.ReplaceAll(text, r.from, r.to)
	}
	return text
}

// NodeKey says where the node's key is, and the node's name in evidence.
func (c Config) NodeKey() (nodekey.Config, string, error) {
	c, err := c.WithDefaults()
	if err != nil {
		return nodekey.Config{}, "", err
	}
	source, err := nodekey.ParseSource(c.Key)
	return nodekey.Config{State: c.State, Source: source, Helper: c.KeyHelper, HelperUser: c.KeyHelperUser}, c.Node, err
}

// WithDefaults checks what is set, and fills in what is not, as an agent does that
// starts with it.
func (c Config) WithDefaults() (Config, error) {
	if c.Node == "" {
		name, err := os.Hostname()
		if err != nil {
			return c, fmt.Errorf("find the node's name: %w", err)
		}
		c.Node = name
	}
	set := func(s *string, d string) {
		if *s == "" {
			*s = d
		}
	}
	set(&c.State, "/var/lib/probity")
	set(&c.KeyHelper, pkcs11.DefaultHelper)
	if _, err := nodekey.ParseSource(c.Key); err != nil {
		return c, fmt.Errorf("key: %w", err)
	}
	set(&c.Spool, c.State+"/spool")
	set(&c.Policies, "/etc/probity/policies.d")
	set(&c.HookSocket, "/run/probity/hook.sock")
	set(&c.RootlessHookSocket, "none")
	set(&c.HookProgram, "/usr/libexec/probity/probity-hook")
	set(&c.AdminSocket, "/run/probity/admin.sock")
	set(&c.ContainerdAddress, "/run/containerd/containerd.sock")
	set(&c.ContainerdEvents, "on")
	if c.ContainerdEvents != "on" && c.ContainerdEvents != "off" {
		return c, fmt.Errorf("containerdEvents: %q: want on or off", c.ContainerdEvents)
	}
	set(&c.PodmanRoot, "/var/lib/containers/storage")
	set(&c.DockerRoot, "/var/lib/docker")
	switch {
	case c.SpoolQuotaMiB == 0:
		c.SpoolQuotaMiB = 1024
	case c.SpoolQuotaMiB < -1 || c.SpoolQuotaMiB > 1<<30 || c.SpoolQuotaMiB > 0 && c.SpoolQuotaMiB < 16:
		return c, fmt.Errorf("spoolQuotaMiB: %d: want at least 16, or -1 for no bound", c.SpoolQuotaMiB)
	}
	switch {
	case c.ContainerQuotaMiB == 0 && c.SpoolQuotaMiB < 0:
		c.ContainerQuotaMiB = 64
	case c.ContainerQuotaMiB == 0:
		c.ContainerQuotaMiB = c.SpoolQuotaMiB / 16
	case c.ContainerQuotaMiB < -1 || c.ContainerQuotaMiB > 1<<30:
		return c, fmt.Errorf("containerQuotaMiB: %d: want at least 1, or -1 for no bound", c.ContainerQuotaMiB)
	case c.SpoolQuotaMiB > 0 && c.ContainerQuotaMiB > c.SpoolQuotaMiB:
		return c, fmt.Errorf("containerQuotaMiB: %d: one container may not have more than the whole spool, spoolQuotaMiB: %d", c.ContainerQuotaMiB, c.SpoolQuotaMiB)
	}
	list := func(v *[]string, d []string) {
		if *v == nil {
			*v = d
		}
		if len(*v) == 1 && (*v)[0] == "none" {
			*v = nil
		}
	}
	list(&c.NRISockets, []string{"/var/run/nri/nri.sock"})
	list(&c.RuntimeStates, oci.StateDirs)
	duration := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	duration(&c.Barrier, 1200*time.Millisecond)
	duration(&c.Health, 5*time.Second)
	duration(&c.AliveEvery, aliveEvery)
	duration(&c.Linger, 30*time.Second)
	if c.Barrier < 0 || c.Barrier > 1300*time.Millisecond {
		return c, fmt.Errorf("barrier: %v; want 0 to 1.3s: a runtime waits 2s and then cuts the agent off", c.Barrier)
	}
	if c.Health < 0 || c.Linger < 0 {
		return c, errors.New("health and linger: want a positive duration")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for _, f := range []*func(){&c.Ready, &c.Starting, &c.Stopping, &c.Alive} {
		if *f == nil {
			*f = func() {}
		}
	}
	return c, nil
}
