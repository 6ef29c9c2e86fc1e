package bpf

// callArchs are the architectures of system calls by enum abi of c/sets.h.
var callArchs = [...]string{"x86_64", "i386", "x32"}
