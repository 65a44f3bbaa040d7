#!/usr/bin/env bash
# The figures of docs/results.md, printed anew.
#
#     cargo build --release
#     bash benches/figures.sh [FOLDER WITH NETWORKS]
#
# BASISOPT names the program.
set -euo pipefail
cd "$(dirname "$0")/.."
program=${BASISOPT:-target/release/basisopt}
folder=${1:-../shared/models}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

echo "== the paper's ranks on its own ResNet-56 (energy 0.63, no guard)"
network=$folder/cifar10_resnet56_tayyab_bn.onnx
if [ -f "$network" ]; then
    "$program" opt "$network" --factorize-conv=energy=0.63:guard=off --no-check --remarks -o "$scratch/paper.onnx" 2>"$scratch/log"
    sed -n 's/.*: rank \([0-9]*\) of .*/\1/p' "$scratch/log" | paste -sd ' '
    grep 'of convolutions' "$scratch/log"
else
    echo "skipped: $network is not there"
fi

echo "== at full rank: largest deviation of an output, relative to its largest magnitude"
find "$folder" -name '*.onnx' 2>/dev/null | sort | while read -r network; do
    dims=()
    case $network in
    *ppocrv3_det*) dims=(--dim p2o.DynamicDimension.1=64 --dim p2o.DynamicDimension.2=96) ;;
    *silero_vad*) dims=(--dim input:1=512 --dim state:1=1) ;;
    esac
    printf '%-34s ' "$(basename "$network")"
    "$program" opt "$network" --freeze-weights --factorize-conv=ratio=1:guard=off "${dims[@]}" 2>&1 |
        sed -n 's/^factorize-conv[^ ]* *//p' | cut -c1-150
done

echo "== same bytes from two runs, and from one and two threads"
network=fixtures/models/glyphnet.onnx
for threads in 1 1 2; do
    "$program" opt "$network" -p @fold,factorize-conv:energy=0.9,dead-code --no-check --threads "$threads" -q -o "$scratch/t$threads.onnx"
    cksum <"$scratch/t$threads.onnx"
done

echo "== the network in fixtures/ at four energies"
for energy in 0.99 0.95 0.9 0.8; do
    echo "energy $energy"
    "$program" compress "$network" --energy "$energy" -q | sed -n 1,6p
done
