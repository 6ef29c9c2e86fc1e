package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"probity/agent"
	"probity/evidence/spool"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"probity": func() { os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// The scripts run the command line as a user does and read what it prints.
func TestScripts(t *testing.T) {
	vectors, err := filepath.Abs("../evidence/testdata")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("VECTORS", vectors)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":  exits,
			"kernel": looks,
		},
	})
}

// exits runs a command and wants its exit code: exits CODE COMMAND...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if err != nil {
		code = "?"
		if e, ok := err.(interface{ ExitCode() int }); ok {
			code = string(rune('0' + e.ExitCode()))
		}
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s (%v)", code, args[0], err)
	}
}

// looks runs `probity kernel`, and wants the exit code that goes with the
// rights of this process.
func looks(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: kernel ARGUMENTS...")
	}
	code := "3"
	if os.Geteuid() == 0 {
		code = "0"
	}
	exits(ts, false, append([]string{code, "probity", "kernel"}, args...))
}

// Who asks for the status reads how full the spool is, whose entries are refused, and
// what was given up.
func TestStatusOfTheSpool(t *testing.T) {
	var b strings.Builder
	st := agent.Status{Spool: "/s", Coalesced: 12, Stored: spool.Usage{
		Bytes: 3 << 20, Chunks: 7, Quota: 16 << 20, ContainerQuota: 1 << 20, Waiting: 1 << 19, Dropped: map[string]uint64{spool.DroppedMemory: 4, spool.DroppedContainerQuota: 9},
		Most: []spool.ContainerUsage{{ContainerID: strings.Repeat("a", 64), Bytes: 2 << 20, Refused: true}, {ContainerID: "quiet", Bytes: 1}},
	}}
	if err := printStatus(&b, st); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"3.0 MiB in 7 chunks, of 16.0 MiB; waiting in memory: 0.5 MiB", "container aaaaaaaaaaaa has its share, 2.0 MiB of 1.0 MiB",
		"lines dropped since the start, and signed as such: 9 (containerQuota)", ": 4 (memory)", "because a later one says the same: 12",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "quiet") {
		t.Error(b.String())
	}
}
