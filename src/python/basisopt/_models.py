"""Models of all kinds, in and out: bytes, paths, `onnx.ModelProto`, `onnx_ir.Model`, and what `torch.onnx.export` returns."""

from __future__ import annotations

import os
import sys
from typing import Any, Callable, NamedTuple

from . import _basisopt
from ._errors import ModelError

# A protobuf message holds no more.
_TOO_LARGE = (
    "the model cannot be serialised: {}. A message holds at most 2 GiB; write the model with external data "
    "(onnx.save_model(…, save_as_external_data=True)) and give its path"
)


class Read(NamedTuple):
    """A model that was read."""

    core: _basisopt.Model
    # Makes a model of the caller's kind from bytes.
    back: Callable[[bytes], Any]
    # What was given, if it was a path.
    path: str | None


def read(model: Any, base_dir: Any = None) -> Read:
    """Reads a model of any kind. `base_dir` is the folder of its external data, where the model does not know it."""
    folder = None if base_dir is None else path_of(base_dir, "base_dir")
    if isinstance(model, (bytes, bytearray, memoryview)):
        return Read(_basisopt.Model.from_bytes(bytes(model), "the model", folder), _same, None)
    if isinstance(model, (str, os.PathLike)):
        path = path_of(model, "model")
        if folder is not None:
            raise TypeError("base_dir: a path has a folder already; base_dir goes with a model in memory")
        return Read(_basisopt.Model.read(path), _same, path)
    if _is_onnx_ir(model):
        return _read_onnx_ir(model, folder)
    # torch.onnx.export(…, dynamo=True) returns a program that holds an onnx_ir.Model.
    if _is_onnx_ir(getattr(model, "model", None)):
        return _read_onnx_ir(model.model, folder)
    if callable(getattr(model, "SerializeToString", None)) and callable(getattr(type(model), "FromString", None)):
        content = _serialized(model)
        return Read(_basisopt.Model.from_bytes(content, "the model", folder), type(model).FromString, None)
    raise TypeError(
        "model: expected bytes, a path, an onnx.ModelProto or an onnx_ir.Model, "
        f"found {type(model).__module__}.{type(model).__qualname__}"
    )


def path_of(value: Any, name: str) -> str:
    """A path as text."""
    try:
        path = os.fsdecode(os.fspath(value))
    except TypeError:
        raise TypeError(f"{name}: expected a path, found {type(value).__qualname__}") from None
    if not path or "\0" in path:
        raise ValueError(f"{name}: {path!r} is no path")
    return path


def _same(content: bytes) -> bytes:
    return content


def _serialized(proto: Any) -> bytes:
    try:
        content = proto.SerializeToString()
    # protobuf's own EncodeError is no ValueError, and cannot be imported where there is no protobuf.
    except Exception as e:
        raise ModelError(_TOO_LARGE.format(e)) from e
    if not isinstance(content, bytes):
        raise TypeError(f"model: SerializeToString() gave {type(content).__qualname__}, not bytes")
    return content


def _is_onnx_ir(model: Any) -> bool:
    # Nobody who has such a model has not imported its module.
    onnx_ir = sys.modules.get("onnx_ir")
    return onnx_ir is not None and isinstance(model, onnx_ir.Model)


def _read_onnx_ir(model: Any, folder: str | None) -> Read:
    import onnx_ir

    folders = {
        os.fspath(value.const_value.base_dir) or "."
        for graph in model.graphs()
        for value in graph.initializers.values()
        if isinstance(value.const_value, onnx_ir.ExternalTensor)
    }
    if folder is None and len(folders) == 1:
        (folder,) = folders
    elif folder is None and folders:
        raise ModelError(
            f"the model's external data lie in several folders ({', '.join(sorted(folders))}); load them "
            "(onnx_ir.external_data.load_to_model), or save the model and give its path"
        )

    def back(content: bytes) -> Any:
        import onnx

        result = onnx_ir.serde.deserialize_model(onnx.ModelProto.FromString(content))
        if folder is not None:
            onnx_ir.external_data.set_base_dir(result.graph, folder)
        return result

    content = _serialized(onnx_ir.serde.serialize_model(model))
    return Read(_basisopt.Model.from_bytes(content, "the model", folder), back, None)
