// Package leak is a TestMain for packages that hold what outlives their memory:
// once all tests have passed, no goroutine of theirs runs, and no file
// descriptor is open that was not before. A BPF program, map or link is a
// descriptor, too.
package leak

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.uber.org/goleak"
)

// Main runs the tests and ends the process.
func Main(m goleak.TestingM) {
	before := descriptors()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(exit int) {
		if left := more(before, descriptors()); exit == 0 && len(left) > 0 {
			fmt.Fprintf(os.Stderr, "leak: descriptors that no test closed: %s\n", strings.Join(left, ", "))
			exit = 1
		}
		os.Exit(exit)
	}))
}

// descriptors are the open ones by number, with what each is of.
func descriptors() map[string]string {
	open := map[string]string{}
	names, _ := filepath.Glob("/proc/self/fd/*")
	for _, name := range names {
		if of, err := os.Readlink(name); err == nil { // but that of the listing itself
			open[name] = of
		}
	}
	return open
}

// more lists what is open now and was not before. What Go's runtime waits with
// stays open, once it was needed, and so does a file that go test profiles into.
func more(before, now map[string]string) (left []string) {
	flagged := map[string]bool{} // -cpuprofile and the like
	flag.Visit(func(f *flag.Flag) {
		if path, err := filepath.Abs(f.Value.String()); err == nil {
			flagged[path] = true
		}
	})
	for name, of := range now {
		if of != before[name] && !flagged[of] && of != "anon_inode:[eventpoll]" && of != "anon_inode:[eventfd]" {
			left = append(left, filepath.Base(name)+" "+of)
		}
	}
	return left
}
