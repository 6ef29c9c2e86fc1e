package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"
)

// MaxFile is the largest policy file in bytes.
const MaxFile = 1 << 20

// maxDepth bounds how deep YAML is nested; a policy needs four levels.
const maxDepth = 16

// Parse reads one policy. The error is of type [Diagnostics] and lists all
// problems of the file, unless it is no YAML: then the first.
func Parse(file string, data []byte) (Policy, error) {
	p, _, err := parse(file, data)
	return p, err
}

// places remembers where a file says what must be unique in a set.
type places struct {
	name position
	ids  []position // of Probes, one by one

	rules []position // of Redact
}

func parse(file string, data []byte) (Policy, places, error) {
	r := &report{file: file}
	root := document(r, data)
	if root == nil {
		return Policy{}, places{}, r.err()
	}
	w := &walk{report: r}
	w.refuse(root)
	p, at := w.policy(root)
	if err := r.err(); err != nil {
		return Policy{}, places{}, err
	}
	p.File = file
	return p, at, nil
}

// document returns the root of the only document, or nil after reporting why
// there is none.
func document(r *report, data []byte) *yaml.Node {
	if len(data) > MaxFile {
		r.add(position{}, "the file is larger than %d bytes", MaxFile)
		return nil
	}
	if !text(r, data) {
		return nil
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithPlugin(loaderlimits.New(loaderlimits.DepthValue(maxDepth))))
	if err != nil {
		r.add(position{}, "start the YAML parser: %v", err)
		return nil
	}
	var first, second yaml.Node
	err = loader.Load(&first)
	if errors.Is(err, io.EOF) || err == nil && len(first.Content) != 1 {
		r.add(position{}, "no policy in this file")
		return nil
	}
	if err == nil {
		switch err = loader.Load(&second); {
		case errors.Is(err, io.EOF):
			return first.Content[0]
		case err == nil:
			r.add(position{second.Line, second.Column}, "a second document: one file is one policy")
			return nil
		}
	}
	var le *yaml.LoadError
	if !errors.As(err, &le) {
		r.add(position{}, "%v", err)
		return nil
	}
	at := position{le.Mark.Line, le.Mark.Column}
	if at.line == 0 { // of a byte, not of a token
		at = place(data, le.Mark.Index)
	}
	message := le.Message
	if le.ContextMsg != "" {
		message = le.ContextMsg + ": " + message
	}
	r.add(at, "not YAML: %s", message)
	return nil
}

// place turns an index of data into a position.
func place(data []byte, index int) position {
	before := data[:max(0, min(index, len(data)))]
	line := bytes.Count(before, []byte("\n"))
	return position{line + 1, utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]) + 1}
}

// text reports whether data is text: UTF-8 without characters that show
// something else than is there. A byte order mark may come first.
func text(r *report, data []byte) bool {
	start := 0
	if bytes.HasPrefix(data, []byte("\ufeff")) {
		start = len("\ufeff")
	}
	for i := start; i < len(data); {
		c, n := utf8.DecodeRune(data[i:])
		switch {
		case c == utf8.RuneError && n <= 1:
			r.add(place(data, i), "not UTF-8")
			return false
		case c == '\n' || c == '\t' || c == '\r':
		case unicode.IsControl(c) || unicode.Is(unicode.Cf, c):
			r.add(place(data, i), "character %s, which can't be seen", codePoint(c))
			return false
		}
		i += n
	}
	return true
}

func codePoint(c rune) string { return fmt.Sprintf("%U", c) }
