#!/usr/bin/env bash
# Runs the tests. As root: everything, with every need required, after
# installing what is missing. Else: what needs none, and the end names what was
# skipped.
#
#	scripts/test.sh
#	scripts/test.sh full [PART...]
#
# $PROBITY_BOOT=all has the core of the engine's tests run in every kernel of
# tests/kernels, and not only in one.
#
# full is everything that needs no person, in parts, of which any can be run
# alone. All of them run even if one fails; the end says how each went and how
# long it took.
#
#	race     every test under the race detector, the agent of tests/runtimes too
#	fuzz     every fuzz target, half a minute each ($PROBITY_FUZZTIME)
#	tests    what scripts/test.sh runs, and what needs compilers and interpreters
#	         that are too large for it
#	crashes  thousands of crashes of the spool, power cuts of a machine's disk, and a
#	         day of its life
#	load     200 pods started at once, and 1,000 containers in a row
#	shippers 10,000 chunks ($PROBITY_SHIPPED) through each real log shipper, with kills
#	guests   all of the engine's tests in every kernel, or those of $PROBITY_BOOT:
#	         an hour of a processor each
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

full=
parts=()
if [ $# -gt 0 ]; then
	[ "$1" = full ] || die "usage: test.sh [full [race|fuzz|tests|crashes|load|shippers|guests]...]" 2
	full=yes
	parts=("${@:2}")
	if [ ${#parts[@]} = 0 ]; then parts=(race fuzz tests crashes load shippers guests); fi
	for part in "${parts[@]}"; do
		case $part in race | fuzz | tests | crashes | load | shippers | guests) ;; *) die "full has no part $part: race, fuzz, tests, crashes, load, shippers, guests" 2 ;; esac
	done
fi

packages=$(go list -e ./...) || die "go list failed"
mapfile -t quick < <(grep -v '/tests/' <<<"$packages")
# tests/systemd and tests/doctor run in machines that tests/kernels boots.
mapfile -t slow < <(grep '/tests/' <<<"$packages" | grep -vE '/tests/(systemd|doctor)$')
boot=${PROBITY_BOOT:-6.12}
timeout=15m
machines=("${boot//,/ }" userland-amd64 containers-amd64)
if [ "$boot" = all ]; then timeout=30m; fi # tests/kernels
if [ "$boot" = all ] || [ -n "$full" ]; then machines=(); fi
if [ -n "$full" ]; then # tests/kernels is a part of its own
	mapfile -t slow < <(grep -v '/tests/kernels$' <<<"$(printf '%s\n' "${slow[@]}")")
fi

report=(go run ./tests/need/report)
if [ "$(id -u)" = 0 ]; then
	scripts/install.sh test
	if [ -n "$full" ]; then scripts/install.sh full; fi
	scripts/peers.sh containerd cosign runsc ${full:+otelcol}
	# Where it cannot be fetched, the test that needs it says so.
	# shellcheck disable=SC2068 # a list in each
	scripts/kernels.sh ${machines[@]} || true
	export PROBITY_REQUIRE=${PROBITY_REQUIRE:-all${full:+,rustc,node,java,otelcol}}
	report=(scripts/private.sh "${report[@]}")
fi

# Scenarios with real runtimes measure time: one package after another, and
# after the others.
tests() {
	"${report[@]}" -count=1 -timeout "$timeout" "${quick[@]}" -- -count=1 -timeout "$timeout" -p 1 "${slow[@]}"
}

# What the detector slows down are the agent and the tests, not what they measure
# themselves against: tests/bench is left out.
race() {
	local timed
	mapfile -t timed < <(printf '%s\n' "${slow[@]}" | grep -v '/tests/bench$')
	"${report[@]}" -race -count=1 -timeout 40m "${quick[@]}" -- -race -count=1 -timeout 60m -p 1 "${timed[@]}"
}

# One target after the other: each takes all processors.
fuzz() {
	local dir target count=0 crashed=()
	while read -r dir target; do
		count=$((count + 1))
		echo "fuzz $target ($dir)"
		# Go would else spend a minute on making one input smaller, and most of the
		# time on doing so with each input that reaches new code.
		go test -run '^$' -fuzz "^$target\$" -fuzztime "${PROBITY_FUZZTIME:-30s}" -fuzzminimizetime 50x "$dir" || crashed+=("$target ($dir)")
	done < <(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' ./... | while read -r dir; do
		sed -nE "s,^func (Fuzz[A-Za-z0-9_]+).*,.${dir#"$PWD"} \\1,p" "$dir"/*_test.go
	done)
	echo "$count targets, failed: ${crashed[*]:-none}"
	[ "$count" -gt 0 ] && [ ${#crashed[@]} = 0 ]
}

crashes() {
	PROBITY_CRASHES=${PROBITY_CRASHES:-3000} "${report[@]}" -count=1 -timeout 120m -run 'TestKillAnywhere|TestLostWrites|TestFailedSync|TestIdleDay|TestLiveRotationIsKilled|TestPowerCuts' ./evidence/spool ./evidence/nodekey ./tests/kernels
}

load() {
	"${report[@]}" -count=1 -timeout 30m -run 'TestPodsAtOnce|TestContainersInARow' ./tests/runtimes -load
}

shippers() {
	PROBITY_SHIPPED=${PROBITY_SHIPPED:-10000} "${report[@]}" -count=1 -timeout 120m ./tests/shippers
}

guests() {
	"${report[@]}" -count=1 -timeout 6h ./tests/kernels -boot "${PROBITY_BOOT:-all}" -whole
}

if [ -z "$full" ]; then
	status=0
	tests || status=1
	if [ -d bin ]; then give_back bin; fi
	exit $status
fi

summary=()
status=1 # if it does not get to the end
finish() {
	printf '\n%s\n' "scripts/test.sh full:"
	printf '  %s\n' "${summary[@]}"
	if [ -d bin ]; then give_back bin; fi
	exit $status
}
trap finish EXIT
failed=0
for part in "${parts[@]}"; do
	began=$SECONDS
	how=ok
	printf '\n== %s\n' "$part"
	"$part" || { how=FAIL && failed=1; }
	summary+=("$(printf '%-8s  %-4s  %4d min %02d s' "$part" $how $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)))")
done
status=$failed
