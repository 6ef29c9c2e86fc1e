#!/usr/bin/env bash
# Runs the tests. As root: everything, with every need required, after
# installing what is missing. Else: what needs none, and the end names what was
# skipped.
#
#	scripts/test.sh [full]
#
# full adds the race detector, half a minute of fuzzing per target, and all of
# the engine's tests in every kernel of tests/kernels. $PROBITY_BOOT=all has the
# core of them run in every kernel, and not only in one.
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

packages=$(go list -e ./...) || die "go list failed"
mapfile -t quick < <(grep -v '/tests/' <<<"$packages")
mapfile -t slow < <(grep '/tests/' <<<"$packages")
boot=${PROBITY_BOOT:-6.12}
timeout=15m
machines=("${boot//,/ }" userland-amd64 containers-amd64)
case $boot/${1:-} in
all/* | */full)
	timeout=30m # tests/kernels
	machines=()
	;;
esac
common=(-count=1 -timeout "$timeout")

command=(go run ./tests/need/report)
if [ "$(id -u)" = 0 ]; then
	scripts/install.sh test
	if [ "${1:-}" = full ]; then scripts/install.sh full; fi
	scripts/peers.sh containerd cosign runsc
	# Where it cannot be fetched, the test that needs it says so.
	# shellcheck disable=SC2068 # a list in each
	scripts/kernels.sh ${machines[@]} || true
	export PROBITY_REQUIRE=${PROBITY_REQUIRE:-all${1:+,rustc}}
	command=(scripts/private.sh "${command[@]}")
fi
status=0
if [ "${1:-}" = full ]; then
	go run ./tests/need/report "${common[@]}" -race "${quick[@]}" || status=1
	while IFS=: read -r file target; do
		echo "fuzz $target ($file)"
		# Go would else spend a minute on making one input smaller.
		go test -run '^$' -fuzz "^$target\$" -fuzztime 30s -fuzzminimizetime 2s "./$(dirname "$file")" || status=1
	done < <(grep -rhoE --include='*_test.go' -H '^func Fuzz[A-Za-z0-9_]+' . | sed 's/:func /:/')
fi
# Scenarios with real runtimes measure time: one package after another, and
# after the others.
"${command[@]}" "${common[@]}" "${quick[@]}" -- "${common[@]}" -p 1 "${slow[@]}" || status=1
if [ "${1:-}" = full ]; then
	go run ./tests/need/report -count=1 -timeout 170m ./tests/kernels -boot all -whole || status=1
fi
if [ -d bin ]; then give_back bin; fi
exit $status
