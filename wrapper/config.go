package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
)

const maxConfig = 8 << 20 // bytes of config.json, as runtime/oci reads

// addTo adds the hooks to a config.json. On return it is either the same file as
// before, with an error or because the hooks are there, or a new one of the same owner
// and mode.
func addTo(path, hook string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG || st.Nlink != 1 {
		return fmt.Errorf("%s: not a regular file with one name", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return err
	}
	if len(b) > maxConfig {
		return fmt.Errorf("%s: longer than 8 MiB", path)
	}
	with, err := addHooks(b, hook)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if bytes.Equal(b, with) {
		return nil
	}
	return replace(path, with, st)
}

// replace puts b in the place of a file, at once, or leaves it and nothing else.
func replace(path string, b []byte, like syscall.Stat_t) (err error) {
	name := fmt.Sprintf("%s.probity-%d", path, os.Getpid())
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(name)
		}
	}()
	_, err = f.Write(b)
	err = errors.Join(err, f.Chown(int(like.Uid), int(like.Gid)), syscall.Fchmod(int(f.Fd()), like.Mode&0o7777), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(name, path)
}

// addHooks returns a configuration with the hooks behind those that it has (runtime-
// spec, "POSIX-platform Hooks"). No other byte of it changes.
func addHooks(config []byte, hook string) ([]byte, error) {
	if !json.Valid(config) {
		return nil, errors.New("not JSON")
	}
	return set(config, "hooks", func(hooks []byte) (_ []byte, err error) {
		if hooks == nil {
			hooks = []byte("{}")
		}
		for _, stage := range []string{"createRuntime", "poststop"} {
			hooks, err = set(hooks, stage, func(list []byte) ([]byte, error) { return add(list, stage, hook) })
			if err != nil {
				return nil, fmt.Errorf("member hooks: %w", err)
			}
		}
		return hooks, nil
	})
}

// add appends the hook to one stage's list, unless it is there.
func add(list []byte, stage, hook string) ([]byte, error) {
	var has []struct {
		Path string `json:"path"`
	}
	if list != nil {
		if err := json.Unmarshal(list, &has); err != nil {
			return nil, err
		}
	}
	for _, h := range has {
		if h.Path == hook {
			return list, nil
		}
	}
	entry, err := json.Marshal(struct {
		Path    string   `json:"path"`
		Args    []string `json:"args"`
		Timeout int      `json:"timeout"`
	}{hook, []string{"probity-hook", stage}, 30})
	if err != nil {
		return nil, err
	}
	if len(has) == 0 {
		return slices.Concat([]byte("["), entry, []byte("]")), nil
	}
	return slices.Concat(list[:len(list)-1], []byte(","), entry, []byte("]")), nil
}

// set replaces the value of an object's member by what change makes of it; a member
// that is not there, or null, is nil. Valid JSON only. A name that is there twice, or
// in other letters as well, means one thing to one runtime and another to the next.
func set(object []byte, name string, change func([]byte) ([]byte, error)) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(object))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	open := int(d.InputOffset())
	members, from, to := 0, -1, -1
	for ; d.More(); members++ {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		switch k, _ := key.(string); {
		case !strings.EqualFold(k, name):
		case k != name || from >= 0:
			return nil, fmt.Errorf("member %s: there twice, or written otherwise", name)
		default:
			to = int(d.InputOffset())
			from = to - len(value)
		}
	}
	var old []byte
	if from >= 0 && string(object[from:to]) != "null" {
		old = object[from:to]
	}
	value, err := change(old)
	if err != nil {
		return nil, fmt.Errorf("member %s: %w", name, err)
	}
	if from >= 0 {
		return slices.Concat(object[:from], value, object[to:]), nil
	}
	comma := ","
	if members == 0 {
		comma = ""
	}
	return slices.Concat(object[:open], []byte(`"`+name+`":`), value, []byte(comma), object[open:]), nil
}
