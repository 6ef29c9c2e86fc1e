#!/usr/bin/env bash
# Runs a command as root in a mount namespace of its own, with a tracefs:
# whatever is mounted in there is gone with its last process, however that
# ends, and the host's mounts are not changed.
#
#	scripts/private.sh COMMAND ARGUMENT...
set -euo pipefail

if [ "${PROBITY_PRIVATE:-}" != "$$" ]; then
	# exec keeps the process id, which says below that this is the second time.
	PROBITY_PRIVATE=$$ exec unshare --mount --propagation private -- "$0" "$@"
fi
unset PROBITY_PRIVATE
if ! grep -q ' tracefs ' /proc/self/mounts && [ -d /sys/kernel/tracing ]; then
	mount -t tracefs tracefs /sys/kernel/tracing || echo "private.sh: going on without tracefs" >&2
fi
exec "$@"
