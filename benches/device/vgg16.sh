#!/usr/bin/env bash
# VGG-16 with random weights, whole and at the ranks of the paper's speed test (2x to 5x fewer multiply-adds), in stock
# tract, fused, and in ONNX Runtime: writes the networks (2.6 GB) to FOLDER and prints one table.
#     bash benches/device/vgg16.sh FOLDER [--threads 2]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
basisopt=${BASISOPT:-$here/../../target/release/basisopt}
folder=${1:?usage: vgg16.sh FOLDER [options of peer.py]}
shift
mkdir -p "$folder"
[ -f "$folder/whole.onnx" ] || "$basisopt" opt "$here/vgg16.bir" --no-check -q -o "$folder/whole.onnx"
for level in 2x 3x 4x 5x; do
    [ -f "$folder/$level.onnx" ] || "$basisopt" opt "$folder/whole.onnx" \
        --factorize-conv="ranks=$here/vgg16_$level.ranks:guard=off" --no-check -q -o "$folder/$level.onnx"
done
cd "$folder"
# Multiply-adds, the fully connected layers' 0.124 G included: 15.471 G by 7.813, 5.290, 3.906 and 3.207 G.
python3 "$here/peer.py" whole.onnx 2x.onnx 3x.onnx 4x.onnx 5x.onnx --basisopt "$basisopt" \
    --arithmetic 1 1.980 2.925 3.961 4.824 "$@"
