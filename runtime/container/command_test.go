package container

import (
	"strings"
	"testing"
)

func TestCommandOf(t *testing.T) {
	for name, c := range map[string]struct {
		args, env []string
		dir       string
		want      Command
	}{
		"nothing":          {},
		"usual":            {[]string{"nginx", "-g", "secret"}, []string{"TOKEN=secret", "PATH=/bin:/usr/bin", "XPATH=/x"}, "/srv", Command{"nginx", "/bin:/usr/bin", "/srv"}},
		"PATH twice":       {[]string{"a"}, []string{"PATH=/a", "PATH=/b"}, "", Command{Arg0: "a", Path: "/b"}},
		"PATH too long":    {[]string{"a"}, []string{"PATH=/a", "PATH=" + strings.Repeat("/a:", MaxPATH)}, "", Command{Arg0: "a"}},
		"empty PATH":       {[]string{"a"}, []string{"PATH="}, "", Command{Arg0: "a"}},
		"too long":         {[]string{strings.Repeat("a", MaxPath+1)}, []string{"PATH=" + strings.Repeat("/a:", MaxPATH)}, strings.Repeat("/d", MaxPath), Command{}},
		"what is no text":  {[]string{"a\x00b"}, []string{"PATH=\x00"}, "\x00", Command{}},
		"no argument":      {[]string{""}, nil, "/", Command{Dir: "/"}},
		"only a name PATH": {[]string{"a"}, []string{"PATH"}, "", Command{Arg0: "a"}},
	} {
		if got := CommandOf(c.args, c.env, c.dir); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
