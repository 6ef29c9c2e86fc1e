package image

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestParseMount(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     mount // zero: an error
	}{
		{"plain", "36 35 98:0 /mnt1 /mnt2 rw,noatime - ext3 /dev/root rw,errors=continue\n",
			mount{36, 35, "98:0", "/mnt1", "/mnt2", "ext3", "rw,errors=continue"}},
		{"optional fields", "36 35 98:0 / /a rw shared:1 master:2 - ext3 none rw\n", mount{36, 35, "98:0", "/", "/a", "ext3", "rw"}},
		{"escapes", `36 35 98:0 /a\040b /c\011\012\134d rw - ext3 none rw` + "\n", mount{36, 35, "98:0", "/a b", "/c\t\n\\d", "ext3", "rw"}},
		{"no separator", "36 35 98:0 / /a rw ext3 none rw\n", mount{}},
		{"no end", "36 35 98:0 / /a rw - ext3 none rw", mount{}},
		{"bad id", "x 35 98:0 / /a rw - ext3 none rw\n", mount{}},
		{"bad escape", `36 35 98:0 / /a\9 rw - ext3 none rw` + "\n", mount{}},
		{"NUL", `36 35 98:0 / /a\000b rw - ext3 none rw` + "\n", mount{}},
		{"short", "36 35 98:0 / - ext3 none rw\n", mount{}},
		{"relative", "36 35 98:0 / a rw - ext3 none rw\n", mount{}},
	} {
		var got []mount
		err := readMounts(strings.NewReader(c.in), func(m *mount) bool { got = append(got, *m); return true })
		if c.want == (mount{}) {
			if err == nil {
				t.Errorf("%s: accepted as %+v", c.name, got)
			}
			continue
		}
		if err != nil || len(got) != 1 || got[0] != c.want {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	line := "1 0 0:1 / /" + strings.Repeat("a", maxMountLine) + " rw - x x x\n"
	if err := readMounts(strings.NewReader(line), func(*mount) bool { return true }); err == nil {
		t.Error("a line past the bound was accepted")
	}
}

func TestTopMount(t *testing.T) {
	ms := []mount{{id: 3, parent: 2, point: "/a"}, {id: 1, parent: 0, point: "/a"}, {id: 2, parent: 1, point: "/a"}, {id: 9, parent: 3, point: "/a/b"}}
	if m := top(ms, "/a"); m == nil || m.id != 3 {
		t.Errorf("top = %+v", m)
	}
	if m := top(ms, "/c"); m != nil {
		t.Errorf("top of nothing = %+v", m)
	}
}

func TestParseOverlay(t *testing.T) {
	for _, c := range []struct {
		name, in, want string
	}{
		{"podman", "rw,lowerdir=/s/l/AB:/s/l/CD,upperdir=/s/x/diff,workdir=/s/x/work,uuid=on", "[/s/l/AB /s/l/CD] /s/x/diff false false"},
		{"one option per layer", `ro,lowerdir+=/a:b,lowerdir+=/c\054d,userxattr`, "[/a:b /c,d]  true false"},
		{"colon", `rw,lowerdir=/a\134:b:/c`, "[/a:b /c]  false false"},
		{"backslash", `rw,lowerdir=/a\134\134:/c`, `[/a\ /c]  false false`},
		{"space", `rw,lowerdir=/a\040b,upperdir=/u\134:v`, "[/a b] /u:v false false"},
		{"data only", "rw,lowerdir=/a::/data1::/data2", "[/a]  false true"},
		{"data option", "rw,lowerdir+=/a,datadir+=/d", "[/a]  false true"},
		{"relative", "rw,lowerdir=1/fs:2/fs,upperdir=3/fs", "[1/fs 2/fs] 3/fs false false"},
		{"no lower", "rw,upperdir=/a", "error"},
		{"empty layer", "rw,lowerdir=:/a", "error"},
		{"trailing backslash", `rw,lowerdir=/a\134`, "error"},
		{"cut escape", `rw,lowerdir=/a\13`, "error"},
		{"too many", "rw,lowerdir=" + strings.Repeat("/a:", maxLayers) + "/a", "error"},
	} {
		o, err := parseOverlay(c.in)
		got := fmt.Sprint(o.lower, " ", o.upper, " ", o.userxattr, " ", o.dataOnly)
		if err != nil {
			got = "error"
		}
		if got != c.want {
			t.Errorf("%s: %s (%v), want %s", c.name, got, err, c.want)
		}
	}
}

func FuzzMounts(f *testing.F) {
	f.Add("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n")
	f.Add(`74 49 0:40 / / rw - overlay overlay rw,lowerdir=/s/l/A\134:B:/s/l/C,upperdir=/s/x/diff,workdir=/w,uuid=on` + "\n")
	f.Add(`1 1 0:1 / /\134 x - a b lowerdir+=\040` + "\n")
	f.Fuzz(func(t *testing.T, s string) {
		_ = readMounts(strings.NewReader(s), func(m *mount) bool {
			if !strings.HasPrefix(m.point, "/") {
				t.Errorf("mount point %q", m.point)
			}
			if o, err := parseOverlay(m.super); err == nil {
				if len(o.lower) == 0 || len(o.lower) > maxLayers || slices.Contains(o.lower, "") {
					t.Errorf("layers %q from %q", o.lower, m.super)
				}
			}
			return true
		})
	})
}

const (
	aDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	bDigest = "sha256:6af6b1b7bbe844b84b12c4869da9a28fc90ddc30967e20b865bb5f2a1d0ae56a"
)

func TestParseManifest(t *testing.T) {
	for _, c := range []struct {
		name, in string
		ok       bool
	}{
		{"manifest", `{"schemaVersion":2,"config":{"digest":"` + aDigest + `"},"layers":[]}`, true},
		{"index", `{"manifests":[{"digest":"` + aDigest + `"}]}`, true},
		{"both", `{"config":{"digest":"` + aDigest + `"},"manifests":[]}`, false},
		{"both by layers", `{"layers":[],"manifests":[]}`, false},
		{"neither", `{}`, false},
		{"no config", `{"layers":[]}`, false},
		{"bad config digest", `{"config":{"digest":"sha256:../../x"}}`, false},
		{"bad manifest digest", `{"manifests":[{"digest":"sha512:00"}]}`, false},
		{"trailing", `{"manifests":[]}{}`, false},
		{"long", `{"config":{"digest":"` + aDigest + `"},"x":"` + strings.Repeat("x", maxManifest) + `"}`, false},
	} {
		if _, err := parseManifest([]byte(c.in)); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestChainID(t *testing.T) {
	if got := chainID([]string{aDigest}); got != aDigest {
		t.Errorf("one layer: %s", got)
	}
	if got, want := chainID([]string{aDigest, bDigest}), digestOf([]byte(aDigest+" "+bDigest)); got != want {
		t.Errorf("two layers: %s, want %s", got, want)
	}
	if got := chainID(nil); got != "" {
		t.Errorf("no layer: %s", got)
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"config":{"digest":"` + aDigest + `"},"layers":[{"digest":"x"}]}`))
	f.Add([]byte(`{"manifests":[{"digest":"` + aDigest + `","platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Add([]byte(`{"rootfs":{"type":"layers","diff_ids":["` + aDigest + `"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseManifest(b); err == nil {
			if m.isIndex() == (m.Config != nil) {
				t.Error("an index and a manifest at the same time")
			}
			m.here()
		}
		if ids, err := parseDiffIDs(b); err == nil {
			chainID(ids)
		}
	})
}

func TestParseContainer(t *testing.T) {
	const list = `[{"id":"aa","image":"i1","layer":"l1","metadata":"{\"id\":\"bb\",\"image-name\":\"n\"}"},{"id":"bb","image":"i2","layer":"l2"}]`
	for _, c := range []struct{ name, in, id, image string }{
		{"first", list, "aa", "i1"},
		{"second", list, "bb", "i2"},
		{"absent", list, "cc", ""},
		{"spaces", `[ { "layer":"l", "id" : "aa", "image" : "i1" } ]`, "aa", "i1"},
		{"part of an id", list, "a", ""},
		{"empty", `[]`, "aa", ""},
	} {
		got, err := parseContainer([]byte(c.in), c.id)
		if err != nil || c.image == "" && got != nil || c.image != "" && (got == nil || got.Image != c.image) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	for _, in := range []string{"", "{", `{"id":"aa"}`, `[{"id":1}]`} {
		if got, err := parseContainer([]byte(in), "aa"); err == nil {
			t.Errorf("%q: %+v", in, got)
		}
	}
}

func FuzzStorage(f *testing.F) {
	f.Add([]byte(`[{"id":"aa","image":"i1","layer":"l1","metadata":"{\"image-name\":\"n\"}"}]`), "aa")
	f.Add([]byte(`[{"id":"aa","digest":"`+aDigest+`","names":["n"],"big-data-names":["manifest-`+aDigest+`"]}]`), "aa")
	f.Add([]byte(`[{"id":"aa","diff-digest":"`+aDigest+`"}]`), `a"a`)
	f.Fuzz(func(t *testing.T, b []byte, id string) {
		if c, err := parseContainer(b, id); err == nil && c != nil && c.ID != id {
			t.Errorf("asked for %q, got %q", id, c.ID)
		}
		_, _ = parseImages(b)
		_, _ = parseLayers(b)
	})
}

func FuzzDocker(f *testing.F) {
	f.Add([]byte(`{"Name":"/a","Image":"` + aDigest + `","Driver":"overlay2","Config":{"Image":"n","Labels":{"a":"b"}},"ImageManifest":{"digest":"` + bDigest + `"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseDockerContainer(b)
		if err == nil && strings.ContainsAny(c.Driver, "/.\x00") {
			t.Fatalf("driver %q is a path", c.Driver)
		}
	})
}
