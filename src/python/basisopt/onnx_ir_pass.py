"""basisopt among the passes of `onnx_ir`, for pipelines of ONNX Script and the like.

    import onnx_ir.passes.common as common
    from basisopt.onnx_ir_pass import OptimizePass

    pipeline = onnx_ir.passes.Sequential(
        common.IdentityEliminationPass(),
        OptimizePass("@fold,factorize-conv:energy=0.9"),
        common.RemoveUnusedNodesPass(),
    )
    model = pipeline(model).model

Needs the package `onnx-ir` (`pip install basisopt[onnx-ir]`).
"""

from __future__ import annotations

from typing import Any

import onnx_ir

from ._api import optimize
from ._result import Result

__all__ = ["OptimizePass"]


class OptimizePass(onnx_ir.passes.InPlacePass):
    """Runs a pipeline of basisopt over an `onnx_ir.Model`, in place.

    The keyword arguments are those of `basisopt.optimize`. After a run `result` has the report and the remarks. If the
    pipeline fails the model is as it was, and `onnx_ir` reports the failure with basisopt's exception as its cause.
    """

    def __init__(self, pipeline: str, **options: Any) -> None:
        self.pipeline = pipeline
        self.options = options
        #: What the last run said.
        self.result: Result | None = None

    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        """Runs the pipeline, and takes over what it made."""
        self.result = optimize(model, self.pipeline, **self.options)
        if self.result.report["rewrites"] == 0:
            return onnx_ir.passes.PassResult(model, modified=False)
        new = self.result.model
        model.graph = new.graph
        model.functions.clear()
        model.functions.update(new.functions)
        model.ir_version = new.ir_version
        model.metadata_props.clear()
        model.metadata_props.update(new.metadata_props)
        return onnx_ir.passes.PassResult(model, modified=True)
