package policy

import (
	"slices"

	"github.com/bmatcuk/doublestar/v4"

	"probity/runtime/container"
)

// Match reports whether the selector selects a container. What is not known of
// it, its pod for instance, matches nothing that is asked for; but a label or an
// annotation that may have been left out for want of room matches: its author would
// get out of sight by giving a container a thousand others.
func (s Selector) Match(id container.Identity) bool {
	var pod container.Pod
	if id.Pod != nil {
		pod = *id.Pod
	}
	return (len(s.Runtimes) == 0 || slices.Contains(s.Runtimes, id.Runtime)) &&
		anyGlob(s.Namespaces, pod.Namespace) &&
		subset(s.PodLabels, pod.Labels, id.Cut) &&
		anyGlob(s.Images, id.Image.Name) &&
		anyGlob(s.Containers, id.Name) &&
		subset(s.Annotations, id.Annotations, id.Cut)
}

// anyGlob reports whether one of the globs matches a name, or there are none.
func anyGlob(globs []string, name string) bool {
	if len(globs) == 0 {
		return true
	}
	return name != "" && slices.ContainsFunc(globs, func(g string) bool {
		ok, err := doublestar.Match(g, name)
		return err == nil && ok // an error: the policy was not made by Parse
	})
}

func subset(want, have map[string]string, cut bool) bool {
	for k, v := range want {
		if h, ok := have[k]; !ok && !cut || ok && h != v {
			return false
		}
	}
	return true
}
