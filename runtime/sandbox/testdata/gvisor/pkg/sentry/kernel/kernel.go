// Package kernel has the name of gVisor's kernel, and nothing else of it.
package kernel

// Run waits for the end of what it is given.
//
//go:noinline
func Run(wait func()) { wait() }
