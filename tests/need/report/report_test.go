package main

import (
	"strings"
	"testing"
)

const stream = `{"Action":"start","Package":"a"}
{"Action":"run","Package":"a","Test":"TestGood"}
{"Action":"output","Package":"a","Test":"TestGood","Output":"=== RUN   TestGood\n"}
{"Action":"pass","Package":"a","Test":"TestGood","Elapsed":0.1}
{"Action":"output","Package":"a","Test":"TestPod","Output":"    x_test.go:3: needs podman: it is not installed\n"}
{"Action":"skip","Package":"a","Test":"TestPod","Elapsed":0}
{"Action":"pass","Package":"a","Elapsed":0.2}
{"ImportPath":"b","Action":"build-output","Output":"b.go:1: broken\n"}
{"ImportPath":"b","Action":"build-fail"}
{"Action":"fail","Package":"b","Elapsed":0,"FailedBuild":"b"}
{"Action":"output","Package":"c","Test":"TestLost","Output":"panic: lost\n"}
{"Action":"output","Package":"c","Output":"FAIL\tc\t0.1s\n"}
{"Action":"fail","Package":"c","Elapsed":0.1}
{"Action":"output","Package":"d","Test":"TestBad/sub","Output":"progress: half of it\n"}
{"Action":"output","Package":"d","Test":"TestBad/sub","Output":"    d_test.go:9: wrong\n"}
{"Action":"fail","Package":"d","Test":"TestBad/sub","Elapsed":0}
{"Action":"fail","Package":"d","Test":"TestBad","Elapsed":0}
{"Action":"fail","Package":"d","Elapsed":0.1}
go: a message
`

func TestTally(t *testing.T) {
	var out strings.Builder
	tally := newTally(&out)
	if err := read(strings.NewReader(stream), tally); err != nil {
		t.Fatal(err)
	}
	if tally.finish() {
		t.Error("a failing run was called good")
	}
	got := out.String()
	for _, want := range []string{
		"needs podman: it is not installed", "skipped for what is not here: podman (1)\n",
		"b.go:1: broken", "FAIL\tb [build failed]", "panic: lost", "\nhalf of it\n", "d_test.go:9: wrong", "go: a message",
		"ok  \ta\t0.200s\nFAIL\tb", // the packages again, at the end
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	// One good; two in d, one each for b and c; one skipped.
	if !strings.HasSuffix(got, "\n1 passed, 4 failed, 1 skipped\n") {
		t.Errorf("the end is %q", got[strings.LastIndex(strings.TrimSpace(got), "\n"):])
	}
}

func TestNothingRanIsAFailure(t *testing.T) {
	var out strings.Builder
	if newTally(&out).finish() {
		t.Error("no test ran, and it was called good")
	}
	if !strings.HasSuffix(out.String(), "no test ran\n0 passed, 0 failed, 0 skipped\n") {
		t.Errorf("got %q", out.String())
	}
}

func TestGroups(t *testing.T) {
	got := groups([]string{"-p", "1", "./a", "--", "./b"})
	if len(got) != 2 || len(got[0]) != 3 || len(got[1]) != 1 {
		t.Errorf("got %q", got)
	}
}
