"""The examples of the documents run."""

import re
import shutil

import basisopt
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
    for sign, package in (("import torch", "torch"), ("import onnx_ir", "onnx_ir"), ("dynamo=True", "onnxscript")):
        if sign in code:
            pytest.importorskip(package)
    shutil.copytree(ROOT / "fixtures" / "models", tmp_path / "fixtures" / "models")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {})
    for name in saved(code):
        assert basisopt.inspect(tmp_path / name)["params"] > 0


def saved(code):
    """The files that an example writes."""
    return re.findall(r"\.save\(\"([^\"]+)\"\)", code)


def test_there_are_examples():
    assert len(EXAMPLES) >= 5
    assert sum(bool(saved(example.values[0])) for example in EXAMPLES) >= 4
