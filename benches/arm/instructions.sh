#!/usr/bin/env bash
# Instructions that one inference takes on aarch64, counted under QEMU, as a Markdown table.
#
#   bash benches/arm/build.sh
#   bash benches/arm/instructions.sh NETWORK… [-- ARGUMENTS OF bench]
#
# The count is the same on every machine, and to some 0.1 % every time; it says nothing about caches and memory. What
# loading a network takes drops out of the difference between 21 runs and one; that is a little different every time, as
# tract's hash tables are seeded at random.
set -euo pipefail
# Networks are named from where the caller stands; env.sh goes to the root.
networks=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do networks+=("$(realpath "$1")") && shift; done
[ "${#networks[@]}" -gt 0 ] || { echo "usage: instructions.sh NETWORK… [-- ARGUMENTS OF bench]" >&2; exit 2; }
shift $(($# > 0))
# Which engine is the faster one depends on the clock, and so would the count.
case " $* " in *" --engine "*) ;; *) set -- "$@" --engine stock ;; esac
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

first=
printf '| network%s | million instructions per run | ratio |\n|---|--:|--:|\n' "${*:+, bench $*}"
for network in "${networks[@]}"; do
    one=$(count "$network" 1 "$@")
    more=$(count "$network" 21 "$@")
    first=${first:-$((more - one))}
    awk -v name="$(basename "$network")" -v n=$((more - one)) -v first="$first" \
        'BEGIN { printf "| %s | %.2f | %.3f |\n", name, n / 20e6, n / first }'
done
