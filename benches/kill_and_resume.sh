#!/usr/bin/env bash
# Kills a run of training at random moments, resumes it, and compares the file with that of a run left alone.
#
#   bash benches/kill_and_resume.sh [TIMES]
#
# On the network and the images in fixtures/.
set -euo pipefail
cd "$(dirname "$0")/.."
times=${1:-10}
cargo build --release --quiet
basisopt=$PWD/target/release/basisopt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp fixtures/models/glyph* "$work"
cd "$work"
train=("$basisopt" -q opt glyphnet.onnx -p '@fold,factorize-conv:ratio=0.4,fine-tune:epochs=60:batch=16,dead-code'
    --train glyphs_test.npz --no-check -o)

before=$EPOCHREALTIME
"${train[@]}" whole.onnx
seconds=$(echo "$EPOCHREALTIME - $before" | bc)
echo "a run left alone takes $seconds s"
same=0
for i in $(seq "$times"); do
    rm -f cut.onnx cut.onnx.checkpoint
    # Not a function: the process that is killed is to be the program.
    "${train[@]}" cut.onnx &
    pid=$!
    delay=$(echo "$seconds * $((RANDOM % 90 + 5)) / 100" | bc -l)
    sleep "$delay"
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    # Killed before its first checkpoint it is simply run again.
    if [ -e cut.onnx.checkpoint ]; then resume=--resume; else resume=; fi
    [ -e cut.onnx ] || "${train[@]}" cut.onnx $resume
    if cmp -s whole.onnx cut.onnx; then
        same=$((same + 1))
        printf '%2d killed after %5.2f s%s: the same file\n' "$i" "$delay" "${resume:+, resumed}"
    else
        printf '%2d killed after %5.2f s%s: ANOTHER FILE\n' "$i" "$delay" "${resume:+, resumed}"
    fi
done
echo "$same of $times the same"
[ "$same" -eq "$times" ]
