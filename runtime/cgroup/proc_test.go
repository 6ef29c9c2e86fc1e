package cgroup

import (
	"errors"
	"strings"
	"testing"
)

func TestParseProc(t *testing.T) {
	for _, c := range []struct {
		name, in, want string
		is             error // nil with want "": any error
	}{
		{name: "unified", in: "0::/a/b\n", want: "/a/b"},
		{name: "hybrid", in: "2:cpu,cpuacct:/x\n1:name=systemd:/y\n0::/z\n", want: "/z"},
		{name: "root", in: "0::/\n", want: "/"},
		{name: "colons", in: "0::/kubepods.slice:cri-containerd:ab\n", want: "/kubepods.slice:cri-containerd:ab"},
		{name: "only v1", in: "1:cpu:/x\n", is: ErrShared},
		{name: "cut short", in: "0::/a"},
		{name: "twice", in: "0::/a\n0::/b\n"},
		{name: "outside the namespace", in: "0::/../a\n"},
		{name: "relative", in: "0::a\n"},
		{name: "not clean", in: "0::/a/./b\n"},
		{name: "long", in: "0::/" + strings.Repeat("a", maxPath) + "\n"},
		{name: "empty", in: "", is: ErrShared},
	} {
		got, err := parseProc([]byte(c.in))
		if c.want != "" && (err != nil || got != c.want) || c.want == "" && err == nil || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

func TestParseEvents(t *testing.T) {
	for in, want := range map[string]string{
		"populated 1\nfrozen 0\n":     "true",
		"frozen 0\npopulated 0\n":     "false",
		"populated 0":                 "error",
		"populated 2\n":               "error",
		"populated 1\npopulated 0\n":  "error",
		"frozen 0\n":                  "error",
		"":                            "error",
		"xpopulated 1\n":              "error",
		"populated 1 \nfrozen 0\n":    "error",
		"populated  1\npopulated 1\n": "error",
	} {
		got, err := parseEvents([]byte(in))
		have := map[bool]string{true: "true", false: "false"}[got]
		if err != nil {
			have = "error"
		}
		if have != want {
			t.Errorf("%q: %s, want %s", in, have, want)
		}
	}
}

func FuzzParseProc(f *testing.F) {
	f.Add([]byte("2:cpu:/x\n0::/a/b\n"))
	f.Add([]byte("0::/../../x (deleted)\n"))
	f.Add([]byte("0::/"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path, err := parseProc(b)
		if err != nil {
			return
		}
		if !strings.HasPrefix(path, "/") || strings.Contains(path, "/../") || strings.HasSuffix(path, "/..") || strings.Contains(path, "\n") {
			t.Errorf("accepted %q", path)
		}
		if !strings.Contains(string(b), "0::"+path+"\n") {
			t.Errorf("%q is not in %q", path, b)
		}
	})
}

func FuzzParseEvents(f *testing.F) {
	f.Add([]byte("populated 1\nfrozen 0\n"))
	f.Add([]byte("populated 0\n"))
	f.Add([]byte("populated"))
	f.Fuzz(func(t *testing.T, b []byte) {
		on, err := parseEvents(b)
		if err == nil && on != strings.Contains("\n"+string(b), "\npopulated 1\n") {
			t.Errorf("%q: populated %v", b, on)
		}
	})
}
