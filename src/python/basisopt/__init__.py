"""Makes a trained convolutional network smaller and faster on the device it will run on: ONNX in, ONNX out.

    import basisopt

    folded = basisopt.optimize("net.onnx", "@fold")
    small = basisopt.compress(torch_onnx_program, loader, budget="macs=0.5")
    small.save("small.onnx")

`optimize` runs a pipeline of passes, `compress` the whole recipe. `inspect` says what a network costs, `passes` what can be
done to it. `basisopt.onnx_ir_pass.OptimizePass` runs a pipeline among the passes of `onnx_ir`.
"""

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
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
else:
    # Names are fetched when they are first used. pytest imports this package for its plugin wherever it is installed; tests
    # that are none of ours do not pay for NumPy and the compiled half.
    _HOMES = {
        "_api": ("compress", "inspect", "optimize", "passes", "presets"),
        "_basisopt": ("__version__",),
        "_errors": (
            "CheckError",
            "DataError",
            "Error",
            "FileError",
            "MissingFileError",
            "ModelError",
            "PipelineError",
        ),
        "_result": ("Result",),
    }

    def __getattr__(name):
        from importlib import import_module

        for home, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})
