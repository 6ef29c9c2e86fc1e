// Embedder is a sandbox that somebody else has made of gVisor's kernel.
package main

import (
	"io"
	"os"

	"gvisor.dev/gvisor/pkg/sentry/kernel"
)

func main() {
	os.Stdout.WriteString("up\n")
	kernel.Run(func() { io.Copy(io.Discard, os.Stdin) })
}
