#!/usr/bin/env python3
"""One step of training through ONNX Runtime against the built-in trainer: loss and gradients.

    cargo build --release && cargo build --release --example trainer
    python3 benches/step/peer.py fixtures/differentiate/*.bir fixtures/models/glyphnet.onnx MODEL.onnx …

Needs numpy, onnx and onnxruntime. For every network `basisopt differentiate --loss … -o` writes a step, `onnx.checker` looks at
it, ONNX Runtime runs it on the images, labels or targets that benches/step/trainer.rs made, and the numbers are compared: how
far they are apart, relative to the largest element of each gradient (or a hundred-thousandth of the largest of all), and as a distance of all gradients taken together, relative
to their length. Networks whose batch is open get IMAGES images, others one.

With --exact the last two columns say how far each side is from the same step in double precision. Where an activation is zero but for
rounding, Relu and MaxPool send the gradient one way or the other: no two engines agree on such an element, nor with themselves
in another precision.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime

IMAGES = 5
LANES = 16  # images that share their statistics in the built-in trainer
TOLERANCE = 1e-4
TYPES = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
# Of the largest element of all gradients: what a gradient's own is taken for if it is smaller.
FLOOR = 1e-5
# Rounding of a half-precision network is this much larger.
HALF = 2e-2


def call(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    return done.returncode, done.stdout, (done.stderr.strip().splitlines() or [""])[-1]


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def apart(found, expected, least=0.0):
    found, expected = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    if found.shape != expected.shape:
        return float("inf")
    scale = max(np.abs(expected).max(initial=0.0), least, 1e-12)
    off = np.abs(found - expected).max(initial=0.0) / scale
    return float("inf") if np.isnan(off) else off


def compare(network, loss, norm, args, folder):
    """A line of the table as a tuple, or what went wrong as text."""
    step = os.path.join(folder, "step.onnx")
    command = [args.program, "differentiate", network, "--loss", loss, "--norm", norm, "-o", step, "--format", "json"]
    command += [flag for dim in args.dim for flag in ("--dim", dim)]
    command += ["--open-batch"] * args.open_batch
    code, out, err = call(*command)
    if code and "batch" in err and args.open_batch:
        command.remove("--open-batch")
        code, out, err = call(*command)
    if code and "(--dim)" in err and not args.dim:
        # A batch of one is built into some networks that claim an open one.
        code, out, err = call(*command, "--dim", "N=1")
    if code:
        return err
    summary = json.loads(out)
    onnx.checker.check_model(step, full_check=True)
    run = session(step)
    feed = run.get_inputs()[0]
    fixed = isinstance(feed.shape[0], int)
    images = feed.shape[0] if fixed else LANES if norm == "batch" or "batch-norm-training" in network else IMAGES
    code, out, err = call(args.trainer, network, loss, norm, images, args.seed, folder,
                          *["exact"] * args.exact, *args.dim)
    if code:
        return f"trainer: {err}"
    with open(os.path.join(folder, "step.json")) as file:
        told = json.load(file)
    feeds, parameters, gradients, exact = {}, {}, {}, {}
    types = {i.name: i for i in run.get_inputs()}
    for entry in told["files"]:
        kind, name = entry["kind"], entry["name"]
        data = np.fromfile(os.path.join(folder, entry["file"]), np.int64 if kind == "labels" else np.float32)
        if kind == "gradient":
            gradients[name] = data
            continue
        if kind == "parameter":
            parameters[name] = data
            continue
        if kind == "exact":
            exact[name] = data
            continue
        if kind == "target":
            name = "teacher" if loss == "distill" else f"{name}.target"
        port = types[name]
        shape = [told["images"] if not isinstance(d, int) else d for d in port.shape]
        feeds[name] = data.reshape(shape).astype(TYPES.get(port.type, data.dtype))
    # The weights, given as anybody's optimiser would give them.
    for port in run.get_overridable_initializers():
        feeds[port.name] = parameters[port.name].reshape(port.shape).astype(TYPES.get(port.type, np.float32))
    names = {p["name"]: p["output"] for p in summary["parameters"]}
    if set(names) != set(gradients):
        return f"other parameters: {sorted(set(names) ^ set(gradients))[:3]}"
    order = list(gradients)
    got = run.run([summary["loss"], *(names[p] for p in order)], feeds)
    if args.verbose:
        print(f"loss: {float(got[0])!r}, trainer {told['loss']!r}, in double precision {told['exact_loss']!r}")
    off_loss = abs(float(got[0]) - told["loss"]) / max(abs(told["loss"]), 1e-6)
    # A gradient that is zero but for rounding is not compared with itself.
    least = FLOOR * max(np.abs(g).max(initial=0.0) for g in gradients.values())
    offs = [(apart(g, gradients[p], least), p) for g, p in zip(got[1:], order)]
    worst = max(offs)
    together = lambda arrays: np.concatenate([np.asarray(a, np.float64).ravel() for a in arrays])
    ours_all = together(gradients[p] for p in order)
    whole = np.linalg.norm(together(got[1:]) - ours_all) / max(np.linalg.norm(ours_all), 1e-12)
    half = any(f.dtype == np.float16 for f in feeds.values())
    ours = max((apart(gradients[p], exact[p], least) for p in exact), default=float("nan"))
    theirs = max((apart(g, exact[p], least) for g, p in zip(got[1:], order) if p in exact), default=float("nan"))
    return off_loss, worst[0], worst[1], whole, len(offs), told["images"], half, ours, theirs


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--program", default=root / "target/release/basisopt")
    parser.add_argument("--trainer", default=root / "target/release/examples/trainer")
    parser.add_argument("--loss", choices=["labels", "distill", "match"], help="default: labels where there are classes, else match")
    parser.add_argument("--norm", choices=["given", "batch"], default="given")
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=N", help="as for basisopt differentiate")
    parser.add_argument("--seed", type=int, default=1, help="of the images")
    parser.add_argument("--open-batch", action="store_true", help="as for basisopt differentiate")
    parser.add_argument("--exact", action="store_true", help="compute in double precision too (takes memory)")
    parser.add_argument("--verbose", action="store_true", help="say what the losses are")
    args = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, numpy {np.__version__}")
    print(f"{'network':44} {'loss':8} {'images':>6} {'gradients':>9} {'loss off by':>12} {'worst gradient':>15} {'all together':>13}"
          + f" {'trainer/f64':>12} {'ORT/f64':>12}" * args.exact)
    passed, failed = 0, []
    for network in args.networks:
        name = pathlib.Path(network).stem
        result, loss = "", ""
        for loss in [args.loss] if args.loss else ["labels", "match"]:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    result = compare(network, loss, args.norm, args, folder)
                except Exception as error:  # one network's failure is a line of the table
                    result = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            if not (isinstance(result, str) and "class scores" in result):
                break
        if isinstance(result, str):
            failed.append(name)
            print(f"{name:44} {loss:8} {result}", flush=True)
            continue
        off_loss, off, where, whole, n, images, half, ours, theirs = result
        good = max(off_loss, off) <= (HALF if half else TOLERANCE)
        passed += good
        if not good:
            failed.append(name)
        note = "" if good else f"  {where}"
        print(f"{name:44} {loss:8} {images:6} {n:9} {off_loss:12.1e} {off:15.1e} {whole:13.1e}"
              + f" {ours:12.1e} {theirs:12.1e}" * args.exact + note, flush=True)
    print(f"{passed} of {len(args.networks)} within {TOLERANCE}" + (f"; not: {', '.join(failed)}" if failed else ""))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
