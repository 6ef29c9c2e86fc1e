#!/usr/bin/env bash
# Builds, from their Go modules, the programs that tests and the demo meet and
# that distributions have too old or not at all: containerd (with its shim and
# ctr), cosign, gVisor's runsc, and the OpenTelemetry Collector. It takes minutes, so the result is kept in $PROBITY_PEERS
# and built anew only when the module's versions or Go's version have changed.
#
#	scripts/peers.sh containerd|cosign|runsc|otelcol...
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

for peer in "$@"; do
	module=tests/peers/$peer
	[ -f "$module/go.sum" ] || die "unknown peer $peer" 2
	stamp=$(cat "$module/go.mod" "$module/go.sum" <(go env GOVERSION GOARCH) | sha256sum | cut -d' ' -f1)
	kept=$PROBITY_PEERS/$peer.stamp
	mkdir -p "$PROBITY_PEERS"
	exec 9>"$PROBITY_PEERS/$peer.lock" # two runs at once build once
	flock 9
	if [ -x "$PROBITY_PEERS/$peer" ] && [ "$(cat "$kept" 2>/dev/null)" = "$stamp" ]; then continue; fi

	flags='-s -w'
	if [ "$peer" = containerd ]; then
		version=$(cd "$module" && go list -m -f '{{.Version}}' github.com/containerd/containerd/v2)
		flags+=" -X github.com/containerd/containerd/v2/version.Version=$version"
	fi
	# gVisor's own Go branch reaches into package runtime by linkname.
	if [ "$peer" = runsc ]; then flags+=' -checklinkname=0'; fi
	echo "peers.sh: building $peer from its module (once; 3 to 5 minutes on two cores)"
	fresh=$(mktemp -d "$PROBITY_PEERS/build-XXXXXX")
	trap 'rm -rf "$fresh"' EXIT
	(cd "$module" && CGO_ENABLED=0 go build -trimpath -ldflags "$flags" -o "$fresh/" tool)
	mv "$fresh"/* "$PROBITY_PEERS/" # by rename: an old one may be running
	rmdir "$fresh"
	trap - EXIT
	echo "$stamp" >"$kept"
done
