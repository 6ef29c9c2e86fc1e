#!/bin/sh
# Containers by crun inside a guest: one that crun moves into a sub-cgroup, and one
# whose first process is systemd, which makes cgroups of its own and runs the
# probed program as a service in one of them. Each has an exec session, of which
# crun makes a cgroup where it cannot be in the container's own. Prints the
# spool and the node's key as testdata/chain/run.sh does.
set -eu

dir=/tmp/crun
mkdir -p $dir/run $dir/policies.d $dir/shared
cp /crun/policy.yaml $dir/policies.d/
for name in sub systemd; do
	root=$dir/$name/rootfs
	mkdir -p $root/bin $root/usr $root/lib $root/lib64 $root/etc/systemd/system $root/tmp $root/var
	cp /crun/$name.json $dir/$name/config.json
	cp /crun/target /bin/busybox $root/bin/
	ln -s busybox $root/bin/sh
	: >$root/etc/machine-id
done
units=$dir/systemd/rootfs/etc/systemd/system
cat >$units/probed.target <<-END
	[Unit]
	DefaultDependencies=no
	Requires=probed.service
	AllowIsolate=yes
END
cat >$units/probed.service <<-END
	[Unit]
	DefaultDependencies=no
	[Service]
	Type=oneshot
	RemainAfterExit=yes
	Slice=deep-deeper.slice
	ExecStart=/bin/target hello 7 ustat 5
	ExecStart=/bin/sh -c 'grep ^0: /proc/self/cgroup >/shared/service'
END

probity agent --state $dir/state --spool $dir/spool --policies $dir/policies.d --node guest \
	--hook-socket $dir/run/hook.sock --admin-socket $dir/run/admin.sock --nri-socket none \
	--containerd-address '' --podman-root $dir/none >$dir/agent.log 2>&1 &
agent=$!
# Whoever is stuck says where: SIGQUIT comes when this takes too long.
trap 'status -o json >&2; cat $dir/log $dir/agent.log >&2; ps >&2' EXIT
trap 'exit 1' QUIT
probity status --admin-socket $dir/run/admin.sock --wait-ready 120s

status() { probity status --admin-socket $dir/run/admin.sock "$@"; }

# begin NAME BUNDLE: a container that does nothing until it is written to.
begin() {
	mkfifo $dir/$1.in
	crun --cgroup-manager cgroupfs run --bundle $dir/$2 $1 <$dir/$1.in >>$dir/log 2>&1 &
	container=$!
	exec 3>$dir/$1.in
	until status -o json | tr -d ' \n' | grep -q '"liveRuns":1,"waiting":0'; do
		kill -0 $container
	done
}

# As with runc, the first start of an image is too slow in an emulated machine.
begin cold-sub sub
echo >&3
exec 3>&-
wait $container
status --wait-idle 120s
begin cold-systemd systemd
crun kill cold-systemd KILL
exec 3>&-
wait $container || true
status --wait-idle 120s

begin sub sub
pid=$(crun state sub | sed -n 's/.*"pid": \([0-9]*\),*/\1/p')
until grep -q target /proc/$pid/comm; do # before, it is crun, outside of the container's root
	kill -0 $container
done
echo "in sub: $(grep ^0: /proc/$pid/cgroup)"
crun exec sub /bin/sh -c 'grep ^0: /proc/self/cgroup >/shared/sub; /bin/target hello 3 ustat 2'
echo "session in sub: $(cat $dir/shared/sub)"
echo >&3
exec 3>&-
wait $container
status --wait-idle 120s

begin systemd systemd
echo >&3
until [ -s $dir/shared/service ]; do
	kill -0 $container
done
echo "service: $(cat $dir/shared/service)"
crun exec systemd /bin/sh -c 'grep ^0: /proc/self/cgroup >/shared/session; /bin/target hello 3 ustat 2'
echo "session: $(cat $dir/shared/session)"
find /sys/fs/cgroup/crun -type d | sed 's/^/cgroup: /'
crun kill systemd KILL
exec 3>&-
wait $container || true
status --wait-idle 120s

trap - EXIT
kill $agent
wait $agent
cat $dir/log

echo "verify:"
probity verify $dir/spool --key $dir/state/node.pub
cd $dir
find spool state/node.pub -type f | sort | while read -r file; do
	echo "file $file $(base64 -w 0 "$file")"
done
