#!/usr/bin/env bash
# Compiles the BPF programs into bpf/, with the one compiler whose output is
# committed. With "check" it compiles into a copy and compares instead.
#
#	scripts/generate.sh [check]
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

want='Debian clang version 14.0.6'
have=$(clang-14 --version 2>/dev/null | head -n 1 || true)
if [ "$have" != "$want" ]; then
	echo "generate.sh: the committed objects are made by \"$want\" (package clang-14 of Debian 12), here is: ${have:-no clang-14}" >&2
	exit 1
fi
for tool in llvm-strip-14 llvm-objcopy-14; do
	command -v "$tool" >/dev/null || die "$tool is not installed (package llvm-14)"
done

if [ "${1:-}" != check ]; then
	go generate ./bpf ./bpf/kernel
	give_back bpf
	exit
fi

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
# bpf2go runs in the package's directory and resolves itself through go.mod.
cp -r go.mod go.sum bpf "$copy"
(cd "$copy" && go generate ./bpf ./bpf/kernel)
status=0
while read -r name; do
	if ! cmp -s "bpf/$name" "$copy/bpf/$name"; then
		echo "generate.sh: bpf/$name is not what its sources make; run make generate and commit the result" >&2
		status=1
	fi
done < <({
	find bpf "$copy/bpf" -maxdepth 1 -name '*_bpfel.*' -printf '%f\n'
	find bpf/kernel "$copy/bpf/kernel" -maxdepth 1 -name '*.bin' -printf 'kernel/%f\n'
} | sort -u)
exit $status
