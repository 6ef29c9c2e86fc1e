#!/usr/bin/env bash
# Measures the budgets and prints each beside its limit.
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

[ "$(id -u)" = 0 ] || die "measuring needs root: sudo make bench" 2
scripts/install.sh test bench
scripts/peers.sh containerd cosign
export PROBITY_REQUIRE=${PROBITY_REQUIRE:-all}
scripts/private.sh go test -count=1 -v -run '^$' -bench . -benchtime 1x -timeout 30m ./tests/bench/... ./agent
# Their rows are metrics: lines/s has a budget of 200,000 on two idle cores.
exec go test -count=1 -run '^$' -bench . -benchtime 3s ./evidence/verify
