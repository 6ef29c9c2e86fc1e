#!/usr/bin/env bash
# Everything that can be said about the sources without running them. It goes
# on after a finding, and lists at the end what it could not look at; where
# PROBITY_REQUIRE is "all" that is a finding, too.
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

status=0 blind=()
finding() {
	echo "check: $1" >&2
	status=1
}
# here PROGRAM WHAT: whether the program is there to look at WHAT.
here() {
	command -v "$1" >/dev/null && return
	blind+=("$2 ($1 is not installed)")
	return 1
}

if [ "$(id -u)" = 0 ]; then scripts/install.sh check; fi

unformatted=$(gofmt -l .)
[ -z "$unformatted" ] || finding "gofmt would change: $unformatted"
go vet ./... || finding "go vet"
go mod verify >/dev/null || finding "go mod verify"
go test -count=1 . || finding "import policy"

if here clang-14 "the BPF objects"; then scripts/generate.sh check || finding "BPF objects"; fi
if here shellcheck "the shell scripts"; then
	shellcheck -x scripts/*.sh .ci/run || finding "shellcheck"
fi
if here systemd-analyze "the unit"; then scripts/unit.sh || finding "the unit"; fi
# No distribution has it; its configuration is for those who do.
if command -v golangci-lint >/dev/null; then golangci-lint run ./... || finding "golangci-lint"; fi

if [ ${#blind[@]} -gt 0 ]; then
	printf 'check: not looked at: %s\n' "${blind[@]}" >&2
	if [ "${PROBITY_REQUIRE:-}" = all ]; then status=1; fi
fi
if [ $status = 0 ]; then echo "check: nothing found"; fi
exit $status
