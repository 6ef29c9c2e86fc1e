package container

import (
	"errors"
	"strings"
	"testing"
)

func valid() Identity {
	return Identity{Runtime: Podman, ID: "c1", BootID: "b", CgroupID: 7}
}

// A run is runtime, id, boot and cgroup; attributes do not change it.
func TestRunID(t *testing.T) {
	id := valid()
	if got := id.RunID(); got != "9f396cc6f134d530d3cbcc02ac839ece" {
		t.Errorf("run id %q", got)
	}
	same := id
	same.Name, same.Image.Name, same.InitStart = "n", "i", 5
	if same.RunID() != id.RunID() {
		t.Error("an attribute changed the run")
	}
	seen := map[string]string{id.RunID(): "itself"}
	for what, change := range map[string]func(*Identity){
		"runtime": func(i *Identity) { i.Runtime = Runc },
		"id":      func(i *Identity) { i.ID = "c2" },
		"boot":    func(i *Identity) { i.BootID = "b2" },
		"cgroup":  func(i *Identity) { i.CgroupID = 8 },
		"none":    func(i *Identity) { i.CgroupID = 0 },
		"init":    func(i *Identity) { i.CgroupID, i.InitStart = 0, 9 },
	} {
		other := valid()
		change(&other)
		if was, ok := seen[other.RunID()]; ok {
			t.Errorf("another %s is the same run as %s", what, was)
		}
		seen[other.RunID()] = what
	}
}

func TestValidate(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", MaxPath+1)
	for what, change := range map[string]func(*Identity){
		"runtime":      func(i *Identity) { i.Runtime = "lxc" },
		"no id":        func(i *Identity) { i.ID = "" },
		"id with /":    func(i *Identity) { i.ID = "../x" },
		"id ..":        func(i *Identity) { i.ID = ".." },
		"long id":      func(i *Identity) { i.ID = long },
		"long name":    func(i *Identity) { i.Name = long },
		"not UTF-8":    func(i *Identity) { i.Name = "\xff" },
		"pod":          func(i *Identity) { i.Pod = &Pod{UID: long} },
		"cgroup path":  func(i *Identity) { i.CgroupPath = long },
		"digest":       func(i *Identity) { i.Image.Digest = "sha256:" + strings.Repeat("A", 64) },
		"short digest": func(i *Identity) { i.Image.ConfigDigest = "sha256:00" },
		"labels":       func(i *Identity) { i.Labels = map[string]string{"k": strings.Repeat("v", MaxPairsBytes)} },
	} {
		id := valid()
		change(&id)
		if err := id.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	n := Notice{Source: "s", Kind: Starting, Identity: valid()}
	if err := n.Validate(); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Notice){
		"kind":   func(n *Notice) { n.Kind = Existing + 1 },
		"zero":   func(n *Notice) { n.Kind = 0 },
		"source": func(n *Notice) { n.Source = "" },
		"pid":    func(n *Notice) { n.Pid = 1<<22 + 1 },
		"rootfs": func(n *Notice) { n.Rootfs = long },
		"arg0":   func(n *Notice) { n.Command.Arg0 = long },
		"PATH":   func(n *Notice) { n.Command.Path = strings.Repeat("x", MaxPATH+1) },
		"cgroup": func(n *Notice) { n.CgroupName = long },
		"space":  func(n *Notice) { n.Namespace = long },
		"dir":    func(n *Notice) { n.Command.Dir = long },
		"mounts": func(n *Notice) { n.Mounts = make([]Mount, MaxPairs+1) },
	} {
		bad := n
		change(&bad)
		if err := bad.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for k := Created; k <= Existing; k++ {
		if k.String() == "unknown" || k.String() == "" {
			t.Errorf("kind %d has no name", k)
		}
	}
}
