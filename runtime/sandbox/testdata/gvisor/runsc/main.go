// Runsc is an imitation: it has gVisor's module path and the name of a package
// of gVisor's kernel. It says that it runs, and ends when its input does.
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
