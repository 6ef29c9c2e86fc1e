#!/usr/bin/env bash
# Starts containers for a long time, and writes docs/soak.md: soak.sh FOR SEED
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

[ "$(id -u)" = 0 ] || die "the soak needs root: sudo make soak" 2
scripts/install.sh test
scripts/peers.sh containerd
export PROBITY_REQUIRE=${PROBITY_REQUIRE:-all}
mkdir -p docs/soak
# What it found is written in any case; the page is made of a soak that found nothing.
scripts/private.sh go test -count=1 -v -timeout 24h -run '^TestSoak$' ./tests/runtimes -args -soak "$1" -soak-seed "$2" -soak-out "$PWD/docs/soak"
exec go test -count=1 -run '^TestSoakPage$' ./tests/runtimes -args -write-soak
