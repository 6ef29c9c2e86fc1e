#!/usr/bin/env bash
# Fetches what tests/kernels boots (tests/kernels/machines.txt) into the user's
# cache directory. When it is all there, it prints nothing and needs no network.
#
#	scripts/kernels.sh [--fresh] [NAME...]
#
# It is Debian's, from where this machine's own apt sources point, or from
# $PROBITY_DEBIAN (the URL of a Debian archive) where those are not Debian's.
# apt-get itself fetches it, with package lists of its own and none of this
# machine's, and takes only what Debian's archive key has signed: release file,
# package index, package. --fresh asks for newer versions.
#
# DIR/NAME is a link to NAME-VERSION-SHA256, which holds SHA256SUMS and, of a
# kernel, vmlinuz, the few modules that the tests need and "release"; of a
# userland, root.cpio.
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

cache=${PROBITY_KERNELS:-${XDG_CACHE_HOME:-$HOME/.cache}/probity/kernels}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# overlay: containers. fuse: the mount that never answers.
modules='overlay fuse'

fresh=
if [ "${1:-}" = --fresh ]; then
	fresh=yes
	shift
fi
mapfile -t rows < <(grep -v '^#' tests/kernels/machines.txt)
for name in "$@"; do
	printf '%s\n' "${rows[@]}" | grep -q "^[a-z]* $name " || die "unknown machine $name" 2
done

# whole NAME ROW: it is in the cache, made for this row of machines.txt, and
# nobody has changed it since.
whole() {
	[ "$(cat "$cache/$1/row" 2>/dev/null)" = "$2" ] && (cd "$cache/$1" && sha256sum --quiet --check SHA256SUMS) >/dev/null 2>&1
}

# archive: the URL of the Debian archive that this machine uses.
archive() {
	if [ -n "${PROBITY_DEBIAN:-}" ]; then
		echo "$PROBITY_DEBIAN"
		return
	fi
	command -v apt-get >/dev/null || die "there is no apt-get here to say where Debian's archive is; fill $cache on another machine"
	# Security and update suites may live elsewhere: the archive is where the
	# release itself comes from. The origin is not known where no list was ever
	# fetched; a foreign archive then fails for want of the suites.
	# shellcheck disable=SC2016 # apt-get expands it
	apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
		awk '($1 == "Debian" || $1 ~ /^[$]/) && $2 !~ /-/ && $3 == "main" { print $4; exit }'
}

# apt_root DIR SUITE ARCH: an apt of its own below DIR, for this one release.
apt_root() {
	local dir=$1 url
	url=$(archive)
	[ -n "$url" ] || die "this machine's apt sources are not Debian's; set PROBITY_DEBIAN to the URL of a Debian archive"
	mkdir -p "$dir"/{lists,archives}/partial
	: >"$dir/status"
	cat >"$dir/debian.sources" <<-EOF
		Types: deb
		URIs: $url
		Suites: $2
		Components: main
		Architectures: $3
		Targets: Packages
		Signed-By: $keyring
	EOF
	{
		# How this machine reaches archives (proxies and the like) holds here, too;
		# hooks, pins and everything else of its configuration does not.
		apt-config dump Acquire
		cat <<-EOF
			Acquire::AllowInsecureRepositories "false";
			Acquire::Languages "none";
			Dir::Etc::main "/dev/null";
			Dir::Etc::parts "/dev/null";
			Dir::Etc::sourcelist "$dir/debian.sources";
			Dir::Etc::sourceparts "/dev/null";
			Dir::Etc::preferences "/dev/null";
			Dir::Etc::preferencesparts "/dev/null";
			Dir::State "$dir";
			Dir::State::status "$dir/status";
			Dir::Cache "$dir";
			APT::Architecture "$3";
			APT::Architectures { "$3"; };
			APT::Install-Recommends "false";
			APT::Sandbox::User "$(id -un)";
		EOF
	} >"$dir/apt.conf"
}

# kernel DIR SUITE ARCH [MODULE...]: DIR/out is one kernel, DIR/version says which.
kernel() (
	cd "$1"
	# shellcheck disable=SC2030,SC2031 # it is a subshell for this
	export APT_CONFIG=$1/apt.conf
	image=$(apt-cache depends "linux-image-cloud-$3" | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p')
	[ -n "$image" ] || die "Debian $2 has no linux-image-cloud-$3"
	# Newer releases have image and modules in packages of their own.
	packages=$(apt-cache depends "$image" | sed -nE 's/.*Depends: (linux-(binary|modules)-[0-9].*)/\1/p')
	# shellcheck disable=SC2086 # a list
	apt-get download -qq "$image" $packages
	for deb in *.deb; do dpkg-deb --extract "$deb" root; done
	printf '%s\n' "${image#linux-image-}" >out/release
	apt-cache show "$image" | sed -n 's/^Version: //p' | head -n 1 >version
	# Below /boot, or below /usr/lib/modules in newer releases.
	file=$(find root -type f -name 'vmlinuz*')
	[ -f "$file" ] || die "the packages of $2 hold ${file:-no vmlinuz}"
	install -m 644 "$file" out/vmlinuz
	for module in $modules "${@:4}"; do
		file=$(find root -name "$module.ko" -o -name "$module.ko.xz")
		case $file in
		*.xz) xz -dc "$file" >"out/$module.ko" ;;
		?*) cp "$file" "out/$module.ko" ;;
		esac # else it is built in
	done
)

# userland DIR PACKAGE...: DIR/out/root.cpio is these packages and all that
# they depend on, unpacked and not configured.
userland() (
	cd "$1"
	# shellcheck disable=SC2030,SC2031 # it is a subshell for this
	export APT_CONFIG=$1/apt.conf
	apt-get install -qq --yes --download-only "${@:2}" >/dev/null
	mkdir -p root/usr/{bin,sbin,lib,lib64}
	for merged in bin sbin lib lib64; do ln -s "usr/$merged" "root/$merged"; done
	for deb in archives/*.deb; do dpkg-deb --extract "$deb" root; done
	# What no guest uses need not be unpacked at each of its boots.
	rm -rf root/usr/share/{doc,man,info,locale,lintian,bug} root/usr/lib/cni root/var
	for unused in lto1 '*-lto-dump-*' '*san.a' '*san.so.*' '*dwp' '*ld.gold' '*gcov*' '*gp-*' 'libgprofng*' 'libgp-*' 'cpp-*' '*-cpp-*' '*-readelf' 'libmvec.a' 'libgomp.*' 'libquadmath.*' 'libitm.*' podman-testing rootlessport quadlet containerd-shim containerd-shim-runc-v1; do
		find root -name "$unused" -delete
	done
	apt-cache show "$2" | sed -n 's/^Version: //p' | head -n 1 >version
	cd root
	find . -mindepth 1 | LC_ALL=C sort | cpio --quiet --create --format=newc --owner=+0:+0 >../out/root.cpio
)

# fetch KIND NAME SUITE ARCH [MODULE OR PACKAGE...]: into a new directory, which becomes
# NAME when it is whole.
fetch() {
	local kind=$1 name=$2 work kept old sum version
	work=$(mktemp -d "$cache/fetch-XXXXXX")
	# shellcheck disable=SC2064 # work is this call's
	trap "rm -rf '$work'" EXIT
	mkdir -p "$work/root" "$work/out"
	echo "kernels.sh: fetching $name (Debian $3, $4)"
	apt_root "$work" "$3" "$4"
	APT_CONFIG=$work/apt.conf apt-get update -qq
	case $kind in
	kernel) kernel "$work" "$3" "${@:4}" ;;
	userland) userland "$work" "${@:5}" ;;
	*) die "machines.txt: unknown kind $kind" 2 ;;
	esac
	(cd "$work/out" && echo "$*" >row && sha256sum -- * >SHA256SUMS)
	version=$(<"$work/version")
	sum=$(sha256sum "$work/out/SHA256SUMS")
	kept=$name-${version//[^A-Za-z0-9.+-]/_}-${sum:0:16}
	old=$(readlink "$cache/$name" || true)
	rm -rf "${cache:?}/$kept"
	mv "$work/out" "$cache/$kept"
	ln -sfnT "$kept" "$cache/$name"
	if [ -n "$old" ] && [ "$old" != "$kept" ]; then rm -rf "${cache:?}/$old"; fi
	rm -rf "$work"
	trap - EXIT
}

mkdir -p "$cache"
exec 9>"$cache/lock" # two runs at once fetch once
flock 9
for row in "${rows[@]}"; do
	read -ra field <<<"$row"
	name=${field[1]}
	case " $* " in "  " | *" $name "*) ;; *) continue ;; esac
	if [ -z "$fresh" ] && whole "$name" "$row"; then continue; fi
	fetch "${field[@]}"
	whole "$name" "$row" || die "$name: $cache does not hold what was just put there"
done
