package oci

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"probity/runtime/cgroup"
)

// ErrContested: the saved states of two containers that live cannot both be true.
var ErrContested = errors.New("another container's saved state says so too")

// Claim is what one saved state says of who its container is. Nothing of it is
// checked yet but its form.
type Claim struct {
	path string // of the container's directory
	saved
}

// ReadClaim reads a container's saved state.
func ReadClaim(dir, id string) (*Claim, error) {
	d, err := openTrusted(path.Join(dir, id))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	s, err := readSaved(d)
	if err != nil {
		return nil, err
	}
	return &Claim{d.Name(), s}, nil
}

// Pid is the container's first process, as the state says.
func (c *Claim) Pid() int { return c.pid }

// Claims are those of all containers of all state directories: what one says of
// itself is held against what the others do. Nil are none.
type Claims struct {
	dirs  []string // without symlinks
	init  map[process0][]*Claim
	at    map[string][]*Claim // by cgroup
	below map[string][]*Claim // by each cgroup around theirs
}

// process0 is a container's first process.
type process0 struct {
	pid   int
	start uint64
}

// NewClaims takes the claims of the containers of these state directories.
func NewClaims(dirs []string, claims []*Claim) *Claims {
	c := &Claims{init: map[process0][]*Claim{}, at: map[string][]*Claim{}, below: map[string][]*Claim{}}
	for _, dir := range dirs {
		if d, err := openTrusted(dir); err == nil { // else there is no bundle in it that is one
			c.dirs = append(c.dirs, d.Name())
			d.Close()
		}
	}
	root := ""
	if fs, err := cgroup.Find(); err == nil {
		root = fs.Root
	}
	for _, x := range claims {
		at := process0{x.pid, x.start}
		c.init[at] = append(c.init[at], x)
		in := x.in(root)
		if in == "" {
			continue // it says nothing: two in one cgroup are told apart when they are armed
		}
		c.at[in] = append(c.at[in], x)
		for above := path.Dir(in); above != "/" && above != "."; above = path.Dir(above) {
			c.below[above] = append(c.below[above], x)
		}
	}
	return c
}

// in is the path of the saved cgroup below the mount; "" says that none is.
func (s saved) in(root string) string { return strings.TrimPrefix(s.cgroup, root) }

// check holds a state against the others: that of another container must not have
// the same first process, nor the same cgroup, or one around it or in it, if that one
// lives.
func (c *Claims) check(own string, s saved, root string) error {
	if c == nil {
		return nil
	}
	for _, x := range c.init[process0{s.pid, s.start}] {
		if x.path != own {
			return fmt.Errorf("%w: %s has pid %d", ErrContested, x.path, s.pid)
		}
	}
	in := s.in(root)
	if in == "" {
		return nil
	}
	for _, x := range c.below[in] {
		if x.path != own && x.lives() {
			return fmt.Errorf("%w: %s is in %s, below %s", ErrContested, x.path, x.in(root), in)
		}
	}
	for at := in; at != "/" && at != "."; at = path.Dir(at) {
		for _, x := range c.at[at] {
			if x.path != own && x.lives() {
				return fmt.Errorf("%w: %s is in %s, and this in %s", ErrContested, x.path, at, in)
			}
		}
	}
	return nil
}

// lives reports whether the process lives that the state says is the container's
// first. What is left of one that has ended says nothing about others.
func (s saved) lives() bool {
	began, err := StartTicks(s.pid)
	return err == nil && began == s.start
}

// holds reports whether a directory is one of the state directories or in one.
func (c *Claims) holds(dir string) bool {
	if c == nil {
		return false
	}
	for _, d := range c.dirs {
		if dir == d || strings.HasPrefix(dir, d+"/") {
			return true
		}
	}
	return false
}
