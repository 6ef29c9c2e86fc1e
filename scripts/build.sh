#!/usr/bin/env bash
# Builds both programs into DIR (bin/): static, reproducible from the same
# sources, with the version that git knows.
#
#	scripts/build.sh [DIR]
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

out=${1:-bin}
mkdir -p "$out"
CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(version)" -o "$out/probity" ./plugin
CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$out/probity-hook" ./hook
give_back "$out"
