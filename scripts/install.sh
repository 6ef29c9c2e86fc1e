#!/usr/bin/env bash
# Installs what is missing for the named purposes (demo, test, full, check,
# bench, kernels, rpm) through the distribution's package manager. It asks what
# is there first and does nothing, not even look at package lists, when nothing is
# missing.
# Go and git are the only things it does not install.
#
#	scripts/install.sh PURPOSE...
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

# A row: what it is for, how to see that it is there (a program, or a file with
# an absolute path), and the package of Debian and Ubuntu, and of Fedora and RHEL.
rows='
demo podman podman podman
demo conmon conmon conmon
demo runc runc runc
demo gcc gcc gcc
demo /usr/include/stdio.h libc6-dev glibc-devel
demo libc.a libc6-dev glibc-static
demo unshare util-linux util-linux
demo mount mount util-linux
test rpmbuild rpm rpm-build
test rpm rpm rpm
test cpio cpio cpio
test systemd-analyze systemd systemd
test busybox busybox-static busybox
test crun crun crun
test qemu-x86_64-static qemu-user-static qemu-user-static
test g++ g++ gcc-c++
test objcopy binutils binutils
test xz xz-utils xz
test musl-gcc musl-tools musl-gcc
test ld.gold binutils binutils-gold
test ld.lld lld lld
test /usr/bin/python3 python3 python3
test /usr/lib/python3/dist-packages/cryptography python3-cryptography python3-cryptography
test clang-14 clang-14 clang
test strace strace strace
test mke2fs e2fsprogs e2fsprogs
test debugfs e2fsprogs e2fsprogs
test swtpm swtpm swtpm
test softhsm2-util softhsm2 softhsm
test rsyslogd rsyslog rsyslog
test omrelp.so rsyslog-relp rsyslog-relp
full rustc rustc rust
full node nodejs nodejs
full java default-jre-headless java-headless
bench bpftrace bpftrace bpftrace
check clang-14 clang-14 clang
check llvm-strip-14 llvm-14 llvm
check /usr/include/bpf/bpf_helpers.h libbpf-dev libbpf-devel
check shellcheck shellcheck ShellCheck
check systemd-analyze systemd systemd
rpm rpmbuild rpm rpm-build
kernels qemu-system-x86_64 qemu-system-x86 qemu-system-x86-core
kernels qemu-system-aarch64 qemu-system-arm qemu-system-aarch64-core
kernels cpio cpio cpio
kernels xz xz-utils xz
kernels gpgv gpgv gnupg2
kernels /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring debian-keyring
'

there() {
	case $1 in
	rustc) command -v rustc >/dev/null || [ -x "$HOME/.cargo/bin/rustc" ] ;; # as rustup leaves it
	/*) [ -e "$1" ] ;;
	*.so) [ -n "$(compgen -G "/usr/lib*/rsyslog/$1" || compgen -G "/usr/lib/*/rsyslog/$1")" ] ;; # rsyslog's modules
	*.a) [ -e "$(gcc -print-file-name="$1" 2>/dev/null)" ] ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

purposes=" $* "
case $purposes in *" test "*) purposes+="demo kernels " ;; esac
for p in "$@"; do
	case $p in demo | test | full | check | bench | kernels | rpm) ;; *) die "unknown purpose $p" 2 ;; esac
done

column=3
if ! command -v apt-get >/dev/null; then column=4; fi
missing=() packages=()
while read -r purpose what deb rpm; do
	[ -n "$purpose" ] || continue
	case $purposes in *" $purpose "*) ;; *) continue ;; esac
	if there "$what"; then continue; fi
	missing+=("$what")
	if [ $column = 3 ]; then packages+=("$deb"); else packages+=("$rpm"); fi
done <<<"$rows"
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)

[ "$(id -u)" = 0 ] || die "missing: ${missing[*]}; run it as root to install ${packages[*]}"
echo "install.sh: missing ${missing[*]}: installing ${packages[*]}"
if command -v apt-get >/dev/null; then
	export DEBIAN_FRONTEND=noninteractive
	# Package lists may be absent or stale: look before asking for news.
	apt-get install -y -q --no-install-recommends "${packages[@]}" >/dev/null 2>&1 || {
		apt-get update -q
		apt-get install -y -q --no-install-recommends "${packages[@]}"
	}
elif command -v dnf >/dev/null; then
	dnf install -y -q "${packages[@]}"
else
	die "neither apt-get nor dnf is here; install what provides: ${missing[*]}"
fi

hash -r
for what in "${missing[@]}"; do
	there "$what" || die "$what is still missing after the installation of ${packages[*]}"
done
