package need

import (
	"fmt"
	"strings"
	"testing"
)

func TestRequired(t *testing.T) {
	for _, c := range []struct {
		list, name string
		want       bool
		unknown    string
	}{
		{"", "root", false, ""},
		{"all", "root", true, ""},
		{"all", "command:clang-14", true, ""},
		{"podman, root", "root", true, ""},
		{"podman", "root", false, ""},
		{"command", "command:gcc", true, ""},
		{"command:gcc", "command:gcc", true, ""},
		{"command:gcc", "command:ld", false, ""},
		{"all", "kvm", false, ""},
		{"all,kvm", "kvm", true, ""},
		{"qemu", "qemu", true, ""},
		{"all", "feature:io_uring", false, ""},
		{"all,feature:io_uring", "feature:io_uring", true, ""},
		{"feature", "feature:io_uring", true, ""},
		{"machine:amd64", "machine:arm64", false, ""},
		{"contianerd", "containerd", false, "contianerd"},
	} {
		got, unknown := required(c.list, c.name)
		if got != c.want || unknown != c.unknown {
			t.Errorf("required(%q, %q) = %v, %q; want %v, %q", c.list, c.name, got, unknown, c.want, c.unknown)
		}
	}
}

// recorder is a test that notes how it would have ended.
type recorder struct {
	testing.TB
	ended string
}

func (r *recorder) Helper() {}
func (r *recorder) Skipf(format string, args ...any) {
	r.ended = "skip: " + fmt.Sprintf(format, args...)
	panic(r)
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.ended = "fail: " + fmt.Sprintf(format, args...)
	panic(r)
}

func ending(f func(testing.TB)) (ended string) {
	r := new(recorder)
	defer func() {
		if p := recover(); p != nil && p != any(r) {
			panic(p)
		}
		ended = r.ended
	}()
	f(r)
	return r.ended
}

func TestUnmet(t *testing.T) {
	t.Setenv(Peers, t.TempDir())
	ask := func(tb testing.TB) { Command(tb, "no-such-program-of-probity") }

	t.Setenv(Require, "")
	if got := ending(ask); !strings.HasPrefix(got, "skip: needs command:no-such-program-of-probity: ") {
		t.Errorf("not required: %q", got)
	}
	t.Setenv(Require, "all")
	if got := ending(ask); !strings.HasPrefix(got, "fail: needs command:no-such-program-of-probity: ") {
		t.Errorf("required: %q", got)
	}
	t.Setenv(Require, "rooot")
	if got := ending(ask); !strings.HasPrefix(got, "fail: ") || !strings.Contains(got, `"rooot" is not a need`) {
		t.Errorf("misspelt: %q", got)
	}
}

func TestCosignIsAPeer(t *testing.T) {
	t.Setenv(Peers, t.TempDir())
	t.Setenv(Require, "")
	got := ending(func(tb testing.TB) { Cosign(tb) })
	if !strings.HasPrefix(got, "skip: needs cosign: ") || !strings.Contains(got, "scripts/peers.sh cosign") {
		t.Errorf("got %q", got)
	}
}
