"""Models of onnx_ir, and basisopt among its passes."""

import basisopt
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnx_ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")
from basisopt.onnx_ir_pass import OptimizePass  # noqa: E402
from onnx_ir.passes import common  # noqa: E402

PIPELINE = "@fold,factorize-conv:energy=0.9"


def outputs(model, images):
    content = onnx_ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.fixture
def model(glyphnet):
    return onnx_ir.from_proto(onnx.load_from_string(glyphnet))


def ops(model):
    return [node.op_type for node in model.graph]


def test_models_come_back_as_they_went(model, glyphnet, prepared):
    before = onnx_ir.to_proto(model)
    result = basisopt.optimize(model, PIPELINE)
    assert isinstance(result.model, onnx_ir.Model)
    assert onnx_ir.to_proto(model) == before, "what was given never changes"
    expected = outputs(onnx_ir.from_proto(onnx.load_from_string(basisopt.optimize(glyphnet, PIPELINE).bytes)), prepared[:8])
    np.testing.assert_array_equal(outputs(result.model, prepared[:8]), expected)


def test_a_pass_among_others(model, prepared):
    before = outputs(model, prepared[:16])
    step = OptimizePass("@fold", seed=1)
    pipeline = onnx_ir.passes.Sequential(
        common.IdentityEliminationPass(),
        step,
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
    )
    assert pipeline.in_place
    result = pipeline(model)
    assert result.modified and result.model is model
    assert "BatchNormalization" not in ops(model)
    assert step.result is not None and step.result.report["rewrites"] > 0
    assert model.metadata_props["basisopt.pipeline"] == step.result.report["pipeline"]
    after = outputs(model, prepared[:16])
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()
    # The second time there is nothing to do.
    assert not OptimizePass("@fold")(model).modified


def test_a_pass_that_fails_changes_nothing(model):
    before = onnx_ir.to_proto(model)
    with pytest.raises(onnx_ir.passes.PassError) as e:
        onnx_ir.passes.Sequential(OptimizePass("@fold", tolerance=0.0))(model)
    assert isinstance(e.value.__cause__, basisopt.CheckError)
    assert onnx_ir.to_proto(model) == before


def test_after_the_optimizer_of_onnxscript(model, prepared):
    optimizer = pytest.importorskip("onnxscript.optimizer")
    before = outputs(model, prepared[:16])
    optimizer.optimize(model)
    assert OptimizePass(PIPELINE)(model).modified
    optimizer.optimize(model)
    after = outputs(model, prepared[:16])
    assert np.linalg.norm(after - before) < np.linalg.norm(before)
    onnx.checker.check_model(onnx_ir.to_proto(model))


def test_external_data_are_found_by_the_model_itself(model, glyphnet, prepared, tmp_path):
    onnx_ir.save(model, tmp_path / "big.onnx", external_data="big.data")
    lazy = onnx_ir.load(tmp_path / "big.onnx")
    small = basisopt.optimize(lazy, PIPELINE).model
    expected = onnx.load_from_string(basisopt.optimize(glyphnet, PIPELINE).bytes)
    found = {name: value.const_value.numpy() for name, value in small.graph.initializers.items()}
    assert set(found) == {t.name for t in expected.graph.initializer}
    for tensor in expected.graph.initializer:
        np.testing.assert_array_equal(found[tensor.name], onnx.numpy_helper.to_array(tensor))
