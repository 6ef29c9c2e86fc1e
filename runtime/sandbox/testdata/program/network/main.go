// Network is a program that has gVisor's network stack in it, by its name, and
// is no sandbox. It maps the files of its arguments to be executed, says that
// it runs, and ends when its input does.
package main

import (
	"io"
	"os"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
)

func main() {
	for _, name := range os.Args[1:] {
		f, err := os.Open(name)
		if err != nil {
			panic(err)
		}
		if _, err := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_EXEC, syscall.MAP_PRIVATE); err != nil {
			panic(err)
		}
		f.Close()
	}
	os.Stdout.WriteString("up\n")
	tcpip.Run(func() { io.Copy(io.Discard, os.Stdin) })
}
