package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"probity/evidence"
	"probity/evidence/verify"
)

func (c *cli) evidence() *cobra.Command {
	return group("evidence", "Look at evidence without verifying it, and hand it over", c.pending(), c.ack(), c.collect(), c.proof(), c.join(), c.received(), c.export(), &cobra.Command{
		Use: "ls SPOOL|FILE...", Short: "List the chunks of a spool",
		Long: `Ls lists the chunks of a spool and what is in them. Nothing is verified: see
probity verify.`,
		Args: files("spool"),
		RunE: func(_ *cobra.Command, args []string) error { return c.listChunks(args) },
	}, &cobra.Command{
		Use: "show SPOOL|FILE...", Short: "Print the lines of chunks",
		Long: `Show prints the lines between header and envelope, as they are with -o json,
else one readable line each. Nothing is verified: see probity verify.`,
		Args: files("spool or chunk file"),
		RunE: func(_ *cobra.Command, args []string) error { return c.showChunks(args) },
	})
}

// chunkRow is a chunk as `evidence ls` shows it.
type chunkRow struct {
	Chunk        string         `json:"chunk"`
	File         string         `json:"file"`
	Node         string         `json:"node"`
	Opened       evidence.Time  `json:"opened,omitzero"`
	Bytes        int            `json:"bytes"`
	Lines        int            `json:"lines"`
	Runs         int            `json:"runs"`
	Observations map[string]int `json:"observations"` // by state
	Gaps         int            `json:"gaps"`
	Problem      string         `json:"problem,omitempty"`
}

// chunkFiles returns the chunk files below the given spools and files, oldest
// first.
func chunkFiles(paths []string) ([]string, error) {
	var files []string
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if !st.IsDir() {
			files = append(files, p)
			continue
		}
		before := len(files)
		err = filepath.WalkDir(filepath.Join(p, "ready"), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, ".ndjson") {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read spool %s: %w", p, err)
		}
		if len(files) == before {
			return nil, fmt.Errorf("spool %s has no chunk", p)
		}
	}
	sort.SliceStable(files, func(i, j int) bool { return filepath.Base(files[i]) < filepath.Base(files[j]) })
	return files, nil
}

func (c *cli) listChunks(spools []string) error {
	files, err := chunkFiles(spools)
	if err != nil {
		return blind(err)
	}
	rows := []chunkRow{}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a shipper has taken it away
		}
		if err != nil {
			return blind(err)
		}
		row := chunkRow{File: f, Bytes: len(data), Observations: map[string]int{}}
		h, lines, err := unverified(data)
		if err != nil {
			row.Problem = err.Error()
		}
		row.Chunk, row.Node, row.Opened, row.Lines = h.Chunk, h.Node, h.Clock.Wall, len(lines)
		runs := map[string]bool{}
		for _, l := range lines {
			if r := evidence.RunOf(l); r != "" {
				runs[r] = true
			}
			switch v := l.(type) {
			case *evidence.Observation:
				row.Observations[string(v.State)]++
			case *evidence.Gap:
				row.Gaps++
			}
		}
		row.Runs = len(runs)
		rows = append(rows, row)
	}
	return printRows(c, rows, "CHUNK\tOPENED\tBYTES\tLINES\tRUNS\tHIT\tARMEDNOHIT\tPARTIAL\tNOTARMED\tGAPS", func(r chunkRow) (line, file, problem string) {
		return fmt.Sprintf("%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d", r.Chunk, r.Opened, r.Bytes, r.Lines, r.Runs,
			r.Observations["hit"], r.Observations["armedNoHit"], r.Observations["partial"], r.Observations["notArmed"], r.Gaps), r.File, r.Problem
	})
}

// printRows prints a table, and below it what is wrong with the files of which it has
// no line: then it is a finding. say returns a row's line, its file, and its problem if
// it has one.
func printRows[R any](c *cli, rows []R, head string, say func(R) (line, file, problem string)) error {
	bad := false
	for _, r := range rows {
		_, _, problem := say(r)
		bad = bad || problem != ""
	}
	if err := c.print(rows, func(w io.Writer) error {
		t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
		fmt.Fprintln(t, head)
		for _, r := range rows {
			if line, _, problem := say(r); problem == "" {
				fmt.Fprintln(t, line)
			}
		}
		err := t.Flush()
		for _, r := range rows {
			if _, file, problem := say(r); problem != "" {
				fmt.Fprintf(w, "%s: %s\n", verify.Printable(file), verify.Printable(problem))
			}
		}
		return err
	}); err != nil {
		return blind(err)
	}
	if bad {
		return exitError{code: exitFinding}
	}
	return nil
}

func (c *cli) showChunks(paths []string) error {
	files, err := chunkFiles(paths)
	if err != nil {
		return blind(err)
	}
	bad := false
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return blind(err)
		}
		_, lines, err := unverified(data)
		if err != nil {
			bad = true
			fmt.Fprintf(c.errOut, "probity: %s: %v\n", f, err)
		}
		for _, l := range lines {
			if err := c.showLine(l); err != nil {
				return blind(err)
			}
		}
	}
	if bad {
		return exitError{code: exitFinding}
	}
	return nil
}

func (c *cli) showLine(l evidence.Line) error {
	if c.format == "json" {
		b, err := evidence.Encode(l)
		if err == nil {
			_, err = fmt.Fprintf(c.out, "%s\n", b)
		}
		return err
	}
	var s string
	switch v := l.(type) {
	case *evidence.Coverage:
		s = fmt.Sprintf("%s coverage    %s %s image %s %s, from %s, final %v", v.To, v.Runtime, name(v.ContainerID, v.ContainerName), v.Image, v.ImageDigest, v.From, v.Final)
		switch {
		case v.FailPolicyEnforced == nil:
		case v.Refused != "" && *v.FailPolicyEnforced:
			s += "; refused: " + v.Refused
		case v.Refused != "":
			s += "; it may run, and was to be refused: " + v.Refused
		case !*v.FailPolicyEnforced:
			s += "; its fail policy was not enforced"
		}
		for _, p := range v.Probes {
			if !p.SearchComplete {
				s += fmt.Sprintf("; probe %s is %s, not all files were searched: %s", p.ProbeID, p.State, p.SearchReason)
			}
		}
	case *evidence.Observation:
		what := strings.Join(strings.Fields(v.Symbol+" "+v.Event+" "+v.Path), " ")
		if v.Offset != nil {
			what += fmt.Sprintf("+0x%x", uint64(*v.Offset))
		}
		s = fmt.Sprintf("%s observation %s %s [%s] %s %s", v.To, verify.Short(v.ContainerID), v.ProbeID, what, v.ProbeType, v.State)
		switch {
		case v.Reason != "":
			s += ": " + string(v.Reason)
		case v.Count != nil:
			s += fmt.Sprintf(", count %d", uint64(*v.Count))
		}
		if v.Process != nil {
			s += fmt.Sprintf(", first by %s (pid %d)", v.Process.Comm, v.Process.Pid)
		}
		if v.Detail != "" {
			s += " (" + v.Detail + ")"
		}
	case *evidence.Gap:
		s = fmt.Sprintf("%s gap         %s %s %s%s, %s: %s", v.From, v.Scope, v.Reason, after(" ", verify.Short(v.ContainerID)), after(" ", v.Source+v.Path), span(v), v.Detail)
	}
	_, err := fmt.Fprintln(c.out, verify.Printable(s))
	return err
}

// span says whether a gap line opens or closes its gap.
func span(g *evidence.Gap) string {
	if g.To.IsZero() {
		return "opened"
	}
	return "for " + g.To.Std().Sub(g.From.Std()).String()
}

func name(id, name string) string {
	if name == "" {
		return verify.Short(id)
	}
	return name + " (" + verify.Short(id) + ")"
}

func after(sep, s string) string {
	if s == "" {
		return ""
	}
	return sep + s
}

// unverified decodes a chunk's header and lines. On error it returns what it
// could decode.
func unverified(data []byte) (h evidence.Header, lines []evidence.Line, err error) {
	rows := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	if len(rows) < 2 {
		return h, nil, errors.New("not a chunk: it has less than two lines")
	}
	if h, err = evidence.DecodeHeader(rows[0]); err != nil {
		return h, nil, fmt.Errorf("line 1: %w", err)
	}
	for i, row := range rows[1 : len(rows)-1] {
		l, err := evidence.Decode(row)
		if err != nil {
			return h, lines, fmt.Errorf("line %d: %w", i+2, err)
		}
		lines = append(lines, l)
	}
	return h, lines, nil
}
