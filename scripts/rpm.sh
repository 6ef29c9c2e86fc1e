#!/usr/bin/env bash
# Builds one RPM with both programs, the unit, the hook files and the default
# policy into DIR, and prints its path. Beside it, where there is a C compiler, is
# one with the helper for PKCS#11 tokens.
#
#	scripts/rpm.sh [DIR]
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

out=${1:-$PWD/bin/rpm}
if [ "$(id -u)" = 0 ]; then scripts/install.sh rpm; fi
command -v rpmbuild >/dev/null || die "rpmbuild is not installed; sudo make rpm installs it"

# A version as RPM wants it: 1.2.3, 1.2.3^4.gabcdef after it, 0^abcdef before
# any tag; never a '-'.
package=$(version | sed -E 's/^v([0-9])/\1/; s/-dirty$/.dirty/; s/-([0-9]+)-(g[0-9a-f]+)/^\1.\2/; s/-/~/g')
case $package in [0-9]*.*) ;; *) package="0^$package" ;; esac
case $(go env GOARCH) in amd64) arch=x86_64 ;; arm64) arch=aarch64 ;; *) arch=$(uname -m) ;; esac

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
scripts/build.sh "$build/programs"
pkcs11=0
if [ -x "$build/programs/probity-pkcs11" ]; then pkcs11=1; fi
rpmbuild -bb --quiet --target "$arch" \
	--define "_topdir $build" --define "_rpmdir $build/out" \
	--define "repository $PWD" --define "programs $build/programs" \
	--define "with_pkcs11 $pkcs11" --define "package_version $package" --define "package_arch $arch" \
	packaging/rpm/probity.spec >&2 # only the path goes to stdout
mkdir -p "$out"
mv "$build"/out/*/probity-*.rpm "$out/"
if [ -z "${1:-}" ]; then give_back bin; fi
find "$out" -name "probity-$package-1.$arch.rpm"
