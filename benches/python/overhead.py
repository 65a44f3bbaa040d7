#!/usr/bin/env python3
"""What a call from Python costs over the same call in Rust: one network, one pipeline, bytes to bytes, in turns.

    pip install ./src/python
    cargo build --release --example python_pair
    python benches/python/overhead.py network.onnx "@fold,factorize-conv:energy=0.9"

Both live in processes of their own that are warm, and take turns; the order within a round changes. Prints both medians,
the median of the rounds' ratios, and the same for calls from Python with an onnx.ModelProto in and out, where onnx is
installed. Results must be equal byte for byte. PAIR names the program, RUNS the number of rounds.
"""

import json
import os
import statistics
import subprocess
import sys
import time
import zlib

import basisopt

PAIR = os.environ.get("PAIR", "target/release/examples/python_pair")
RUNS = int(os.environ.get("RUNS", "31"))


class Rust:
    """The other process."""

    def __init__(self, network, pipeline):
        command = [PAIR, network, pipeline]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["seconds"], answer["crc32"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def python(content, pipeline):
    started = time.perf_counter()
    result = basisopt.optimize(content, pipeline).bytes
    return time.perf_counter() - started, zlib.crc32(result)


def proto(message, pipeline):
    started = time.perf_counter()
    basisopt.optimize(message, pipeline).model
    return time.perf_counter() - started, None


def main():
    network, pipeline = sys.argv[1:]
    with open(network, "rb") as file:
        content = file.read()
    rust = Rust(network, pipeline)
    ways = {"Rust": rust.run, "Python": lambda: python(content, pipeline)}
    try:
        import onnx

        message = onnx.load_from_string(content)
        ways["Python, ModelProto"] = lambda: proto(message, pipeline)
    except ImportError:
        pass
    times = {name: [] for name in ways}
    sums = set()
    for i in range(RUNS + 2):
        order = list(ways.items())
        for name, way in order if i % 2 else reversed(order):
            seconds, checksum = way()
            sums |= {checksum} - {None}
            # The first two rounds warm up.
            if i >= 2:
                times[name].append(seconds)
    rust.close()
    if len(sums) != 1:
        sys.exit("the results differ")
    for name, all_ in times.items():
        ratios = [a / b for a, b in zip(all_, times["Rust"])]
        median, ratio = statistics.median(all_), statistics.median(ratios)
        print(f"{name:<20} {1e3 * median:8.2f} ms   {ratio:.4f} of Rust's")


if __name__ == "__main__":
    main()
