"""Snapshots: what a pipeline makes of a model, as text that is checked in and compared.

A snapshot is the `.bir` text of the resulting graph under a head of comments: remarks of the passes, and the cost of every
layer before and after. It has no values of weights. With pytest, the fixture `basisopt_snapshot` keeps snapshots in files:

    def test_what_is_exported(basisopt_snapshot):
        program = torch.onnx.export(net, (example,), dynamo=True)
        basisopt_snapshot(program)                   # what is read
        basisopt_snapshot(program, "@fold")          # and what folding makes of it

`pytest --basisopt-accept` stores them; from then on the test fails with a diff when they change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from . import _basisopt
from ._api import _dims
from ._models import read

__all__ = ["diff", "take"]


def take(
    model: Any,
    pipeline: str = "",
    *,
    name: str | None = None,
    dims: Mapping[str, int] | None = None,
    base_dir: str | os.PathLike[str] | None = None,
) -> str:
    """The snapshot of a pipeline over a model; an empty pipeline shows what is read.

    The model is what `basisopt.optimize` takes; what is given never changes. `name` stands for it in the text: by default
    the file's name, or "the model". `dims` are sizes for open dimensions, for the costs and for passes that go by them; the
    batch is 1 if it is not given. A pass that fails is no exception but what the snapshot says, unless a file that it was to
    read is not there. No network is run.
    """
    source = read(model, base_dir)
    if not isinstance(pipeline, str):
        raise TypeError(f"pipeline: expected text, found {type(pipeline).__qualname__}")
    if name is None:
        name = "the model" if source.path is None else os.path.basename(source.path)
    elif not isinstance(name, str):
        raise TypeError(f"name: expected text, found {type(name).__qualname__}")
    return _basisopt.take(source.core, name, pipeline, {"dims": _dims(dims)})


def diff(stored: str, new: str, *, context: int = 3) -> str:
    """What differs between two snapshots, as a unified diff with so many unchanged lines around it. Empty if nothing does
    but numbers that were computed in floating point, by one in their last printed digit."""
    return _basisopt.diff(stored, new, context)
