#!/usr/bin/env python3
"""Pairs a step of training in basisopt with PyTorch's on the same graph and CPU, interleaved in one run.

    cargo build --release
    python benches/training_peer.py m.onnx [m2.onnx ...] [--basisopt target/release/basisopt]
                                    [--batch 128] [--threads 2] [--rounds 7]

A step is forward, cross-entropy with labels, backward, and the update of all weights and biases, in fp32
on random images. PyTorch runs the ONNX graph node by node from a module: what depends on constants and
shapes alone is computed beforehand, Relu, Clip and Add work in place where they can, BatchNormalization
uses its stored mean and variance, and SGD (momentum 0.9, nesterov) is the fused one. It takes the whole
batch at once, as is usual; basisopt adds up the gradients of a few images at a time, so its memory does not
grow with the batch. Before timing, both of PyTorch's memory formats must give onnxruntime's logits.

Needs torch, onnx, onnxruntime and NumPy. Every measurement is a process of its own: one warm-up and five
timed steps in PyTorch's, whatever `basisopt differentiate --time` takes in ours. Prints medians over the
rounds, ratios, and peak resident memory of whole processes; compare within one run only.

Run it on an idle machine, with no more threads than cores. PyTorch's threads wait for each other many
times a step: where another process takes a core and two of them share the other one, a step took 25 times
as long. So its threads are bound to cores of their own (OMP_PROC_BIND, unless set), and the time that
other processes took is measured and printed; figures under a warning are no measurement.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

# The parent imports nothing large: a child's peak memory counts from what its parent had when it forked.
if sys.argv[1:2] == ["--worker"]:
    import numpy as np
    import onnx
    import torch
    from torch.nn import functional as F

STEPS = 5
TOLERANCE = 1e-3
IDLE = 0.15  # cores
FORMATS = ["channels_last", "NCHW"]


def busy():
    """Seconds that all cores together have worked, or were taken by the host, since boot."""
    fields = [int(n) for n in open("/proc/stat").readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def run(command):
    """Peak resident bytes and stdout of a process, and the cores that others kept busy meanwhile."""
    before, started = busy(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    others = (busy() - before - usage.ru_utime - usage.ru_stime) / (time.perf_counter() - started)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * 1024, out.decode(), max(others, 0.0)


def main():
    if sys.argv[1:2] == ["--worker"]:
        return worker(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--basisopt", default=os.environ.get("BASISOPT", "target/release/basisopt"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if args.threads > 1:
        os.environ.setdefault("OMP_PROC_BIND", "true")
    for model in args.models:
        compare(model, args)


def compare(model, args):
    batch, threads = str(args.batch), str(args.threads)
    python = [sys.executable, os.path.abspath(__file__), "--worker"]
    _, out, _ = run(python + ["check", model, batch, threads])
    check = json.loads(out)
    ours = [args.basisopt, "-q", "differentiate", model, "--time", "--batch", batch, "--threads", threads, "--format", "json"]
    rows = {key: [] for key in ["basisopt"] + FORMATS}
    for _ in range(args.rounds):
        peak, out, others = run(ours)
        report = json.loads(out)
        found = report["time"]
        if (found["batch"], found["threads"]) != (check["batch"], args.threads):
            sys.exit(f"basisopt ran {found['batch']} images on {found['threads']} threads, PyTorch {check['batch']} on {threads}")
        rows["basisopt"].append((found["images_per_second"], peak, found["memory_bytes"], others))
        for layout in FORMATS:
            peak, out, others = run(python + [layout, model, batch, threads])
            found = json.loads(out)
            rows[layout].append((found["images_per_second"], peak, found["base_bytes"], others))

    print(f"\n{model}: batch {check['batch']}, {threads} threads, {args.rounds} round(s), PyTorch {check['torch']}")
    print(f"same logits as onnxruntime: yes, differing by {check['difference']:.1e} of the largest at most")
    if check["values"] == report["values"]:
        print(f"trained values: {check['values']} in both")
    else:
        print(f"trained values: {report['values']} in basisopt, {check['values']} in PyTorch; NOT the same")
    print(f"{'':20} {'images/s median [min-max]':>28} {'peak MB':>8} {'cores others took, worst':>25}")
    for key, name in [("basisopt", "basisopt"), ("channels_last", "torch channels_last"), ("NCHW", "torch NCHW")]:
        speeds = [r[0] for r in rows[key]]
        spread = f"{statistics.median(speeds):.1f} [{min(speeds):.1f}-{max(speeds):.1f}]"
        print(f"{name:20} {spread:>28} {max(r[1] for r in rows[key]) / 1e6:8.0f} {max(r[3] for r in rows[key]):25.2f}")
    for layout in FORMATS:
        ratios = [a[0] / b[0] for a, b in zip(rows["basisopt"], rows[layout])]
        print(f"basisopt / torch {layout}: {statistics.median(ratios):.3f} [{min(ratios):.3f}-{max(ratios):.3f}], median of the rounds")
    print(f"memory: basisopt reports {max(r[2] for r in rows['basisopt']) / 1e6:.0f} MB for the step; torch's process has "
          f"{max(r[2] for layout in FORMATS for r in rows[layout]) / 1e6:.0f} MB before its first step")
    worst = max(r[3] for row in rows.values() for r in row)
    if worst > IDLE:
        print(f"WARNING: other processes took up to {worst:.2f} cores meanwhile; these times are no measurement")
    sys.stdout.flush()


# From here on, what runs in a worker process.


def worker(task, path, batch, threads):
    torch.set_num_threads(int(threads))
    torch.manual_seed(1)
    if task == "check":
        return check_logits(path, int(batch))
    module, images = build(path, int(batch))
    if task == "channels_last":
        module = module.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if len(module.shape) < 2 or product(module.shape[2:]) != 1:
        sys.exit(f"{path}: the output is no row of logits per image: {list(module.shape)}")
    labels = torch.randint(module.shape[1], (len(images),))
    # A small rate, so that random labels do not drive the weights to infinity within the few steps.
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9, nesterov=True, fused=True)
    base = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    times = []
    for _ in range(1 + STEPS):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(images).flatten(1), labels)
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    if not torch.isfinite(loss):
        sys.exit(f"{path}: the loss became {loss.item()}")
    speed = len(images) / statistics.median(times[1:])
    print(json.dumps({"images_per_second": speed, "base_bytes": base}))


def check_logits(path, batch):
    """Both memory formats against onnxruntime."""
    import onnxruntime

    module, images = build(path, batch)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    theirs = session.run(None, {module.input: images.numpy()})[0]
    if not np.ptp(theirs) > 0:
        sys.exit(f"{path}: onnxruntime's logits are all the same, or not finite; nothing to compare with")
    differences = []
    for layout in [torch.contiguous_format, torch.channels_last]:
        with torch.no_grad():
            ours = module.to(memory_format=layout)(images.contiguous(memory_format=layout)).numpy()
        if ours.shape != theirs.shape:
            sys.exit(f"{path}: PyTorch gives {ours.shape}, onnxruntime {theirs.shape}")
        differences.append(np.abs(ours - theirs).max() / np.abs(theirs).max())
    difference = float(np.max(differences))
    if not difference <= TOLERANCE:
        sys.exit(f"{path}: PyTorch and onnxruntime differ by {difference:.1e} of the largest logit; not the same graph")
    values = sum(p.numel() for p in module.parameters())
    print(json.dumps({"difference": difference, "batch": len(images), "values": values, "torch": torch.__version__}))


def build(path, batch):
    """The graph as a module for this batch, and random images."""
    model = onnx.load(path)
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        sys.exit(f"{path}: {len(inputs)} inputs and {len(graph.output)} outputs; needs one of each")
    tensor = inputs[0].type.tensor_type
    shape = [d.dim_value for d in tensor.shape.dim]
    if tensor.elem_type != onnx.TensorProto.FLOAT or len(shape) != 4 or 0 in shape[1:]:
        sys.exit(f"{path}: the input {inputs[0].name} is no batch of fp32 images of a known size")
    images = torch.randn([shape[0] or batch] + shape[1:])
    return Lower(path, model, inputs[0].name).module(images), images


class Lower:
    """Turns the nodes into a list of PyTorch calls, by running them once on the given images: a value is
    a NumPy array as long as only constants and shapes went into it, and a tensor after that."""

    # What makes a tensor that nothing else holds or needs for its gradient, so that the next node may overwrite it.
    FRESH = {"Conv", "BatchNormalization", "Add", "Gemm", "MatMul"}

    def __init__(self, path, model, name):
        self.path, self.model = path, model
        self.input = name
        self.output = model.graph.output[0].name
        needed, self.nodes = {self.output}, []
        for node in reversed(model.graph.node):
            if needed & set(node.output):
                self.nodes.insert(0, node)
                needed |= set(filter(None, node.input))
        self.readers, self.last, self.maker = {self.output: 1}, {}, {}
        for i, node in enumerate(self.nodes):
            for n in filter(None, node.input):
                self.readers[n] = self.readers.get(n, 0) + (node.op_type != "Shape")
                self.last[n] = i
            self.maker[node.output[0]] = node.op_type

    def module(self, images):
        values = {t.name: onnx.numpy_helper.to_array(t) for t in self.model.graph.initializer}
        values[self.input] = images
        self.held, self.trained, steps = {}, set(), []
        with torch.no_grad():
            for i, node in enumerate(self.nodes):
                known = [values[n] if n else None for n in node.input]
                if node.op_type == "Shape" and torch.is_tensor(known[0]):
                    a = attributes(node)
                    values[node.output[0]] = np.asarray(known[0].shape)[a.get("start", 0) : a.get("end")]
                elif not any(torch.is_tensor(v) for v in known):
                    values.update(zip(node.output, self.fold(node, known)))
                else:
                    call, reads = self.lower(node, known)
                    for n in reads:
                        if not torch.is_tensor(values[n]):  # a constant that PyTorch reads
                            value = torch.from_numpy(values[n].astype("float32"))
                            self.held[n] = torch.nn.Parameter(value) if n in self.trained else value
                    values[node.output[0]] = call(*[self.held[n] if n in self.held else values[n] for n in reads])
                    steps.append((call, reads, node.output[0]))
                for n in node.input:
                    if self.last.get(n) == i and n != self.output:
                        values.pop(n, None)
        if not steps:
            sys.exit(f"{self.path}: the output does not depend on the images")
        return graph_module(self, steps, values[self.output].shape)

    def fold(self, node, known):
        from onnx.reference import ReferenceEvaluator

        inputs = [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in dict(zip(node.input, known)).items()
            if n
        ]
        outputs = [onnx.ValueInfoProto(name=n) for n in node.output]
        graph = onnx.helper.make_graph([node], "fold", inputs, outputs)
        model = onnx.helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        return ReferenceEvaluator(model).run(None, {n: v for n, v in zip(node.input, known) if n})

    def lower(self, node, known):
        """A PyTorch function, and the names of the values to call it with."""
        op, a = node.op_type, attributes(node)
        name = f"{op} {node.name or node.output[0]}"
        x, shape = known[0], tuple(getattr(known[0], "shape", ()))
        reads = [n for n in node.input if n]
        extra = lambda i, key, default=None: known[i] if len(known) > i and known[i] is not None else a.get(key, default)
        integers = lambda v: None if v is None else [int(k) for k in np.asarray(v).reshape(-1)]

        def unsupported(what):
            sys.exit(f"{self.path}: {name}: this script does not know {what}")

        def fixed(*positions):
            if any(torch.is_tensor(known[i]) for i in positions if i < len(known)):
                unsupported("settings that depend on the images")

        def trains(*positions):
            self.trained |= {node.input[i] for i in positions if i < len(known) and known[i] is not None and not torch.is_tensor(known[i])}

        def own(n):
            return self.maker.get(n) in self.FRESH and self.readers[n] == 1

        def padding(kernel, value):
            """The pads as (what the window itself does, a function for the rest)."""
            d, s = a.get("dilations", [1, 1]), a.get("strides", [1, 1])
            pads = a.get("pads", [0, 0, 0, 0])
            if a.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
                total = [max((-(-n // s[i]) - 1) * s[i] + (kernel[i] - 1) * d[i] + 1 - n, 0) for i, n in enumerate(shape[2:])]
                small, large = [t // 2 for t in total], [t - t // 2 for t in total]
                pads = small + large if a["auto_pad"] == "SAME_UPPER" else large + small
            top, left, bottom, right = pads
            # PyTorch's pooling takes no more than half a window.
            if (top, left) == (bottom, right) and (op == "Conv" or (top <= kernel[0] // 2 and left <= kernel[1] // 2)):
                return (top, left), lambda x: x
            return (0, 0), lambda x: F.pad(x, (left, right, top, bottom), value=value)

        if op in ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization") and len(shape) != 4:
            unsupported(f"{len(shape) - 2} dimensions")
        if len([n for n in node.output if n in self.last]) > 1:
            unsupported("a second output")

        if op == "Conv":
            trains(1, 2)
            around, pad = padding(tuple(known[1].shape[2:]), 0.0)
            stride, dilation, groups = a.get("strides", [1, 1]), a.get("dilations", [1, 1]), a.get("group", 1)
            return lambda x, w, b=None: F.conv2d(pad(x), w, b, stride, around, dilation, groups), reads
        if op == "BatchNormalization":
            if a.get("training_mode"):
                unsupported("training_mode")
            trains(1, 2)
            eps = a.get("epsilon", 1e-5)
            return lambda x, g, b, m, v: F.batch_norm(x, m, v, g, b, False, 0.0, eps), reads
        if op == "Relu":
            overwrite = own(node.input[0])
            return lambda x: F.relu(x, inplace=overwrite), reads
        if op == "Clip":
            fixed(1, 2)
            low, high = (np.asarray(extra(i, key, d)).item() for i, key, d in [(1, "min", -np.inf), (2, "max", np.inf)])
            overwrite = own(node.input[0])
            return lambda x: F.hardtanh(x, low, high, inplace=overwrite), reads[:1]
        if op == "Add":
            for this, other in [(0, 1), (1, 0)]:
                n = node.input[this]
                if torch.is_tensor(known[this]) and own(n) and torch.broadcast_shapes(*(k.shape for k in known)) == known[this].shape:
                    return lambda x, y: x.add_(y), [n, node.input[other]]
            return torch.add, reads
        if op in ("Sub", "Mul", "Div"):
            return {"Sub": torch.sub, "Mul": torch.mul, "Div": torch.div}[op], reads
        if op == "GlobalAveragePool":
            return lambda x: F.adaptive_avg_pool2d(x, 1), reads
        if op == "MaxPool":
            kernel, ceil = a["kernel_shape"], bool(a.get("ceil_mode"))
            around, pad = padding(kernel, float("-inf"))
            stride, dilation = a.get("strides", [1, 1]), a.get("dilations", [1, 1])
            return lambda x: F.max_pool2d(pad(x), kernel, stride, around, dilation, ceil), reads
        if op == "AveragePool":
            kernel, ceil, count = a["kernel_shape"], bool(a.get("ceil_mode")), bool(a.get("count_include_pad"))
            if a.get("dilations", [1, 1]) != [1, 1]:
                unsupported("dilations")
            around, pad = padding(kernel, 0.0)
            if pad(x) is not x and not count:
                unsupported("unequal pads that do not count")
            stride = a.get("strides", [1, 1])
            return lambda x: F.avg_pool2d(pad(x), kernel, stride, around, ceil, count), reads
        if op == "Gemm":
            trains(1, 2)
            alpha, beta, ta, tb = a.get("alpha", 1.0), a.get("beta", 1.0), a.get("transA"), a.get("transB")

            def gemm(x, w, c=None):
                x, w = x.t() if ta else x, w.t() if tb else w
                return alpha * (x @ w) if c is None else torch.addmm(c, x, w, beta=beta, alpha=alpha)

            return gemm, reads
        if op == "MatMul":
            trains(0, 1)
            return torch.matmul, reads
        if op in ("Identity", "Dropout"):
            return lambda x: x, reads[:1]
        if op == "Cast":
            if a["to"] != 1:
                unsupported("a type other than float")
            return lambda x: x, reads[:1]
        if op in ("Reshape", "Flatten", "Unsqueeze", "Squeeze"):
            fixed(1)
            if op == "Reshape":
                to = integers(extra(1, "shape"))
                if not a.get("allowzero"):
                    to = [shape[i] if n == 0 else n for i, n in enumerate(to)]
            elif op == "Flatten":
                axis = a.get("axis", 1)
                to = [product(shape[:axis]), product(shape[axis:])]
            else:
                axes = integers(extra(1, "axes"))
                rank = len(shape) + (len(axes) if op == "Unsqueeze" else 0)
                if axes is None:
                    axes = [i for i, n in enumerate(shape) if n == 1]
                axes = {axis % rank for axis in axes}
                if op == "Unsqueeze":
                    rest = iter(shape)
                    to = [1 if i in axes else next(rest) for i in range(rank)]
                else:
                    to = [n for i, n in enumerate(shape) if i not in axes]
            return lambda x: x.reshape(to), reads[:1]
        if op == "Transpose":
            order = a.get("perm", list(range(len(shape)))[::-1])
            return lambda x: x.permute(order), reads
        if op == "Concat":
            axis = a["axis"]
            return lambda *x: torch.cat(x, axis), reads
        if op == "Pad":
            fixed(1, 2, 3)
            mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(a.get("mode", "constant"))
            if mode is None or extra(3, "axes") is not None:
                unsupported("this mode, or axes")
            pads, value = integers(extra(1, "pads")), np.asarray(extra(2, "value", 0.0)).item()
            rank = len(shape)
            around = [n for i in reversed(range(rank)) for n in (pads[i], pads[rank + i])]
            while around and around[-2:] == [0, 0]:
                del around[-2:]
            return lambda x: F.pad(x, around, mode, value if mode == "constant" else None), reads[:1]
        if op == "Slice":
            fixed(1, 2, 3, 4)
            starts, ends, axes, strides = (integers(extra(i + 1, key)) for i, key in enumerate(["starts", "ends", "axes", "steps"]))
            parts = [slice(None)] * len(shape)
            for i, (start, end) in enumerate(zip(starts, ends)):
                if strides and strides[i] < 0:
                    unsupported("negative steps")
                parts[axes[i] if axes else i] = slice(start, end, strides[i] if strides else 1)
            parts = tuple(parts)
            return lambda x: x[parts], reads[:1]
        if op == "Gather":
            fixed(1)
            axis, at = a.get("axis", 0), np.asarray(known[1])
            index = torch.from_numpy(at.reshape(-1) % shape[axis])
            to = list(shape[:axis]) + list(at.shape) + (list(shape[axis:][1:]))
            return lambda x: x.index_select(axis, index).reshape(to), reads[:1]
        sys.exit(f"{self.path}: {name}: this script does not know the operator {op}")


def graph_module(lowered, steps, shape):
    # A value is let go after its last reader, as a variable of a handwritten module would be.
    timed, later = [], {lowered.output}
    for call, reads, result in reversed(steps):
        timed.insert(0, (call, reads, result, set(reads) - later))
        later |= set(reads)

    class Graph(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.input, self.output, self.shape = lowered.input, lowered.output, shape
            self.slots = {}
            for i, (name, value) in enumerate(lowered.held.items()):
                self.slots[name] = f"constant{i}"
                if name in lowered.trained:
                    self.register_parameter(f"constant{i}", value)
                else:
                    self.register_buffer(f"constant{i}", value)

        def forward(self, images):
            values = {name: getattr(self, slot) for name, slot in self.slots.items()}
            values[self.input] = images
            for call, reads, result, done in timed:
                values[result] = call(*[values[n] for n in reads])
                for n in done:
                    del values[n]
            return values[self.output]

    return Graph()


def attributes(node):
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}


def product(numbers):
    found = 1
    for n in numbers:
        found *= n
    return found


if __name__ == "__main__":
    main()
