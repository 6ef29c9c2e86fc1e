package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"probity/bpf/policy"
)

func (c *cli) policy() *cobra.Command {
	return group("policy", "Work with policies", &cobra.Command{
		Use: "check FILE|DIR...", Short: "Report the mistakes in policy files",
		Long: `Check reads policy files as the agent would, those of a directory by their
ending .yaml, and reports mistakes with file, line and column. Policy names and
probe ids must differ across all files given. It exits with 1 if there is a
mistake. What a policy can say is in docs/probes.md.

Whether a container has such files and functions, and this kernel such places,
is only known once it starts: what could not be armed is in the evidence, with
a reason.`,
		Args: files("policy file or directory"),
		RunE: func(_ *cobra.Command, files []string) error { return c.checkPolicies(files) },
	})
}

// checkResult is what `policy check` found.
type checkResult struct {
	Policies    int                 `json:"policies"`
	Probes      int                 `json:"probes"`
	Rules       int                 `json:"redactionRules,omitempty"`
	Diagnostics []policy.Diagnostic `json:"diagnostics"`
}

func (c *cli) checkPolicies(files []string) error {
	r := checkResult{Diagnostics: []policy.Diagnostic{}}
	var sources []policy.Source
	var unread error
	for _, f := range inDirs(files) {
		data, err := policy.ReadFile(f)
		if err != nil {
			unread = errors.Join(unread, err)
			continue
		}
		sources = append(sources, policy.Source{Name: f, Data: data})
	}
	// Together, so that an id that two files have is found.
	set, err := policy.NewSet(sources)
	var ds policy.Diagnostics
	switch {
	case errors.As(err, &ds):
		r.Diagnostics = ds
	case err != nil:
		return blind(err)
	default:
		r.Policies = len(set.Policies)
		for _, p := range set.Policies {
			r.Probes += len(p.Probes)
			r.Rules += len(p.Redact)
		}
	}
	if err := c.print(r, func(w io.Writer) error {
		for _, d := range r.Diagnostics {
			fmt.Fprintln(w, d.Error())
		}
		if len(r.Diagnostics) == 0 && len(sources) > 0 && unread == nil {
			rules := ""
			if r.Rules > 0 {
				rules = fmt.Sprintf(", rules of redaction %d", r.Rules)
			}
			fmt.Fprintf(w, "ok: policies %d, probes %d%s\n", r.Policies, r.Probes, rules)
		}
		return nil
	}); err != nil {
		return err
	}
	if len(r.Diagnostics) > 0 {
		if unread != nil {
			fmt.Fprintln(c.errOut, "probity:", unread)
		}
		return exitError{code: exitFinding}
	}
	return blind(unread)
}

// inDirs replaces directories by the policy files in them.
func inDirs(paths []string) (files []string) {
	for _, p := range paths {
		found, err := filepath.Glob(filepath.Join(p, "*.yaml"))
		if st, serr := os.Stat(p); err != nil || serr != nil || !st.IsDir() || len(found) == 0 {
			files = append(files, p)
			continue
		}
		files = append(files, found...)
	}
	return files
}
