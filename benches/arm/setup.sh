#!/usr/bin/env bash
# Installs what it takes to build for aarch64 and to run the result under QEMU, on an x86-64 Debian or Ubuntu machine.
#
#   bash benches/arm/setup.sh
#
# Says what it does; what is there already is left alone. With BASISOPT_ARM_RUST=debian it passes over rustup.
set -euo pipefail
. "$(dirname "$0")/env.sh"

say() { printf 'setup: %s\n' "$*"; }

[ "$(uname -sm)" = "Linux x86_64" ] || fail "this is for x86-64 Linux, not $(uname -sm); on an aarch64 machine plain cargo does"

if [ "$(id -u)" -eq 0 ]; then sudo=(); else sudo=(sudo); fi
has_apt() { command -v apt-get >/dev/null && { [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null; }; }
install() {
    say "apt-get install $*"
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

# The static QEMU needs nothing of this system; the other one can load plugins, which instructions.sh does.
packages=()
command -v aarch64-linux-gnu-gcc >/dev/null || packages+=(gcc-aarch64-linux-gnu)
[ -e /usr/aarch64-linux-gnu/lib/libc.a ] || packages+=(libc6-dev-arm64-cross)
command -v qemu-aarch64-static >/dev/null || packages+=(qemu-user-static)
command -v qemu-aarch64 >/dev/null || packages+=(qemu-user)
if [ "${#packages[@]}" -gt 0 ]; then
    has_apt || fail "missing: ${packages[*]}; without apt-get and root or sudo, install them (Debian's names) by other means"
    install "${packages[@]}"
else
    say "cross compiler and QEMU are here"
fi

rustup_has_it() {
    [ "${BASISOPT_ARM_RUST:-}" != debian ] && command -v rustup >/dev/null || return 1
    say "rustup target add $arm"
    rustup target add "$arm" && has_std rustc
}

if arm_rustc >/dev/null; then
    say "Rust for $arm is here"
elif rustup_has_it; then
    say "rustup added $arm"
elif ! has_apt; then
    fail "rustup cannot add $arm, and there is no apt-get with root or sudo to take Debian's toolchain with"
else
    # Debian's compiler for web browsers is recent, and its standard library is there for every architecture. Ubuntu
    # has no such package; there rustup is the way.
    rust=(rustc-web libstd-rust-web-dev:arm64)
    command -v cargo >/dev/null || rust+=(cargo-web)
    "${sudo[@]}" apt-get update -qq
    apt-cache show rustc-web >/dev/null 2>&1 || fail "rustup cannot add $arm, and apt has no rustc-web to take instead"
    say "dpkg --add-architecture arm64"
    "${sudo[@]}" dpkg --add-architecture arm64
    install "${rust[@]}"
fi

rustc=$(arm_rustc) || fail "Rust for $arm was installed, but no compiler finds it"
say "ready: $("$rustc" --version), $(qemu-aarch64-static --version | head -1)"
