#!/bin/sh
# The whole chain inside a guest: runc asks the hook, the hook asks the agent,
# the agent arms, the container runs, the evidence is verified. It then prints
# the spool and the node's key as "file PATH BASE64" lines, for the host to
# verify again.
set -eu

dir=/tmp/chain
mkdir -p $dir/run $dir/policies.d $dir/bundle/rootfs/bin $dir/bundle/rootfs/proc
cp /chain/policy.yaml $dir/policies.d/
cp /chain/config.json $dir/bundle/
gcc -O1 -static -o $dir/bundle/rootfs/bin/target /chain/target.c

probity agent --state $dir/state --spool $dir/spool --policies $dir/policies.d --node guest \
	--hook-socket $dir/run/hook.sock --admin-socket $dir/run/admin.sock --nri-socket none \
	--containerd-address '' --podman-root $dir/none >$dir/agent.log 2>&1 &
agent=$!
trap 'cat $dir/agent.log >&2' EXIT
probity status --admin-socket $dir/run/admin.sock --wait-ready 60s

# run NAME: a container that does nothing until it is written to, which is when
# its sites are armed.
run() {
	mkfifo $dir/$1
	runc run --bundle $dir/bundle $1 <$dir/$1 &
	container=$!
	exec 3>$dir/$1
	until probity status --admin-socket $dir/run/admin.sock -o json | tr -d ' \n' | grep -q '"liveRuns":1,"waiting":0'; do
		kill -0 $container
	done
	echo >&3
	exec 3>&-
	wait $container
	probity status --admin-socket $dir/run/admin.sock --wait-idle 60s
}

# The first start of an image loads and attaches, for which an emulated machine
# is too slow within the barrier's deadline: what is judged is the second.
run cold
run chain

kill $agent
wait $agent
trap - EXIT

echo "verify:"
probity verify $dir/spool --key $dir/state/node.pub
cd $dir
find spool state/node.pub -type f | sort | while read -r file; do
	echo "file $file $(base64 -w 0 "$file")"
done
