package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"probity/runtime/container"
)

// As runc 1.1.5 wrote it for podman 4.3.1.
const podmanState = `{"ociVersion":"1.0.2-dev","id":"d575dd369dc1a8d6a13d8c65c4177efb5f0e955cf76c09ba1aeebbd7bf7e63a5","status":"creating","pid":22873,` +
	`"bundle":"/var/lib/containers/storage/overlay-containers/d575dd369dc1a8d6a13d8c65c4177efb5f0e955cf76c09ba1aeebbd7bf7e63a5/userdata",` +
	`"annotations":{"io.container.manager":"libpod","org.opencontainers.image.stopSignal":"15"}}`

func TestParseState(t *testing.T) {
	s, err := ParseState([]byte(podmanState))
	if err != nil {
		t.Fatal(err)
	}
	if s.Pid != 22873 || s.Status != specs.StateCreating || s.Annotations["io.container.manager"] != "libpod" || len(s.ID) != 64 {
		t.Errorf("%+v", s)
	}
	change := func(old, new string) string {
		if !strings.Contains(podmanState, old) {
			t.Fatalf("%s is not there", old)
		}
		return strings.Replace(podmanState, old, new, 1)
	}
	for name, bad := range map[string]string{
		"empty":                 "",
		"space":                 " \n",
		"not JSON":              "container state",
		"cut short":             podmanState[:len(podmanState)-1],
		"an array":              "[" + podmanState + "]",
		"null":                  "null",
		"something behind":      podmanState + "{}",
		"a NUL behind":          podmanState + "\x00",
		"longer than 1 MiB":     podmanState + strings.Repeat(" ", 1<<20),
		"2 MiB":                 strings.Repeat("[", 2<<20),
		"not UTF-8":             change("libpod", "lib\xffpod"),
		"pid twice":             change(`"pid":22873`, `"pid":22873,"pid":1`),
		"pid in capitals":       change(`"pid"`, `"PID"`) + "x",
		"pid is a string":       change("22873", `"22873"`),
		"pid is a fraction":     change("22873", "22873.5"),
		"pid is negative":       change("22873", "-1"),
		"pid is huge":           change("22873", "4194305"),
		"pid overflows":         change("22873", "18446744073709551617"),
		"no id":                 change(`"id"`, `"ID"`),
		"id leads elsewhere":    change(`"id":"d575dd`, `"id":"../dd`),
		"id is long":            change(`"id":"`, `"id":"`+strings.Repeat("a", 256)),
		"no version":            change(`"ociVersion":"1.0.2-dev",`, ""),
		"unknown status":        change("creating", "paused"),
		"bundle is relative":    change(`"bundle":"/var`, `"bundle":"var`),
		"bundle is not clean":   change(`"bundle":"/var`, `"bundle":"/var/../var`),
		"bundle has a NUL":      change(`"bundle":"/var`, `"bundle":"/var\u0000`),
		"bundle is long":        change(`"bundle":"/var`, `"bundle":"/`+strings.Repeat("a", 4096)),
		"annotation is no text": change(`"15"`, `15`),
	} {
		if s, err := ParseState([]byte(bad)); !errors.Is(err, ErrState) {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	// encoding/json would take "PID" for "pid".
	if s, err := ParseState([]byte(change(`"pid"`, `"PID"`))); err != nil || s.Pid != 0 {
		t.Errorf("PID: %+v, %v", s, err)
	}
}

func FuzzParseState(f *testing.F) {
	f.Add([]byte(podmanState))
	f.Add([]byte(`{"ociVersion":"1","id":"a","status":"stopped","bundle":"/","pid":0}`))
	f.Add([]byte(`{"id":"a","id":"b"}`))
	f.Add([]byte(`{"a":[{"b":{}}]} `))
	f.Add([]byte("\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := ParseState(in)
		if err != nil {
			if !errors.Is(err, ErrState) {
				t.Fatalf("%v is not an ErrState", err)
			}
			return
		}
		if s.ID == "" || s.Pid < 0 || !strings.HasPrefix(s.Bundle, "/") {
			t.Fatalf("%+v", s)
		}
		again, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseState(again); err != nil {
			t.Fatalf("%s: %v", again, err)
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"root":{"path":"rootfs"},"mounts":[{"destination":"/proc","type":"proc"}],"annotations":{"a":"b"}}`))
	f.Add([]byte(`{"root":{"path":"rootfs"},"process":{"args":["a"],"env":["PATH=/bin"],"cwd":"/"}}`))
	f.Add([]byte(`{"root":{"path":"rootfs"},"process":{"args":null,"env":[null],"cwd":7}}`))
	f.Add([]byte(`{"root":null}`))
	f.Add([]byte(`{"root":{"path":"/"},"mounts":[null]}`))
	f.Add([]byte(`{"root":[]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := parseConfig(in)
		if err != nil {
			return
		}
		if c.root == "" {
			t.Fatal("no root")
		}
		n := container.Notice{Source: "s", Kind: container.Starting, Command: c.command, Identity: container.Identity{Runtime: container.Runc, ID: "c"}}
		if err := n.Validate(); err != nil {
			t.Fatal(err)
		}
		for _, m := range c.mounts {
			if !strings.HasPrefix(m.Destination, "/") {
				t.Fatalf("mount at %q", m.Destination)
			}
		}
	})
}

func FuzzParseParent(f *testing.F) {
	f.Add([]byte("22873 (runc:[2:INIT]) S 22864 22873"))
	f.Add([]byte("1 (a) S 7 (b) S 8 9"))
	f.Add([]byte("1 ()"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if p, err := parseParent(in); err == nil && (p < 0 || p > maxPid) {
			t.Fatalf("parent %d", p)
		}
		_, _ = parseStart(in)
	})
}

func TestParseParent(t *testing.T) {
	// comm is whatever the process likes.
	if p, err := parseParent([]byte("5 (x) S 1 (y) R 42 5 5 0")); err != nil || p != 42 {
		t.Errorf("%d, %v", p, err)
	}
	if start, err := parseStart([]byte("5 (x) S 1 (y) R 42 5 5 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 6336152 1")); err != nil || start != 6336152 {
		t.Errorf("start %d, %v", start, err)
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add([]byte(`36 35 98:0 / /mnt\040a rw,noatime master:1 - ext3 /dev/root rw`), "/mnt a")
	f.Add([]byte(`36 35 98:0 / /mnt\04`), `/mnt\04`)
	f.Fuzz(func(t *testing.T, in []byte, at string) {
		if hasMount(in, at) && !bytes.Contains(in, []byte(" ")) {
			t.Fatal("a mount without fields")
		}
	})
}

func TestHasMount(t *testing.T) {
	const info = "36 35 98:0 / /mnt\\040a\\134b rw - ext3 /dev/root rw\n37 36 0:5 / /proc rw - proc proc rw\n"
	for path, want := range map[string]bool{`/mnt a\b`: true, "/proc": true, "/": false, "/mnt": false, "rw": false} {
		if hasMount([]byte(info), path) != want {
			t.Errorf("%s: want %v", path, want)
		}
	}
}
