"""Pipelines over models of all kinds."""

import json
import math
import pathlib
import subprocess

import basisopt
import numpy as np
import pytest

PIPELINE = "@fold,factorize-conv:energy=0.9"


def outputs(model: bytes | pathlib.Path, images: np.ndarray) -> np.ndarray:
    """What ONNX Runtime computes, without optimisations of its own."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def test_folding_keeps_the_function_by_another_runtime(glyphnet, prepared, onnx):
    result = basisopt.optimize(glyphnet, "@fold")
    before, after = (outputs(m, prepared[:32]) for m in (glyphnet, result.bytes))
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()
    ops = [n.op_type for n in onnx.load_from_string(result.bytes).graph.node]
    assert "BatchNormalization" not in ops
    onnx.checker.check_model(onnx.load_from_string(result.bytes))


def test_full_rank_keeps_the_function(glyphnet, prepared):
    result = basisopt.optimize(glyphnet, "factorize-conv:energy=1:guard=off")
    assert any(r["code"] == "factored" for r in result.remarks)
    before, after = (outputs(m, prepared[:32]) for m in (glyphnet, result.bytes))
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()


def test_all_kinds_give_the_same_model(glyphnet, glyphnet_path, onnx):
    by_bytes = basisopt.optimize(glyphnet, PIPELINE)
    assert isinstance(by_bytes.model, bytes) and by_bytes.model == by_bytes.bytes
    for model in (glyphnet_path, str(glyphnet_path), bytearray(glyphnet), memoryview(glyphnet)):
        assert basisopt.optimize(model, PIPELINE).model == by_bytes.bytes
    proto = onnx.load_from_string(glyphnet)
    by_proto = basisopt.optimize(proto, PIPELINE)
    assert isinstance(by_proto.model, onnx.ModelProto)
    # protobuf writes its own bytes; the message is the same.
    assert by_proto.model == onnx.load_from_string(by_bytes.bytes)
    assert proto == onnx.load_from_string(glyphnet), "what was given never changes"


def test_a_pipeline_that_does_nothing_gives_the_model_itself(glyphnet):
    folded = basisopt.optimize(glyphnet, "@fold").bytes
    again = basisopt.optimize(folded, "fold-batch-norm")
    assert again.report["rewrites"] == 0 and again.bytes == folded


def test_reports_are_plain_data(glyphnet):
    result = basisopt.optimize(glyphnet, PIPELINE)
    assert json.loads(json.dumps(result.report)) == result.report
    assert result.report["pipeline"].startswith("fold-constants,")
    assert [p["pass"] for p in result.report["passes"]][-1] == "factorize-conv:energy=0.9"
    assert result.report["before"]["file_bytes"] == len(glyphnet)
    assert result.report["after"]["file_bytes"] == len(result.bytes)
    assert {r["kind"] for r in result.remarks} <= {"applied", "refused", "note"}
    factored = [r for r in result.remarks if r["code"] == "factored"]
    assert factored and all(r["values"]["energy"] >= 0.9 for r in factored)
    assert "bytes" in repr(result)


def test_the_command_line_gives_the_same_bytes(glyphnet_path, program, tmp_path):
    output = tmp_path / "cli.onnx"
    subprocess.run([program, "opt", glyphnet_path, "-p", PIPELINE, "-o", output, "--quiet"], check=True)
    assert basisopt.optimize(glyphnet_path, PIPELINE).bytes == output.read_bytes()


def test_the_command_line_calibrates_on_the_same_images(glyphnet_path, prepared, program, tmp_path):
    np.save(tmp_path / "images.npy", prepared)
    output = tmp_path / "cli.onnx"
    pipeline = "@fold,factorize-conv:energy=0.9:method=sequential"
    command = [program, "opt", glyphnet_path, "-p", pipeline, "-o", output, "--quiet", "--seed", "3"]
    subprocess.run([*command, "--calibrate", tmp_path / "images.npy", "--samples", "64"], check=True)
    arguments = {"calibrate": prepared, "samples": 64, "seed": 3}
    assert basisopt.optimize(glyphnet_path, pipeline, **arguments).bytes == output.read_bytes()


def test_the_number_of_threads_changes_nothing(glyphnet, prepared):
    pipeline = "@fold,factorize-conv:energy=0.9,factorize-linear:energy=0.9:method=output"
    results = [basisopt.optimize(glyphnet, pipeline, calibrate=prepared[:64], threads=n).bytes for n in (1, 2, 5)]
    assert results[0] == results[1] == results[2]


def test_outputs_are_written_whole(glyphnet, glyphnet_path, tmp_path):
    output = tmp_path / "small.onnx"
    result = basisopt.optimize(glyphnet, PIPELINE, output=output)
    assert output.read_bytes() == result.bytes
    result.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == result.bytes
    # The result owes nothing to the file that it came from: it may be replaced.
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(glyphnet)
    result = basisopt.optimize(copy, "@fold")
    result.save(copy)
    assert copy.read_bytes() == result.bytes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.onnx", "copy.onnx", "small.onnx"]
    with pytest.raises(basisopt.FileError, match="it is the input model"):
        basisopt.optimize(copy, "@fold", output=copy)


def test_external_data_stays_where_it_is(glyphnet, prepared, tmp_path, onnx):
    proto = onnx.load_from_string(glyphnet)
    path = tmp_path / "big.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="big.data", size_threshold=64)
    before = (tmp_path / "big.data").read_bytes()
    expected = outputs(glyphnet, prepared[:8])

    by_path = basisopt.optimize(path, PIPELINE)
    (tmp_path / "out").mkdir()
    by_path.save(tmp_path / "out" / "small.onnx")
    found = outputs(tmp_path / "out" / "small.onnx", prepared[:8])
    assert np.linalg.norm(found - expected) < np.linalg.norm(expected)

    # In memory a model does not know its folder.
    given = onnx.load(path, load_external_data=False)
    with pytest.raises(basisopt.ModelError, match="external data"):
        basisopt.optimize(given, PIPELINE)
    by_proto = basisopt.optimize(given, PIPELINE, base_dir=tmp_path).model
    onnx.load_external_data_for_model(by_proto, str(tmp_path))
    np.testing.assert_array_equal(outputs(by_proto.SerializeToString(), prepared[:8]), found)
    assert (tmp_path / "big.data").read_bytes() == before

    # The result still reads it, so neither may be written over.
    for target in (path, tmp_path / "big.data"):
        with pytest.raises(basisopt.FileError, match="refusing to write"):
            by_path.save(target)
    assert (tmp_path / "big.data").read_bytes() == before


def test_open_sizes_are_given_by_name_or_by_place(onnx):
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, "H", None])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    graph = onnx.helper.make_graph([node], "g", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    assert basisopt.inspect(model)["macs"] is None
    cost = basisopt.inspect(model, dims={"H": 10, "x:3": 12})
    assert cost["macs"] == 4 * 3 * 9 * 8 * 10
    (layer,) = cost["layers"]
    assert layer == {"name": "conv", "kind": "convolution", "params": 108, "macs": cost["macs"]}
    with pytest.raises(basisopt.PipelineError, match="its open sizes are N, H, x:3"):
        basisopt.inspect(model, dims={"h": 10})


def test_inspect_adds_up(glyphnet, onnx):
    cost = basisopt.inspect(glyphnet)
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(glyphnet).graph.initializer]
    assert cost["params"] == sum(w.size for w in weights if w.dtype == np.float32)
    assert cost["file_bytes"] == len(glyphnet)
    assert cost["macs"] == sum(layer["macs"] for layer in cost["layers"])


def test_passes_and_presets_are_listed(glyphnet):
    by_name = {p["name"]: p for p in basisopt.passes()}
    energy = next(o for o in by_name["factorize-conv"]["options"] if o["name"] == "energy")
    assert energy["accepts"] and energy["help"] and by_name["fold-batch-norm"]["fidelity"] == "exact"
    presets = basisopt.presets()
    assert basisopt.optimize(glyphnet, "@fold").bytes != basisopt.optimize(glyphnet, "dead-code").bytes
    assert basisopt.optimize(glyphnet, "@fold").report["pipeline"] == presets["fold"]


def test_networks_with_several_inputs_calibrate_on_dicts(tmp_path, onnx):
    onnxruntime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((24, 3)) @ rng.standard_normal((3, 16 * 9))).reshape(24, 16, 3, 3)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Mul", ["image", "gain"], ["scaled"], name="mul"),
            onnx.helper.make_node("Conv", ["scaled", "w"], ["y"], name="conv"),
        ],
        "g",
        [
            info("image", onnx.TensorProto.FLOAT, ["N", 16, 8, 8]),
            info("gain", onnx.TensorProto.FLOAT, ["N", 1, 1, 1]),
        ],
        [info("y", onnx.TensorProto.FLOAT, ["N", 24, 6, 6])],
        [onnx.numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    batches = [
        {"image": rng.standard_normal((4, 16, 8, 8)).astype(np.float32), "gain": np.ones((4, 1, 1, 1))}
        for _ in range(4)
    ]
    result = basisopt.optimize(model, "factorize-conv:energy=0.999:method=output", calibrate=iter(batches))
    (remark,) = [r for r in result.remarks if r["code"] == "factored"]
    # The weight has rank three, and so has its output.
    assert remark["values"]["rank"] <= 3
    session = onnxruntime.InferenceSession(result.bytes, providers=["CPUExecutionProvider"])
    original = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {k: v.astype(np.float32) for k, v in batches[0].items()}
    a, b = original.run(None, feed)[0], session.run(None, feed)[0]
    assert np.linalg.norm(a - b) <= math.sqrt(1 - 0.999) * np.linalg.norm(a) * 1.1
    # What is beyond the limit is cut off, also within an item.
    pipeline = "factorize-conv:energy=0.999:method=output"
    joined = [{name: np.concatenate([b[name] for b in batches]) for name in batches[0]}]
    for samples in (3, 6):
        cut = [{name: array[:samples] for name, array in joined[0].items()}]
        expected = basisopt.optimize(model, pipeline, calibrate=cut).bytes
        for given in (batches, joined):
            assert basisopt.optimize(model, pipeline, calibrate=given, samples=samples).bytes == expected
    for bad, error, words in [
        (batches[0]["image"], TypeError, "image, gain"),
        ([{"image": batches[0]["image"]}], basisopt.DataError, "there is no gain"),
        ([], basisopt.DataError, "nothing in it"),
        ([{"image": np.zeros((1, 16, 9, 8), np.float32), "gain": np.ones((1, 1, 1, 1))}], basisopt.DataError, "takes f32"),
        ([{"image": np.zeros((1, 16, 8, 8), complex), "gain": np.ones((1, 1, 1, 1))}], basisopt.DataError, "complex128"),
    ]:
        with pytest.raises(error, match=words):
            basisopt.optimize(model, "factorize-conv:energy=0.9:method=output", calibrate=bad)


def test_pipelines_can_train(glyphnet, glyphs, settings):
    small = basisopt.optimize(glyphnet, "@fold,factorize-conv:energy=0.5")
    pipeline = "fine-tune:epochs=1:batch=40"
    result = basisopt.optimize(
        small.bytes, pipeline, train=glyphs, original=basisopt.optimize(glyphnet, "@fold").bytes, **settings
    )
    epochs = result.report["training"]["epochs"]
    assert [e["epoch"] for e in epochs] == [0.0, 1.0]
    assert result.bytes != small.bytes
    with pytest.raises(basisopt.DataError, match="no images to train on"):
        basisopt.optimize(small.bytes, pipeline)


def test_the_version_is_that_of_the_sources():
    manifest = (pathlib.Path(__file__).resolve().parents[3] / "Cargo.toml").read_text()
    assert f'\nversion = "{basisopt.__version__}"\n' in manifest
