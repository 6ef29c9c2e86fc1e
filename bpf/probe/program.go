package probe

import (
	"errors"
	"fmt"
	"strings"

	"probity/bpf/policy"
	"probity/runtime/image"
)

// usualPath is what runtimes give a container whose image has no PATH.
const usualPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Bounds on what a container's configuration says of its command.
const (
	maxPathDirs  = 128
	maxPathBytes = 16 << 10
)

// Entrypoint finds the file that the container starts; why says why there is
// none, or none that can be told.
func Entrypoint(files Finder) (m image.Match, ok bool, why string) {
	matches, complete, why, none := program(files, policy.Entrypoint)
	switch {
	case len(matches) == 1:
		return matches[0], true, ""
	case complete || why == "":
		why = none
	}
	return m, false, why
}

// program finds the file that the container runs by a name, as execvp(3) does
// it; none says what there is not.
func program(files Finder, name string) (matches []image.Match, complete bool, why, none string) {
	c := files.Command()
	none = "no program " + name + " in the container's $PATH"
	if name == policy.Entrypoint {
		if name = c.Arg0; name == "" {
			return nil, false, "it is not known what the container starts", none
		}
		none = fmt.Sprintf("the container has no program %.256q, which it is to start", name)
	}
	paths := []string{name}
	if !strings.Contains(name, "/") {
		if c.Path == "" {
			c.Path, why = usualPath, "the container's $PATH is not known: "+usualPath+" was searched"
		}
		dirs := strings.Split(c.Path, ":")
		if len(dirs) > maxPathDirs || len(c.Path) > maxPathBytes {
			return nil, false, fmt.Sprintf("the container's $PATH has more than %d directories or %d bytes", maxPathDirs, maxPathBytes), none
		}
		paths = nil
		for _, dir := range dirs {
			paths = append(paths, dir+"/"+name) // an empty one is the working directory
			if dir == "" {
				paths[len(paths)-1] = name
			}
		}
	}
	for _, p := range paths {
		if !strings.HasPrefix(p, "/") {
			if c.Dir == "" {
				if why == "" {
					why = fmt.Sprintf("the working directory, in which %.256q would be, is not known", p)
				}
				continue
			}
			p = c.Dir + "/" + p
		}
		m, exec, err := files.Lookup(p)
		switch {
		case err == nil && exec:
			return []image.Match{m}, why == "", why, none
		case err == nil, errors.Is(err, image.ErrNoFile):
		case why == "":
			why = err.Error()
		}
	}
	return nil, why == "", why, none
}
