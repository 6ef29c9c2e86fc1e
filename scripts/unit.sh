#!/usr/bin/env bash
# Verifies the systemd unit as it will stand on a node: in a root of its own,
# where the program that it starts exists.
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
units=/usr/lib/systemd/system
[ -d "$units" ] || units=/lib/systemd/system
mkdir -p "$root/usr/bin" "$root/etc" "$root$units"
cp -r "$units/." "$root$units/"
cp packaging/systemd/probity.service "$root$units/"
install -m 755 /dev/null "$root/usr/bin/probity"
# It says nothing, and exits 0, exactly if there is nothing to say about ours.
said=$(systemd-analyze verify --root="$root" --man=no --recursive-errors=no probity.service 2>&1) || true
said=$(grep -v '^$' <<<"$said" | grep -F probity.service || true)
if [ -n "$said" ]; then
	echo "$said" >&2
	exit 1
fi
