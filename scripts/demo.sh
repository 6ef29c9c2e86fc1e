#!/usr/bin/env bash
# The demo: installs what is missing, builds, and runs tests/demo, as root.
#
#	scripts/demo.sh [podman|containerd] [OUT]
#
# OUT, a new or empty directory, keeps spool/, node.pub, image.tar and
# summary.json. Exit codes: 0 the evidence says what happened, 1 it does not or
# something failed, 2 usage, 130 interrupted.
# shellcheck source=scripts/env.sh
caller=$PWD
. "$(dirname "$0")/env.sh"

runtime=${1:-podman}
out=${2:-}
# What cannot work is refused before anything is installed or built.
case $runtime in podman | containerd) ;; *) die "RUNTIME is $runtime, want podman or containerd" 2 ;; esac
if [ -n "$out" ]; then
	case $out in /*) ;; *) out=$caller/$out ;; esac
	if [ -e "$out" ] || [ -L "$out" ]; then
		[ -d "$out" ] || die "OUT: $out is not a directory" 2
		[ -z "$(ls -A -- "$out")" ] || die "OUT: $out is not empty" 2
	fi
fi
[ "$(id -u)" = 0 ] || die "loading BPF programs and running containers needs root: sudo make demo" 2

# A child that ends in order on Ctrl-C must not make us go on.
trap 'exit 130' INT TERM HUP
scripts/install.sh demo
tools=$PROBITY_PEERS
if [ "$runtime" = containerd ]; then
	# The distribution's, if it is new enough to have NRI on by default.
	if command -v containerd containerd-shim-runc-v2 ctr >/dev/null &&
		containerd --version | grep -Eq ' v?([2-9]|[1-9][0-9])\.[0-9]+\.'; then
		tools=$(dirname "$(command -v containerd)")
	else
		scripts/peers.sh containerd
	fi
fi
echo "Building ..."
scripts/build.sh
mkdir -p bin
go build -trimpath -o bin/demo ./tests/demo
give_back bin

arguments=(--runtime "$runtime" --containerd "$tools")
if [ -n "$out" ]; then arguments+=(--out "$out"); fi
exec scripts/private.sh bin/demo "${arguments[@]}"
