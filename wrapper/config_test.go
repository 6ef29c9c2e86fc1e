package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const ours = `{"path":"/h","args":["probity-hook","createRuntime"],"timeout":30}`
const oursAfter = `{"path":"/h","args":["probity-hook","poststop"],"timeout":30}`

func TestAddHooks(t *testing.T) {
	both := `"createRuntime":[` + ours + `],"poststop":[` + oursAfter + `]`
	for _, test := range []struct{ name, in, want string }{ // want "" is an error
		{"nothing", `{}`, `{"hooks":{"poststop":[` + oursAfter + `],"createRuntime":[` + ours + `]}}`},
		{"null", `{"hooks": null }`, `{"hooks": {"poststop":[` + oursAfter + `],"createRuntime":[` + ours + `]} }`},
		{"every byte that is not ours stays", "{ \"x\" : 1e400,\n\t\"ÿ\\u0041<&\":[{}, 12345678901234567890123, \"\u2028\xff\"],\"hooks\":{\"prestart\":[{\"path\":\"/p\"}]},\"x\":2}\n",
			"{ \"x\" : 1e400,\n\t\"ÿ\\u0041<&\":[{}, 12345678901234567890123, \"\u2028\xff\"],\"hooks\":{\"poststop\":[" + oursAfter + "],\"createRuntime\":[" + ours + "],\"prestart\":[{\"path\":\"/p\"}]},\"x\":2}\n"},
		{"behind those that are there", `{"hooks":{"createRuntime":[ {"path":"/p"} ],"poststop":[]}}`, `{"hooks":{"createRuntime":[ {"path":"/p"} ,` + ours + `],"poststop":[` + oursAfter + `]}}`},
		{"a second time", `{"hooks":{` + both + `}}`, `{"hooks":{` + both + `}}`},
		{"an array", `[]`, ""},
		{"null itself", `null`, ""},
		{"no JSON", `{"hooks":{}`, ""},
		{"more behind", `{} {}`, ""},
		{"empty", ``, ""},
		{"hooks twice", `{"hooks":{},"hooks":{}}`, ""},
		{"in other letters", `{"Hooks":{}}`, ""},
		{"with an escape", `{"hook\u0073":{},"HOOKS":{}}`, ""},
		{"a stage in other letters", `{"hooks":{"createruntime":[]}}`, ""},
		{"hooks are a list", `{"hooks":[]}`, ""},
		{"a stage is an object", `{"hooks":{"poststop":{}}}`, ""},
		{"a hook is a number", `{"hooks":{"poststop":[1]}}`, ""},
	} {
		got, err := addHooks([]byte(test.in), "/h")
		if string(got) != test.want || (err != nil) != (test.want == "") {
			t.Errorf("%s: %q, %v\nwant %q", test.name, got, err, test.want)
		}
	}
}

// FuzzAddHooks: a runtime reads the same configuration, but for the two hooks.
func FuzzAddHooks(f *testing.F) {
	for _, seed := range []string{`{}`, `{"hooks":{"poststop":[{"path":"/p"}]}}`, `{"hooks":null,"root":{"path":"r"}}`, `{"a":1,"A":2}`, `{"hoo\u006bs":{"createRuntime":null}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := addHooks(in, "/h")
		if err != nil {
			return
		}
		var before, after specs.Spec
		errBefore, errAfter := json.Unmarshal(in, &before), json.Unmarshal(out, &after)
		if (errBefore == nil) != (errAfter == nil) {
			t.Fatalf("%v, and then %v", errBefore, errAfter)
		}
		again, err := addHooks(out, "/h")
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("a second time: %q, %v", again, err)
		}
		if errBefore != nil {
			return
		}
		has := func(list []specs.Hook) (others []specs.Hook, n int) {
			for _, h := range list {
				if h.Path == "/h" {
					n++
				} else {
					others = append(others, h)
				}
			}
			return others, n
		}
		if before.Hooks == nil {
			before.Hooks = &specs.Hooks{}
		}
		for _, of := range [][2]*[]specs.Hook{{&before.Hooks.CreateRuntime, &after.Hooks.CreateRuntime}, {&before.Hooks.Poststop, &after.Hooks.Poststop}} {
			was, had := has(*of[0])
			is, n := has(*of[1])
			if n != max(had, 1) || !reflect.DeepEqual(was, is) {
				t.Fatalf("%+v, and then %+v", *of[0], *of[1])
			}
			*of[0], *of[1] = nil, nil
		}
		if !reflect.DeepEqual(before, after) {
			t.Fatalf("%+v, and then %+v", before, after)
		}
	})
}

// What cannot be replaced whole is left as it is, and nothing is left beside it.
func TestAddToLeaves(t *testing.T) {
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for name, make := range map[string]func(path string){
		"a symlink": func(path string) { write(path+"2", `{}`); os.Symlink(path+"2", path) },
		"two names": func(path string) { write(path, `{}`); os.Link(path, path+"2") },
		"a FIFO":    func(path string) { syscall.Mkfifo(path, 0o600) },
		"a directory": func(path string) {
			os.Mkdir(path, 0o700)
		},
		"none":              func(string) {},
		"past 8 MiB":        func(path string) { write(path, `{"x":"`+strings.Repeat("x", maxConfig)+`"}`) },
		"spaces past 8 MiB": func(path string) { write(path, "{}"+strings.Repeat(" ", maxConfig)) },
		"half a file":       func(path string) { write(path, `{"ociVersion":"1.0`) },
		"deep nesting":      func(path string) { write(path, strings.Repeat(`{"hooks":`, 1<<19)) },
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "config.json")
		make(path)
		before := listing(t, dir)
		if err := addTo(path, "/h"); err == nil {
			t.Errorf("%s: no error", name)
		}
		if after := listing(t, dir); !reflect.DeepEqual(before, after) {
			t.Errorf("%s: %v, and then %v", name, before, after)
		}
	}
}

// listing is what a directory holds: names, inodes, modes and sizes.
func listing(t *testing.T, dir string) map[string][3]uint64 {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][3]uint64{}
	for _, e := range entries {
		var st syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(dir, e.Name()), &st); err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = [3]uint64{st.Ino, uint64(st.Mode), uint64(st.Size)}
	}
	return all
}

func TestAddTo(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.json")
	if err := os.WriteFile(path, []byte(`{}`), 0o640); err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(path) // who reads it meanwhile reads one or the other
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	owner := 0
	if os.Geteuid() == 0 {
		owner = 65534
		if err := os.Chown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
	} else {
		owner = os.Geteuid()
	}
	if err := addTo(path, "/h"); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if sys := st.Sys().(*syscall.Stat_t); st.Mode() != 0o640 || int(sys.Uid) != owner {
		t.Errorf("mode %v, owner %d", st.Mode(), sys.Uid)
	}
	b := make([]byte, 16)
	if n, _ := old.Read(b); string(b[:n]) != "{}" {
		t.Errorf("the old file holds %q", b[:n])
	}
	first := listing(t, dir)
	if err := addTo(path, "/h"); err != nil {
		t.Fatal(err)
	}
	if again := listing(t, dir); len(first) != 1 || !reflect.DeepEqual(first, again) {
		t.Errorf("%v, and then %v", first, again)
	}
	if err := addTo(filepath.Join(dir, "none"), "/h"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestCreates(t *testing.T) {
	for _, test := range []struct{ args, bundle string }{ // bundle "" makes none
		{"--root /r --log /l --log-format json --systemd-cgroup create --bundle /b --pid-file /p id", "/b"},
		{"create id", "."},
		{"run -b /b id", "/b"},
		{"run --bundle=/b id", "/b"},
		{"-root=/r create -bundle /b -no-pivot id", "/b"},
		{"--debug create --no-new-keyring --console-socket /c -b /b id -b /c", "/b"},
		{"create --pid-file /p --bundle /b id", "/b"},
		{"--root create start id", ""},
		{"--root create create --bundle /b id", "/b"},
		{"--bundle /x create id", "."},
		{"start id", ""},
		{"delete --force id", ""},
		{"exec id create", ""},
		{"--version", ""},
		{"features", ""},
		{"", ""},
		{"create --bundle", ""},
		{"create --bundle=", ""},
		{"create -f other.json id", ""},
		{"--root", ""},
		{"--", ""},
	} {
		bundle, ok := creates(strings.Fields(test.args))
		if ok != (test.bundle != "") || ok && bundle != test.bundle {
			t.Errorf("%s: %q, %v, want %q", test.args, bundle, ok, test.bundle)
		}
	}
}
