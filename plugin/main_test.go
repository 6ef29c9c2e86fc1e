package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
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
