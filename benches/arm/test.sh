#!/usr/bin/env bash
# The tests of the whole workspace, on aarch64 under QEMU.
#
#   bash benches/arm/test.sh [--all]
#
# Emulation is some twenty times slower, so skips.txt names tests that are left out, with reasons; --all runs these too.
set -euo pipefail
. "$(dirname "$0")/env.sh"
command -v qemu-aarch64-static >/dev/null || fail "qemu-aarch64-static is missing: run benches/arm/setup.sh"

skips=()
if [ "${1:-}" != --all ]; then
    while IFS='|' read -r name reason; do
        name=${name%% }
        printf 'skipped: %s:%s\n' "$name" "$reason"
        skips+=(--skip "$name")
    done < <(grep -v '^#' benches/arm/skips.txt)
fi

# Real networks, where there are any beside the repository, would take hours; that of fixtures/ is run.
export BASISOPT_MODELS=${BASISOPT_MODELS:-$PWD/fixtures/models}

# Names are matched whole: a skipped test does not take others with it.
log=target/arm/test.log
mkdir -p target/arm
began=$SECONDS
cargo_arm test "${crates[@]}" --no-run
compiled=$SECONDS
code=0
cargo_arm test "${crates[@]}" --no-fail-fast -- --exact ${skips[@]+"${skips[@]}"} 2>&1 | tee "$log" || code=$?
ended=$SECONDS

total() { awk -v what="$1" '/^test result:/ { for (i = 2; i <= NF; i++) if ($i == what || $i == what ";") n += $(i - 1) } END { print n + 0 }' "$log"; }
passed=$(total passed)
failed=$(total failed)
left_out=$(awk '/^test result:/ { for (i = 2; i < NF; i++) if ($i == "filtered") n += $(i - 1) } END { print n + 0 }' "$log")
printf 'aarch64: compiling took %d s, testing %d s\n' $((compiled - began)) $((ended - compiled))
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$left_out"
[ "$code" -eq 0 ] || exit "$code"
# A test that was renamed would run again unnoticed.
[ "$left_out" -eq $((${#skips[@]} / 2)) ] ||
    fail "skips.txt names $((${#skips[@]} / 2)) tests, of which $left_out are there: put it right"
