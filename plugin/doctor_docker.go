package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"probity/agent"
)

const dockerConfig = "/etc/docker/daemon.json"

// checkDocker says how docker's containers are seen: its daemon has no NRI that tells of
// a start, and no hooks, but a choice of runtimes.
func (h *host) checkDocker(cfg agent.Config) []check {
	if !h.has("dockerd") {
		return nil // checkRuntimes says so
	}
	file := dockerConfig
	for _, d := range h.daemons["dockerd"] {
		if f, ok := option(d.args, "config-file"); ok {
			file = f
		}
	}
	return judgeDocker(file, cfg)
}

func judgeDocker(file string, cfg agent.Config) []check {
	const name = "docker runtime"
	found := func(status, what, advice string) []check { return []check{{name, status, what, file, advice}} }
	var said struct {
		Runtimes map[string]struct {
			Path string `json:"path"`
		} `json:"runtimes"`
		Default string `json:"default-runtime"`
	}
	b, err := readFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return found(checkUnknown, err.Error(), asRoot)
	default:
		if err := json.Unmarshal(b, &said); err != nil {
			return found(checkFail, err.Error()+": docker does not start with it", "mend "+file)
		}
	}
	var ours []string
	var all []check
	for _, n := range slices.Sorted(maps.Keys(said.Runtimes)) {
		if path := said.Runtimes[n].Path; filepath.Base(path) == "probity-runtime" {
			ours = append(ours, n)
			if ch := checkProgram(path); ch.Status != checkOK {
				ch.Name, ch.Advice = name, "install bin/probity-runtime there, owned by root, mode 0755"
				all = append(all, ch)
			}
		}
	}
	switch {
	case len(ours) == 0 && cfg.ContainerdEvents == "off":
		return found(checkWarn, "no runtime of ours, and containerd's events are not taken (containerdEvents: off): docker's containers are not seen", "docs/docker.md says how to add the runtime")
	case len(ours) == 0:
		return found(checkSkip, "no runtime of ours: docker's containers are taken from containerd's events, for which none waits (docs/docker.md)", "")
	case len(all) > 0:
		return all
	case !slices.Contains(ours, said.Default):
		return found(checkOK, "the runtime "+ours[0]+" is ours, for docker run --runtime "+ours[0]+" only", "")
	}
	return found(checkOK, "the default runtime is ours, "+said.Default, "")
}
