# shellcheck shell=bash
# Sourced by the other scripts: strict bash in the repository's root, with Go
# in PATH. It changes nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
	printf '%s: %s\n' "$(basename "$0")" "$1" >&2
	exit "${2:-1}"
}

# sudo and service managers hand over a PATH without Go, and often without
# sbin, where runc lives; some have no HOME, which Go and the cache need.
HOME=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
export HOME
for dir in /usr/local/go/bin /usr/lib/go/bin "$HOME/go/bin" "$HOME/sdk/go/bin" /snap/bin /usr/local/sbin /usr/sbin /sbin; do
	case ":$PATH:" in
	*":$dir:"*) ;;
	*) if [ -d "$dir" ]; then PATH=$PATH:$dir; fi ;;
	esac
done
if ! command -v go >/dev/null && [ -n "${SUDO_USER:-}" ]; then
	# Go installed in the home of whoever called sudo.
	home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
	for dir in "$home/go/bin" "$home/sdk/go/bin" "$home/.local/go/bin" "$home/.local/bin"; do
		if [ -x "$dir/go" ]; then PATH=$PATH:$dir; fi
	done
fi
export PATH
command -v go >/dev/null || die "Go is not in PATH ($PATH); install it, or put it there"

# In a checkout that root does not own, git refuses to say which commit it is,
# and go build would fail for that.
export GOFLAGS="${GOFLAGS:-} -buildvcs=false"

# Where the programs are that are built from their Go modules; tests/need looks
# in the same place.
export PROBITY_PEERS="${PROBITY_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/probity/peers}"

# give_back makes what root has built the property of who owns the checkout.
give_back() {
	if [ "$(id -u)" = 0 ]; then chown -R --reference=. -- "$@"; fi
}

# version says which state of the repository this is.
version() {
	git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo unknown
}
