#!/usr/bin/env bash
# Whether the program does the same here and on aarch64, under QEMU, with the network in fixtures/.
#
#   bash benches/arm/agree.sh
#
# Outputs of the network, whole and compressed, must agree to 1e-5 of the largest. Compressed files need not be the same
# bytes, see docs/numerics.md: whether they are is printed.
set -euo pipefail
. "$(dirname "$0")/env.sh"

# As `cargo test` builds them, so that they are there already after it.
cargo build --workspace --bin basisopt --example outputs
bash benches/arm/build.sh
here=${CARGO_TARGET_DIR:-target}/debug
there=$built
qemu=$CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER
network=fixtures/models/glyphnet.onnx
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# outputs WHAT NETWORK: what stock tract gives here against what stock tract and fused factors give there.
outputs() {
    "$here/examples/outputs" write "$2" "$scratch/outputs"
    printf '%s: ' "$1"
    "$qemu" "$there/examples/outputs" check "$2" "$scratch/outputs"
    printf '%s, fused there: ' "$1"
    "$qemu" "$there/examples/outputs" check "$2" "$scratch/outputs" fused
}
outputs "the network in fixtures/" "$network"

# pipeline NAME ARGUMENTS OF opt…: compresses on both.
pipeline() {
    local opt=(opt "$network" -q --no-check "${@:2}")
    "$here/basisopt" "${opt[@]}" -o "$scratch/here.onnx"
    "$qemu" "$there/basisopt" "${opt[@]}" -o "$scratch/there.onnx"
    outputs "$1" "$scratch/here.onnx"
    printf '%s: ' "$1"
    if cmp -s "$scratch/here.onnx" "$scratch/there.onnx"; then
        echo "the files are the same"
    else
        printf '%d of %d bytes differ; ' "$(cmp -l "$scratch/here.onnx" "$scratch/there.onnx" | wc -l)" \
            "$(stat -c %s "$scratch/here.onnx")"
        # The two files as networks, run here.
        "$here/basisopt" -q compare "$scratch/here.onnx" "$scratch/there.onnx" --random --tolerance 1e-5 --format json |
            sed -n 's/.*"max_rel": *\([^,]*\).*/outputs of the two differ by \1/p'
    fi
}
pipeline "compressed without data" -p @fold,factorize-conv:energy=0.9,dead-code
pipeline "compressed with data" -p @fold,factorize-conv:energy=0.9,dead-code \
    --calibrate fixtures/models/glyphs_calibration.npz --samples 32
