#!/usr/bin/env bash
# Instructions that one inference takes on aarch64, in stock tract and with fused factors, counted under QEMU, as a
# Markdown table.
#
#   bash benches/arm/build.sh
#   bash benches/arm/instructions.sh [--runs N] NETWORK… [-- ARGUMENTS OF bench]
#
# The count is the same on every machine, and to some 0.1 % every time; it says nothing about caches and memory. What
# loading a network takes drops out of the difference between N + 1 runs (21, unless told otherwise) and one; that is a
# little different every time, as tract's hash tables are seeded at random.
set -euo pipefail
runs=20
if [ "${1:-}" = --runs ]; then runs=${2:?}; shift 2; fi
# Networks are named from where the caller stands; env.sh goes to the root.
networks=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do networks+=("$(realpath "$1")") && shift; done
[ "${#networks[@]}" -gt 0 ] || { echo "usage: instructions.sh [--runs N] NETWORK… [-- ARGUMENTS OF bench]" >&2; exit 2; }
shift $(($# > 0))
. "$(dirname "$0")/env.sh"
[ -x "$built/basisopt" ] || fail "$built/basisopt is missing: run benches/arm/build.sh"
command -v qemu-aarch64 >/dev/null || fail "qemu-aarch64 is missing: run benches/arm/setup.sh"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
major=$(qemu-aarch64 --version | sed -n '1s/.* version \([0-9]*\).*/\1/p')
gcc -O2 -shared -fPIC -DAPI=$((major < 9 ? 1 : 2)) -o "$scratch/instructions.so" benches/arm/instructions.c

# count NETWORK RUNS ARGUMENTS…: instructions of the whole program.
count() {
    qemu-aarch64 -plugin "$scratch/instructions.so,out=$scratch/count" "$built/basisopt" -q bench "$1" --runs "$2" \
        --warmup 0 --seconds 0 --no-memory "${@:3}" >"$scratch/log" 2>&1 && cat "$scratch/count" ||
        { cat "$scratch/log" >&2; fail "no count of $1 (a qemu-aarch64 that is linked statically cannot load plugins)"; }
}

# per_run NETWORK ARGUMENTS…: instructions of one run.
per_run() {
    local one more
    one=$(count "$1" 1 "${@:2}")
    more=$(count "$1" $((runs + 1)) "${@:2}")
    echo $(((more - one) / runs))
}

first=
printf '| network%s | stock | of the first | fused | of the first |\n|---|--:|--:|--:|--:|\n' "${*:+, bench $*}"
for network in "${networks[@]}"; do
    stock=$(per_run "$network" --engine stock "$@")
    fused=$(per_run "$network" --engine fused "$@")
    first=${first:-$stock}
    awk -v name="$(basename "$network")" -v stock="$stock" -v fused="$fused" -v first="$first" \
        'BEGIN { printf "| %s | %.2f M | %.3f | %.2f M | %.3f |\n", name, stock / 1e6, stock / first, fused / 1e6, fused / first }'
done
