// Command fips hashes something, and calls one function of its own. With
// GODEBUG=fips140=on it verifies the text of the FIPS module first.
package main

import (
	"crypto/fips140"
	"crypto/sha256"
	"fmt"
	"os"
)

//go:noinline
func work(b []byte) [32]byte { return sha256.Sum256(b) }

func main() {
	if !fips140.Enabled() {
		fmt.Fprintln(os.Stderr, "not in FIPS mode")
		os.Exit(3)
	}
	fmt.Printf("%x\n", work([]byte("probity")))
}
