#!/usr/bin/env bash
# Builds the programs into DIR (bin/): static, reproducible from the same
# sources, with the version that git knows. The helper for PKCS#11 tokens loads
# shared libraries: it is linked against the C library, and built only where there
# is a C compiler.
#
#	scripts/build.sh [DIR]
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

out=${1:-bin}
mkdir -p "$out"
CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(version)" -o "$out/probity" ./plugin
CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$out/probity-hook" ./hook
CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$out/probity-runtime" ./wrapper
if command -v "${CC:-gcc}" >/dev/null; then
	CGO_ENABLED=1 go build -trimpath -ldflags "-s -w" -o "$out/probity-pkcs11" ./token
fi
give_back "$out"
