package main

import "strings"

// valued are the options that take a value as the next argument: before the command
// the global ones of runc 1.x, crun 1.x and runsc, after it those of `create` and `run`.
var valued = map[string]bool{
	"log": true, "log-format": true, "log-level": true, "root": true, "criu": true, "rootless": true, "cgroup-manager": true,
	"bundle": true, "b": true, "config": true, "f": true, "console-socket": true, "pidfd-socket": true, "pid-file": true, "preserve-fds": true,
}

// creates returns the bundle of the container that a runtime's command line makes, if
// it makes one. A command line that it misreads makes none.
func creates(args []string) (bundle string, ok bool) {
	command := ""
	bundle = "."
	for i := 0; i < len(args); i++ {
		name, isOption := strings.CutPrefix(args[i], "-")
		if !isOption {
			if command != "" {
				break // the container's id
			}
			if command = args[i]; command != "create" && command != "run" {
				return "", false
			}
			continue
		}
		if name == "-" {
			break
		}
		name, value, has := strings.Cut(strings.TrimPrefix(name, "-"), "=")
		if !has && valued[name] {
			if i++; i == len(args) {
				return "", false
			}
			value = args[i]
		}
		switch {
		case command == "":
		case name == "bundle" || name == "b":
			bundle = value
		case name == "config" || name == "f":
			return "", false // crun: config.json is not what counts
		}
	}
	return bundle, command != "" && bundle != ""
}
