#!/usr/bin/env python3
"""Pairs basisopt with Python's onnx and NumPy on one large file, interleaved in one run.

    python fixtures/make/vgg_sized.py vgg16.onnx
    cargo build --release
    python benches/onnx_peer.py vgg16.onnx

Needs onnx and numpy; leave OPENBLAS_CORETYPE unset, so that NumPy takes its best kernel. Prints medians, ratios and peak memory of whole processes; compare within one
run only. BASISOPT names the program, RUNS the number of rounds.
"""

import filecmp
import os
import statistics
import subprocess
import sys
import tempfile
import time

PROGRAM = os.environ.get("BASISOPT", "target/release/basisopt")
RUNS = int(os.environ.get("RUNS", "5"))

LOAD_SAVE = "import onnx, sys; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])"

# The singular value decompositions of all convolutions in f64, and nothing else: the time is taken
# inside, without imports and loading.
SVDS = """
import onnx, numpy, sys, time
m = onnx.load(sys.argv[1])
w = {t.name: t for t in m.graph.initializer}
h = [onnx.numpy_helper.to_array(w[n.input[1]]) for n in m.graph.node if n.op_type == "Conv"]
h = [a.reshape(a.shape[0], -1).astype(numpy.float64) for a in h]
t = time.perf_counter()
for a in h:
    numpy.linalg.svd(a, full_matrices=False)
print(time.perf_counter() - t)
"""


def run(command):
    """Wall seconds, peak resident bytes and stdout of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(command)} failed")
    return time.perf_counter() - started, usage.ru_maxrss * 1024, out.decode()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    model = sys.argv[1]
    size = os.path.getsize(model)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(model))) as folder:
        ours, theirs = os.path.join(folder, "ours.onnx"), os.path.join(folder, "theirs.onnx")
        copy = [PROGRAM, "opt", model, "-o", ours]
        load_save = [sys.executable, "-c", LOAD_SAVE, model, theirs]
        factor = copy + ["--factorize-conv=energy=0.9", "--no-check", "--timings"]
        svds = [sys.executable, "-c", SVDS, model]
        rows = {"opt": [], "onnx": [], "factor": [], "svds": []}
        for i in range(RUNS + 1):
            found = {"factor": run(factor), "opt": run(copy), "onnx": run(load_save), "svds": run(svds)}
            if i == 0:
                # In pieces: a child's peak memory counts from what this process had when it forked.
                print("opt writes the same bytes:", filecmp.cmp(model, ours, shallow=False))
                continue  # the first round warms the page cache
            for key, row in rows.items():
                row.append(found[key])
    median = lambda key: statistics.median(r[0] for r in rows[key])
    numpy_svds = statistics.median(float(r[2]) for r in rows["svds"])
    peak = lambda key: max(r[1] for r in rows[key])
    print(f"file: {size / 1e6:.0f} MB, {RUNS} rounds, medians")
    for name, key in [("opt, no pass", "opt"), ("onnx.load + onnx.save", "onnx"), ("opt, all convs factored", "factor")]:
        print(f"{name:24} {median(key):7.2f} s   peak {peak(key) / 1e6:6.0f} MB = {peak(key) / size:.2f} x the file")
    print(f"{'NumPy SVDs alone (f64)':24} {numpy_svds:7.2f} s")
    ratio = statistics.median(a[0] / b[0] for a, b in zip(rows["opt"], rows["onnx"]))
    print(f"no pass / onnx: {ratio:.3f}")
    ratio = statistics.median((a[0] - c[0]) / float(b[2]) for a, b, c in zip(rows["factor"], rows["svds"], rows["opt"]))
    print(f"factoring (less the copy) / NumPy's SVDs: {ratio:.3f}")
    ratio = statistics.median(a[0] / float(b[2]) for a, b in zip(rows["factor"], rows["svds"]))
    print(f"factoring (whole process) / NumPy's SVDs: {ratio:.3f}")


if __name__ == "__main__":
    main()
