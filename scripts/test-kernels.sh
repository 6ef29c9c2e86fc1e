#!/usr/bin/env bash
# Boots every kernel of tests/kernels/machines.txt in QEMU, has a conformance
# run of every probe type and the core of the engine's own tests in each, prints
# the matrix, and writes it to docs/kernels.md and docs/kernels.json. It needs no
# root but to install what is missing. With -whole it runs all of those tests,
# which takes an emulated machine an hour.
#
#	scripts/test-kernels.sh [GO TEST ARGUMENT...]
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

scripts/install.sh kernels
scripts/kernels.sh
export PROBITY_REQUIRE=${PROBITY_REQUIRE:-kernel}
go test -count=1 -v -timeout 6h ./tests/kernels -boot all -write "$@"
give_back docs
