"""Makes a trained convolutional network smaller and faster on the device it will run on: ONNX in, ONNX out.

    import basisopt

    folded = basisopt.optimize("net.onnx", "@fold")
    small = basisopt.compress(torch_onnx_program, loader, budget="macs=0.5")
    small.save("small.onnx")

`optimize` runs a pipeline of passes, `compress` the whole recipe. `inspect` says what a network costs, `passes` what can be
done to it. `basisopt.onnx_ir_pass.OptimizePass` runs a pipeline among the passes of `onnx_ir`.
"""

from ._api import compress, inspect, optimize, passes, presets
from ._basisopt import __version__
from ._errors import (
    CheckError,
    DataError,
    Error,
    FileError,
    MissingFileError,
    ModelError,
    PipelineError,
)
from ._result import Result

__all__ = [
    "CheckError",
    "DataError",
    "Error",
    "FileError",
    "MissingFileError",
    "ModelError",
    "PipelineError",
    "Result",
    "__version__",
    "compress",
    "inspect",
    "optimize",
    "passes",
    "presets",
]
