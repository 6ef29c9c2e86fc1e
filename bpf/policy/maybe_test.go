package policy

import "testing"

func TestMayBe(t *testing.T) {
	for _, c := range []struct {
		p    Probe
		path string
		want bool
	}{
		{Probe{File: "/lib/libx.so.*"}, "/usr/lib/libx.so.1", true}, // by a symlink
		{Probe{File: "/lib/libx.so.*"}, "/usr/lib/liby.so.1", false},
		{Probe{File: "/lib/libx.so"}, "libx.so", true},
		{Probe{File: "/app/**"}, "/opt/anything", true},
		{Probe{File: "/app/{a,b/c}"}, "/opt/x", true},
		{Probe{Library: "libx.so"}, "/opt/x", true},
		{Probe{BuildID: "00"}, "/opt/x", true},
		{Probe{Program: "openssl"}, "/opt/x", true},
		{Probe{Functions: []string{"do_exit"}}, "/opt/x", false},
		{Probe{File: "/[", ID: "not of Parse"}, "/x", true},
	} {
		if got := c.p.MayBe(c.path); got != c.want {
			t.Errorf("%+v and %s: %v", c.p, c.path, got)
		}
	}
}
