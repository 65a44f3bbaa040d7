#!/usr/bin/env bash
# Accuracy and time of data-aware compression, as docs/results.md has them.
#
#   bash benches/calibration.sh CIFAR_DIR [MODELS_DIR [IMAGES_DIR]] > table.md
#
# CIFAR_DIR holds data_batch_1.bin … of the CIFAR-10 *training* images; accuracy is that of 2,000 of them
# that calibration did not see, and training did. MODELS_DIR (../shared/models) holds the networks, IMAGES_DIR
# (../shared/data/imagenet-sample) photographs.
set -euo pipefail
cd "$(dirname "$0")/.."
cifar=${1:?the folder with data_batch_1.bin}
models=${2:-../shared/models}
images=${3:-../shared/data/imagenet-sample}
cargo build --release --quiet
basisopt=target/release/basisopt
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# compress NAME MODEL WHAT… : one line of the table.
compress() {
    local name=$1 model=$2
    shift 2
    local before=$EPOCHREALTIME
    if ! "$basisopt" -q compress "$model" --no-bench --format json "$@" > "$out/r.json" 2> "$out/err"; then
        printf '| %s | failed: %s |\n' "$name" "$(tail -1 "$out/err")"
        return
    fi
    local after=$EPOCHREALTIME
    python3 - "$out/r.json" "$name" "$(echo "$after - $before" | bc)" <<'PY'
import json, sys
r = json.load(open(sys.argv[1])); m = r["measured"]
percent = lambda x: "–" if x is None else f"{100 * x:.2f} %"
a, g = m["accuracy"] or {}, m["agreement"] or {}
error = m.get("output_error")
macs = r["after"]["macs"] / r["before"]["macs"] if r["before"]["macs"] else None
print(f'| {sys.argv[2]} | {percent(macs)} | {percent(a.get("before"))} → {percent(a.get("after"))} | '
      f'{percent(g.get("share"))} | {"–" if error is None else f"{error:.3f}"} | {float(sys.argv[3]):.1f} s |')
PY
}

echo '| network, target, method | multiply-adds | accuracy | agreement | output error | time |'
echo '|---|---|---|---|---|---|'
tayyab="--mean 0.4914,0.4822,0.4465 --std 0.2023,0.1994,0.2010"
imagenet="--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
densenet="--mean 0.4914,0.4824,0.4467 --std 0.2471,0.2435,0.2616"
data="--data $cifar/data_batch_1.bin --samples 1000"
# shellcheck disable=SC2086
for method in weights output sequential; do
    for keep in 0.3589 0.5; do
        compress "ResNet-56, macs=$keep, $method" "$models/cifar10_resnet56_tayyab_bn.onnx" $data $tayyab --budget macs=$keep --method $method
        compress "ResNet-20, macs=$keep, $method" "$models/cifar10_resnet20_bn.onnx" $data $imagenet --budget macs=$keep --method $method
        compress "DenseNet-40, macs=$keep, $method" "$models/cifar10_densenet40bc_k12_bn.onnx" $data $densenet --budget macs=$keep --method $method
    done
    compress "MobileNetV2, macs=0.8, $method" "$models/imagenet_mobilenetv2_1.0_224.onnx" --data "$images" --samples 250 --mean 0.5 --std 0.5 --resize 256 --crop 224 --label-offset 1 --budget macs=0.8 --method $method
    compress "YOLOX-nano, macs=0.7, $method" "$models/wild/yolox_nano_coco.onnx" --data "$images" --samples 250 --scale 1 --channels bgr --resize 416 --crop 416 --budget macs=0.7 --method $method
done
# shellcheck disable=SC2086
compress "ResNet-20, drop=1.0" "$models/cifar10_resnet20_bn.onnx" $data $imagenet --budget drop=1.0
# shellcheck disable=SC2086
compress "ResNet-56, drop=1.0" "$models/cifar10_resnet56_tayyab_bn.onnx" $data $tayyab --budget drop=1.0
for n in 16 64 256 1024 4096; do
    # shellcheck disable=SC2086
    compress "ResNet-56, macs=0.5, $n images" "$models/cifar10_resnet56_tayyab_bn.onnx" --data "$cifar/data_batch_1.bin" $tayyab --samples $n --budget macs=0.5
done
