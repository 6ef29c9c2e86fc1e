package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"probity/runtime/container"
)

const (
	maxState = 1 << 20
	maxPid   = 1 << 22 // PID_MAX_LIMIT on 64-bit kernels
)

// ParseState reads a container's state (OCI runtime-spec, "State"): one JSON
// object of at most 1 MiB of UTF-8 with nothing behind it, no member twice,
// and the known members spelled and typed exactly. Members that the
// specification does not name are allowed by it, and ignored. All errors wrap
// ErrState.
func ParseState(b []byte) (specs.State, error) {
	s, err := parseState(b)
	if err != nil {
		return specs.State{}, fmt.Errorf("%w: %w", ErrState, err)
	}
	return s, nil
}

func parseState(b []byte) (s specs.State, err error) {
	if len(b) > maxState {
		return s, fmt.Errorf("%d bytes, at most %d are taken", len(b), maxState)
	}
	o, err := parseObject(b)
	if err != nil {
		return s, err
	}
	for _, m := range []struct {
		name string
		into any
	}{
		{"ociVersion", &s.Version}, {"id", &s.ID}, {"status", &s.Status}, {"pid", &s.Pid},
		{"bundle", &s.Bundle}, {"annotations", &s.Annotations},
	} {
		if err := o.member(m.name, m.into); err != nil {
			return s, err
		}
	}
	switch s.Status {
	case specs.StateCreating, specs.StateCreated, specs.StateRunning, specs.StateStopped:
	default:
		return s, fmt.Errorf("status %.32q is not known", s.Status)
	}
	if s.Version == "" || len(s.Version) > 64 {
		return s, errors.New("no ociVersion, or a long one")
	}
	if s.Pid < 0 || s.Pid > maxPid {
		return s, fmt.Errorf("pid %d: out of range", s.Pid)
	}
	if !path.IsAbs(s.Bundle) || path.Clean(s.Bundle) != s.Bundle || len(s.Bundle) > container.MaxPath || strings.ContainsRune(s.Bundle, 0) {
		return s, fmt.Errorf("bundle %.64q: want an absolute, clean path", s.Bundle)
	}
	// The rules for an id and for annotations are the notice's.
	id := container.Identity{Runtime: container.Runc, ID: s.ID, Annotations: s.Annotations}
	return s, id.Validate()
}

// object is a JSON object. Decoding into a map first keeps names apart that
// encoding/json takes for the same member of a struct ("pid" and "PID").
type object map[string]json.RawMessage

// parseObject reads one object and nothing behind it.
func parseObject(b []byte) (object, error) {
	if !utf8.Valid(b) { // encoding/json would replace what is not
		return nil, errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	t, err := d.Token()
	if err != nil {
		return nil, fmt.Errorf("not JSON: %w", noEOF(err))
	}
	if t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	o := object{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("not JSON: %w", noEOF(err))
		}
		name := t.(string) // or Token would have failed
		if _, twice := o[name]; twice {
			return nil, fmt.Errorf("member %.64q is there twice", name)
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, fmt.Errorf("member %.64q: %w", name, noEOF(err))
		}
		o[name] = v
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("not JSON: %w", noEOF(err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the object")
	}
	return o, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// member decodes a member if it is there.
func (o object) member(name string, into any) error {
	v, ok := o[name]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(v, into); err != nil {
		return fmt.Errorf("member %s: %w", name, err)
	}
	return nil
}
