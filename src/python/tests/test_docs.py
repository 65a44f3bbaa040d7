"""The examples of the documents run."""

import os
import re
import shutil

import pytest
from conftest import ROOT

DOCUMENTS = [ROOT / "src" / "python" / "README.md", ROOT / "docs" / "python.md"]
EXAMPLES = [
    pytest.param(code, id=f"{path.name}-{i}")
    for path in DOCUMENTS
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example(code, tmp_path, monkeypatch):
    for package in ("torch", "onnx_ir"):
        if f"import {package}" in code:
            pytest.importorskip(package)
    shutil.copytree(ROOT / "fixtures" / "models", tmp_path / "fixtures" / "models")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {})
    assert os.listdir(tmp_path)


def test_there_are_examples():
    assert len(EXAMPLES) >= 5
