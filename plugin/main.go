// Command probity is the agent and its command line. It wires packages
// together and maps what they return to exit codes: 0 sound, 1 a finding,
// 2 usage, 3 could not look, 4 (of the agent) a token refused the PIN or is locked.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
