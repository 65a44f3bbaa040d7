#!/usr/bin/env bash
# Builds the program for aarch64 boards, with the C library inside.
#
#   bash benches/arm/build.sh
set -euo pipefail
. "$(dirname "$0")/env.sh"

# The same features of dependencies as the tests have, for the whole workspace and with an example, so that nothing
# is compiled twice.
cargo_arm build "${crates[@]}" --bin basisopt --example outputs
program=$built/basisopt
# A program that wants a loader would not run on a board with an older C library.
if readelf -l "$program" | grep -q INTERP; then
    fail "$program is not static"
fi
version=$(qemu-aarch64-static "$program" --version)
printf '%s: %s, %s MiB, static\n' "$program" "$version" $(($(stat -c %s "$program") >> 20))
printf 'to a board: scp %s USER@BOARD:  and there: ./basisopt bench NETWORK.onnx\n' "$PWD/$program"
