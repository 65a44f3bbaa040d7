"""What comes out: the model and what was done to it."""

from __future__ import annotations

import json
import os
from typing import Any

from . import _basisopt
from ._models import Read, path_of


class Result:
    """A model that was optimised or compressed, with its report.

    `report` is a dict: what `basisopt opt --format json` or `basisopt compress --format json` prints, without the names of
    files. Numbers that are none (an infinite deviation) are `None`.
    """

    report: dict[str, Any]

    def __init__(self, read: Read, outcome: tuple[str, bytes | None, _basisopt.Model | None]) -> None:
        text, self._bytes, self._core = outcome
        self.report = json.loads(text)
        self._back = read.back

    @property
    def bytes(self) -> bytes:
        """The model as bytes. Data files that it came with still hold what was not changed; everything else is inside."""
        if self._bytes is None:
            assert self._core is not None
            self._bytes = self._core.to_bytes()
        return self._bytes

    @property
    def model(self) -> Any:
        """The model, of the kind that was given: bytes for bytes and for paths, or an `onnx.ModelProto` or an
        `onnx_ir.Model`, made anew at every call."""
        return self._back(self.bytes)

    @property
    def remarks(self) -> list[dict[str, Any]]:
        """What the passes said about each layer: pass, node, kind (`applied`, `refused`, `note`), code, message, values."""
        remarks: list[dict[str, Any]] = self.report["remarks"]
        return remarks

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model, whole or not at all. A model that came with data files has its own beside it."""
        target = path_of(path, "path")
        if self._core is not None:
            self._core.write(target)
        else:
            _basisopt.write(self.bytes, target)

    def __repr__(self) -> str:
        before, after = self.report["before"], self.report["after"]

        def change(key: str, unit: str) -> str:
            return f"{before[key]} → {after[key]} {unit}"

        parts = [change("file_bytes", "bytes"), change("params", "parameters")]
        if before["macs"] is not None and after["macs"] is not None:
            parts.append(change("macs", "multiply-adds"))
        return f"<basisopt.Result: {', '.join(parts)}>"
