#!/usr/bin/env python3
"""Latency of networks in stock tract, tract with fused pairs, and ONNX Runtime, interleaved in one run.

    cargo build --release
    python benches/device/peer.py whole.onnx small.onnx [...] [--threads 1] [--rounds 9] [--basisopt PATH]

In each round every network is measured by `basisopt bench` (stock and fused, a few runs of each, in turns) and
by ONNX Runtime (as many, same number of threads, random input). Printed are the medians over the rounds, the ratio to
the first network in stock tract, and, if `--arithmetic` gives the speed-up that multiply-adds promise for each network,
the share of it that is realised. Needs onnxruntime and NumPy. Compare within one run only.
"""

import argparse
import json
import statistics
import subprocess
import time


def onnxruntime_session(path, threads):
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    shapes = {i.name: i.shape for i in session.get_inputs()}
    if any(not isinstance(d, int) for shape in shapes.values() for d in shape[1:]):
        raise SystemExit(f"{path}: an input has open sizes beside the batch; fix them first")
    shapes = {name: [d if isinstance(d, int) else 1 for d in shape] for name, shape in shapes.items()}
    inputs = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    session.run(None, inputs)
    return lambda: session.run(None, inputs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--runs", type=int, default=3, help="runs of every network in a round")
    parser.add_argument("--basisopt", default="target/release/basisopt")
    parser.add_argument("--arithmetic", type=float, nargs="*", help="by network: multiply-adds of the first by its own")
    args = parser.parse_args()

    peers = [onnxruntime_session(m, args.threads) for m in args.models]
    times = {(m, e): [] for m in args.models for e in ("tract", "fused", "onnxruntime")}
    for _ in range(args.rounds):
        command = [args.basisopt, "bench", *args.models, "--engine", "stock,fused", "--threads", str(args.threads)]
        command += ["--runs", str(args.runs), "--seconds", "0", "--warmup", "1", "--no-memory", "--format", "json", "-q"]
        for row in json.loads(subprocess.run(command, check=True, capture_output=True).stdout):
            model = row["file"]
            times[model, "fused" if row["n_fused"] else "tract"].append(row["median_ms"])
        for model, run in zip(args.models, peers):
            runs = []
            for _ in range(args.runs):
                started = time.perf_counter()
                run()
                runs.append(1e3 * (time.perf_counter() - started))
            times[model, "onnxruntime"].append(statistics.median(runs))

    base = times[args.models[0], "tract"]
    print(f"{args.rounds} rounds of {args.runs} runs, {args.threads} thread(s); ratios to {args.models[0]} in stock tract")
    print("| network | engine | median ms | ratio | speed-up | of arithmetic |")
    print("|---|---|---|---|---|---|")
    for i, model in enumerate(args.models):
        for engine in ("tract", "fused", "onnxruntime"):
            values = times[model, engine]
            if not values:
                continue
            ratio = statistics.median(v / b for v, b in zip(values, base))
            share = f"{1 / ratio / args.arithmetic[i]:.2f}" if args.arithmetic else "-"
            print(f"| {model} | {engine} | {statistics.median(values):.2f} | {ratio:.3f} | {1 / ratio:.2f} | {share} |")


if __name__ == "__main__":
    main()
