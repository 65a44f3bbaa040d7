"""Snapshots, by function and by the plugin for pytest."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

import basisopt
from basisopt import snapshot

SMALL = "@fold,factorize-conv:energy=0.9"


def run(folder, *arguments):
    """pytest in a folder of its own. Returns the exit code and what it printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "basisopt.pytest_plugin", "-p", "no:cacheprovider", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path, glyphnet_path):
    shutil.copy(glyphnet_path, tmp_path / "net.onnx")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def snapshots(folder):
    stored = folder / "__snapshots__"
    return sorted(p.relative_to(stored).as_posix() for p in stored.rglob("*.snap"))


def test_a_snapshot_shows_ranks_costs_and_the_graph(glyphnet_path):
    text = snapshot.take(glyphnet_path, SMALL)
    assert text.startswith(f"// snapshot: 1\n// model: glyphnet.onnx\n// passes: {SMALL}\n")
    result = basisopt.optimize(glyphnet_path, SMALL)
    before, after = result.report["before"], result.report["after"]
    assert f"total: {before['macs']} -> {after['macs']} multiply-adds" in text
    applied = [r for r in result.remarks if r["kind"] == "applied" and r["pass"] == "factorize-conv"]
    assert len(applied) >= 3
    for remark in applied:
        assert f"{remark['node']}: {remark['message']}" in text
    assert "\ngraph @" in text and text.endswith("}\n")


def test_all_kinds_of_models_have_the_same_snapshot(glyphnet, glyphnet_path):
    expected = snapshot.take(glyphnet_path, SMALL, name="net")
    assert snapshot.take(glyphnet, SMALL, name="net") == expected
    onnx = pytest.importorskip("onnx")
    proto = onnx.load_from_string(glyphnet)
    assert snapshot.take(proto, SMALL, name="net") == expected
    assert proto == onnx.load_from_string(glyphnet)


def test_slips_are_errors_and_failures_of_passes_are_snapshots(glyphnet):
    with pytest.raises(basisopt.PipelineError, match="did you mean"):
        snapshot.take(glyphnet, "factorise-conv")
    with pytest.raises(basisopt.PipelineError, match="dims has"):
        snapshot.take(glyphnet, dims={"nowhere": 3})
    with pytest.raises(basisopt.ModelError):
        snapshot.take(b"no model")
    with pytest.raises(TypeError, match="pipeline"):
        snapshot.take(glyphnet, 3)
    with pytest.raises(TypeError, match="name"):
        snapshot.take(glyphnet, name=3)
    with pytest.raises(basisopt.PipelineError, match="nowhere.txt"):
        snapshot.take(glyphnet, "factorize-conv:ranks=nowhere.txt")
    failed = snapshot.take(glyphnet, "fine-tune")
    assert "// error: fine-tune: " in failed and "graph @" not in failed


def test_noise_is_no_difference():
    stored = "  %w = f32[16,3,3,3] norm 12.34\n"
    assert snapshot.diff(stored, stored.replace("12.34", "12.35")) == ""
    assert "+  %w = f32[16,3,3,3] norm 12.44\n" in snapshot.diff(stored, stored.replace("12.34", "12.44"))


def test_a_snapshot_is_missing_then_stored_then_held(project):
    test = project / "test_net.py"
    test.write_text("def test_small(basisopt_snapshot):\n    basisopt_snapshot('net.onnx', '@fold')\n")
    code, said = run(project)
    assert code == 1 and "no snapshot is stored yet; pytest --basisopt-accept stores it" in said
    assert snapshots(project) == []
    code, said = run(project, "--basisopt-accept")
    assert code == 0, said
    assert snapshots(project) == ["test_net/test_small.snap"]
    stored = (project / "__snapshots__/test_net/test_small.snap").read_text()
    assert stored == snapshot.take(project / "net.onnx", "@fold", name="test_small")
    assert run(project)[0] == 0

    test.write_text(test.read_text().replace("'@fold'", "''"))
    code, said = run(project)
    assert code == 1
    assert "__snapshots__/test_net/test_small.snap: different\n" in said.replace(os.sep, "/")
    assert "-// passes: @fold\n" in said and "+// passes:" in said
    assert "Traceback" not in said and "pytest_plugin.py" not in said
    assert (project / "__snapshots__/test_net/test_small.snap").read_text() == stored


def test_every_call_of_every_test_has_a_file_of_its_own(project):
    (project / "test_net.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('pipeline', ['', '@fold', 'dead-code,fold-batch-norm'])\n"
        "def test_net(basisopt_snapshot, pipeline):\n"
        "    basisopt_snapshot('net.onnx', pipeline)\n"
        "class TestMore:\n"
        "    def test_net(self, basisopt_snapshot):\n"
        "        basisopt_snapshot('net.onnx')\n"
        "        basisopt_snapshot('net.onnx', 'dead-code')\n"
        "        basisopt_snapshot('net.onnx', '@fold', name='folded')\n"
    )
    code, said = run(project, "--basisopt-accept")
    assert code == 0, said
    assert snapshots(project) == [
        "test_net/TestMore-test_net-2.snap",
        "test_net/TestMore-test_net-folded.snap",
        "test_net/TestMore-test_net.snap",
        "test_net/test_net-dead-code-fold-batch-norm.snap",
        "test_net/test_net-fold.snap",
        "test_net/test_net.snap",
    ]
    assert run(project)[0] == 0


def test_two_snapshots_do_not_share_a_file(project):
    (project / "test_net.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('which', ['a/b', 'a:b'])\n"
        "def test_net(basisopt_snapshot, which):\n"
        "    basisopt_snapshot('net.onnx')\n"
    )
    code, said = run(project, "--basisopt-accept")
    assert code == 1 and "1 passed" in said
    assert "two snapshots would share test_net-a-b.snap" in said


@pytest.mark.parametrize(
    ("calls", "file"),
    [
        ("name='a'; name='a'", "test_net-a.snap"),
        ("name='3'; name='b'; ", "test_net-3.snap"),
        ("; name=''", "test_net.snap"),
        ("name='a'; name='A'", "test_net-A.snap"),
    ],
)
def test_nor_do_two_of_one_test(project, calls, file):
    lines = "".join(f"    basisopt_snapshot('net.onnx', {call.strip()})\n" for call in calls.split(";"))
    (project / "test_net.py").write_text(f"def test_net(basisopt_snapshot):\n{lines}")
    code, said = run(project, "--basisopt-accept")
    assert code == 1 and f"test_net.py::test_net: two of its snapshots would share {file}" in said


def test_a_test_that_is_run_again_has_its_files_already(project):
    (project / "test_net.py").write_text("def test_net(basisopt_snapshot):\n    basisopt_snapshot('net.onnx')\n")
    code, said = run(project, "--basisopt-accept", "--keep-duplicates", "test_net.py", "test_net.py")
    assert code == 0 and "2 passed" in said


LIST = """
[pipelines]
import = ""
small = "@fold,factorize-conv:energy=0.9"

[[case]]
model = "*.onnx"
"""


def test_a_list_that_is_named_is_run(project, program):
    (project / "basisopt-snapshots.toml").write_text(LIST)
    (project / "test_net.py").write_text("def test_nothing():\n    pass\n")
    # The program stores what pytest holds against it.
    subprocess.run([program, "snapshot", "accept"], cwd=project, check=True, capture_output=True)
    code, said = run(project, "basisopt-snapshots.toml")
    assert code == 0 and "3 passed" in said
    code, said = run(project)
    assert code == 0 and "1 passed" in said

    (project / "snapshots" / "net" / "gone.snap").write_text("// snapshot: 1\n")
    stored = project / "snapshots" / "net" / "small.snap"
    was = stored.read_text()
    stored.write_text(was.replace("energy=0.9", "energy=0.8"))
    (project / "snapshots" / "net" / "import.snap").unlink()
    code, said = run(project, "basisopt-snapshots.toml")
    assert code == 1 and "3 failed" in said
    assert "net/small: different\n" in said and "net/import: no snapshot is stored yet" in said
    assert "gone.snap" in said
    # What is not wanted any more is not removed by accepting.
    code, said = run(project, "basisopt-snapshots.toml", "--basisopt-accept")
    assert code == 1 and "1 failed, 2 passed" in said
    assert stored.read_text() == was
    done = subprocess.run([program, "snapshot", "check"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 1 and "2 equal" in done.stdout + done.stderr


def test_a_list_and_tests_in_one_folder_leave_each_other_alone(project, program):
    (project / "basisopt-snapshots.toml").write_text(LIST)
    (project / "test_net.py").write_text("def test_net(basisopt_snapshot):\n    basisopt_snapshot('net.onnx')\n")
    command = [program, "snapshot", "accept", "--remove-orphans"]
    # Either may come first.
    for _ in range(2):
        code, said = run(project, "--basisopt-accept")
        assert code == 0, said
        subprocess.run(command, cwd=project, check=True, capture_output=True)
    assert snapshots(project) == ["test_net/test_net.snap"]
    subprocess.run([program, "snapshot", "check"], cwd=project, check=True, capture_output=True)
    code, said = run(project, "basisopt-snapshots.toml", "test_net.py")
    assert code == 0 and "4 passed" in said


def test_a_list_that_is_wrong_says_so(project):
    (project / "basisopt-snapshots.toml").write_text(LIST.replace("model", "modle"))
    code, said = run(project, "basisopt-snapshots.toml")
    assert code == 2 and 'did you mean "model"' in said


def test_the_example_of_the_documents(project):
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    guide = (ROOT / "docs" / "snapshots.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    seeded = code.replace("    net = ", "    torch.manual_seed(1)\n    net = ")
    (project / "test_export.py").write_text(seeded)
    code, said = run(project, "--basisopt-accept")
    assert code == 0, said
    assert snapshots(project) == [
        "test_export/test_what_is_exported-folded.snap",
        "test_export/test_what_is_exported.snap",
    ]
    assert run(project)[0] == 0


def test_the_plugin_is_registered():
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        installed = distribution("basisopt")
    except PackageNotFoundError:
        pytest.skip("the package is not installed, only on the path")
    assert [e.value for e in installed.entry_points if e.group == "pytest11"] == ["basisopt.pytest_plugin"]


def python(script):
    """What a Python of its own prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_plugin_costs_nothing_until_it_is_used():
    heavy = "print([m for m in ('numpy', 'basisopt._basisopt', 'basisopt._api') if m in sys.modules])"
    assert python(f"import sys, basisopt.pytest_plugin; {heavy}") == "[]\n"


def test_the_plugin_leaves_old_versions_of_pytest_alone():
    script = """
import pytest
if hasattr(pytest, "StashKey"):
    del pytest.StashKey
import basisopt.pytest_plugin as plugin
print([n for n in dir(plugin) if n.startswith("pytest_") or n == "basisopt_snapshot"])
"""
    assert python(script) == "[]\n"
