"""What the tests share: the model of the fixtures, images for it, and ways to run a model."""

from __future__ import annotations

import os
import pathlib
from types import ModuleType

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
MODELS = ROOT / "fixtures" / "models"


@pytest.fixture(scope="session")
def onnx() -> ModuleType:
    """The package, for the tests that need it."""
    return pytest.importorskip("onnx")


@pytest.fixture(scope="session")
def glyphnet_path() -> pathlib.Path:
    return MODELS / "glyphnet.onnx"


@pytest.fixture(scope="session")
def glyphnet(glyphnet_path: pathlib.Path) -> bytes:
    return glyphnet_path.read_bytes()


@pytest.fixture(scope="session")
def glyphs() -> tuple[np.ndarray, np.ndarray]:
    """Images of bytes and their labels."""
    file = np.load(MODELS / "glyphs_test.npz")
    images = next(file[k] for k in ("images", "x", "data", "inputs") if k in file)
    labels = next(file[k] for k in ("labels", "label", "y", "targets") if k in file)
    return images, labels


@pytest.fixture(scope="session")
def settings() -> dict[str, object]:
    """How glyphnet's images become inputs, as its settings file says."""
    return {"mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3], "layout": "nchw", "label_offset": 0}


@pytest.fixture(scope="session")
def prepared(glyphs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The same images as the network takes them, [N, 3, 32, 32]."""
    images = glyphs[0].astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(((images - np.float32(0.5)) / np.float32(0.3)).transpose(0, 3, 1, 2))


@pytest.fixture(scope="session")
def program() -> str:
    """The command line, built from the same sources."""
    path = os.environ.get("BASISOPT")
    if not path:
        pytest.skip("BASISOPT does not name the program")
    return path
