# Sourced by the scripts beside it: the target, its compilers, and how its programs are run here.
# Leaves the shell in the root of the repository.
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

arm=aarch64-unknown-linux-gnu
built=target/arm/$arm/release
# Flags of the caller are for the host's processor. Those below hold for the target alone.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS RUSTDOCFLAGS CARGO_ENCODED_RUSTDOCFLAGS
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
# With the C library inside, the program runs on any Linux: a board's is often older than the builder's.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTDOCFLAGS=$CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS
# cargo runs programs of the target through this, and so do the tests that run the program.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64-static
# QEMU's own default processor has SVE2, which boards with room for these networks mostly lack: tract would take kernels that
# they never run. This one is a Raspberry Pi 4's, with NEON and nothing more.
export QEMU_CPU=${QEMU_CPU:-cortex-a72}

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# has_std RUSTC: whether this compiler has the target's standard library.
has_std() {
    local folder
    folder=$("$1" --print target-libdir --target "$arm" 2>/dev/null) && compgen -G "$folder/libstd-*.rlib" >/dev/null
}

# The compiler that can build for the target: that of the path, or Debian's, which setup.sh installs where
# rustup cannot add the target. Fails where there is none.
arm_rustc() {
    if [ "${BASISOPT_ARM_RUST:-}" != debian ] && has_std rustc; then
        echo rustc
    elif has_std /usr/bin/rustc; then
        echo /usr/bin/rustc
    else
        return 1
    fi
}

# What is built, the same for all scripts: other crates would mean other features of what they share, and that tract is
# compiled again. The Python package would need an interpreter for the target.
crates=(--workspace --exclude basisopt-python)

# cargo_arm COMMAND ARGUMENTS…: cargo for the target, in one profile and one folder for all scripts, so that tract
# is compiled once. The profile is `release`: emulation costs more than compiling does.
cargo_arm() {
    local rustc
    rustc=$(arm_rustc) || fail "no Rust compiler here has the standard library of $arm: run benches/arm/setup.sh"
    command -v aarch64-linux-gnu-gcc >/dev/null || fail "aarch64-linux-gnu-gcc is missing: run benches/arm/setup.sh"
    # rustdoc compiles the examples in the documentation, and must be the compiler's sibling.
    RUSTC=$rustc RUSTDOC=${rustc%rustc}rustdoc cargo "$1" --release --target "$arm" --target-dir target/arm "${@:2}"
}
