"""The names of the package, which are fetched when they are first used."""

import subprocess
import sys

import pytest

USES = {
    "attributes": "import basisopt; assert basisopt.optimize.__module__ == 'basisopt._api'; basisopt.Result",
    "names": "from basisopt import compress, Error, __version__; assert issubclass(Error, Exception) and __version__",
    "all": "from basisopt import *; compress, inspect, optimize, passes, presets, DataError, Result, __version__",
    "submodules": "from basisopt import snapshot, _basisopt; snapshot.take, _basisopt.Model",
    "a submodule": "import basisopt.snapshot; basisopt.snapshot.diff",
    "dir": "import basisopt; assert {*basisopt.__all__, '__doc__'} <= {*dir(basisopt)}",
    "help": "import basisopt, pydoc; assert 'class MissingFileError' in pydoc.plain(pydoc.render_doc(basisopt))",
    "except": """
import basisopt
try:
    basisopt.optimize(b"no model", "@fold")
except basisopt.DataError:
    raise
except basisopt.Error as e:
    assert type(e) is basisopt.ModelError
else:
    raise AssertionError
""",
    "pickle": """
import pickle, basisopt
error = pickle.loads(pickle.dumps(basisopt.DataError("a")))
assert type(error) is basisopt.DataError and basisopt.DataError is basisopt.DataError
assert pickle.loads(pickle.dumps(basisopt.optimize)) is basisopt.optimize
""",
    "slips": """
import basisopt
try:
    basisopt.optimise
except AttributeError as e:
    assert "optimise" in str(e)
else:
    raise AssertionError
""",
}


@pytest.mark.parametrize("use", USES)
def test_names_are_there_by_whatever_way(use):
    done = subprocess.run([sys.executable, "-c", USES[use]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_type_checkers_see_the_names_that_are_there():
    """Those are listed twice, once for each."""
    import ast

    import basisopt

    with open(basisopt.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    imported = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    ]
    assert sorted(imported) == basisopt.__all__ == sorted(basisopt.__all__)
    assert sorted(name for names in basisopt._HOMES.values() for name in names) == basisopt.__all__
