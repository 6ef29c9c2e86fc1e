package bpf

// The compiler is pinned: the committed objects are what Debian 12's clang-14
// makes of the sources, and `make check` rebuilds and compares them.
//
//go:generate go tool bpf2go -go-package bpf -cc clang-14 -strip llvm-strip-14 -target amd64,arm64 -type hit_event -type exec_event -type lost_event -type event_type -type session -type stack_event -type standing -type slot_flags -type cookie_bits -cflags "-O2 -g -Wall -Werror -D__BPF__" probes c/probity.bpf.c -- -Ic
//go:generate go tool bpf2go -go-package bpf -cc clang-14 -strip llvm-strip-14 -target amd64,arm64 -cflags "-O2 -g -Wall -Werror -D__BPF__" lineage c/lineage.bpf.c -- -Ic
//go:generate go tool bpf2go -go-package bpf -cc clang-14 -strip llvm-strip-14 -target amd64,arm64 -type set_event -type call_event -type set_key -type set_entry -type set_count -type set_calls -type set_state -type set -type abi -type access -type mapping -type operation -type path_flags -cflags "-O2 -g -Wall -Werror -D__BPF__" sets c/sets.bpf.c -- -Ic
//go:generate go tool bpf2go -go-package bpf -cc clang-14 -strip llvm-strip-14 -target amd64,arm64 -cflags "-O2 -g -Wall -Werror -D__BPF__" pairs c/pairs.bpf.c -- -Ic
//go:generate go tool bpf2go -go-package bpf -cc clang-14 -strip llvm-strip-14 -target amd64,arm64 -cflags "-O2 -g -Wall -Werror -D__BPF__" bare c/bare.bpf.c -- -Ic
