// Package tcpip has the name of gVisor's network stack, which many programs
// have in them that are no sandbox.
package tcpip

// Run waits for the end of what it is given.
//
//go:noinline
func Run(wait func()) { wait() }
