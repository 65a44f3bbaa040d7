"""Snapshots of models in pytest: the fixture `basisopt_snapshot`, lists of cases as tests, and `--basisopt-accept`.

pytest imports this at every start, for whatever tests: the compiled half is imported by what uses it.
"""

from __future__ import annotations

import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from . import _basisopt

# The list of cases of `basisopt snapshot`.
_LIST = "basisopt-snapshots.toml"
_ACCEPT = "--basisopt-accept"
# The longest name of a test in a name of a file.
_LONGEST = 150
# Not `snapshots`, which is the list's: its files that no case has are orphans, and are removed on request.
_FOLDER = "__snapshots__"
# pytest before 7 has no stash, and other hooks.
_IS_SERVED = hasattr(pytest, "StashKey")
if _IS_SERVED:
    # Which test has a file, for as long as pytest runs.
    _TAKEN = pytest.StashKey[dict[pathlib.Path, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("basisopt", "snapshots of models").addoption(
        _ACCEPT,
        action="store_true",
        help="store the snapshots of models that are missing or differ, instead of failing",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TAKEN] = {}


class Snapshots:
    """The snapshots of one test. Called with a model and a pipeline it holds what comes out against the test's file,
    `__snapshots__/MODULE/TEST.snap` beside the module; the second call's is `TEST-2.snap`, and so on, or `TEST-NAME.snap`."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self._n = 0
        self._files: set[pathlib.Path] = set()

    def __call__(
        self,
        model: Any,
        pipeline: str = "",
        *,
        name: str | None = None,
        dims: Mapping[str, int] | None = None,
        base_dir: Any = None,
    ) -> None:
        __tracebackhide__ = True
        from . import _basisopt
        from .snapshot import take

        file = self._file(name)
        text = take(model, pipeline, name=file.stem, dims=dims, base_dir=base_dir)
        accept = self._request.config.getoption(_ACCEPT)
        _judge(*_basisopt.hold(str(file), text, accept), _shown(file, self._request.config))

    def _file(self, name: str | None) -> pathlib.Path:
        __tracebackhide__ = True
        self._n += 1
        node = self._request.node
        # Of a test in a class, and of one with parameters, the name tells it from others.
        test = node.nodeid.partition("::")[2]
        if name is not None:
            suffix = f"-{name}"
        else:
            suffix = "" if self._n == 1 else f"-{self._n}"
        file: pathlib.Path = node.path.parent / _FOLDER / node.path.stem / f"{_slug(test + suffix)}.snap"
        # Not every file system tells `A` from `a`.
        key = file.with_name(file.name.lower())
        if key in self._files:
            pytest.fail(f"{node.nodeid}: two of its snapshots would share {file.name}; give one another name=", pytrace=False)
        self._files.add(key)
        here = f"{node.nodeid}, snapshot {self._n if name is None else name}"
        # A test that is run again has its files already.
        other = node.config.stash[_TAKEN].setdefault(key, here)
        if other != here:
            pytest.fail(f"two snapshots would share {file.name}: of {other}, and of {here}; give one a name=", pytrace=False)
        return file


@pytest.fixture
def basisopt_snapshot(request: pytest.FixtureRequest) -> Snapshots:
    """Holds what a pipeline makes of a model against the snapshot that is stored for this test."""
    return Snapshots(request)


def pytest_collect_file(file_path: pathlib.Path, parent: pytest.Collector) -> pytest.Collector | None:
    """A list that is named, on the command line or in `testpaths`, is a file of tests. Others are left to the program."""
    if file_path.name.endswith(_LIST) and parent.session.isinitpath(file_path):
        collected: pytest.Collector = List.from_parent(parent, path=file_path)
        return collected
    return None


class List(pytest.File):
    """A list of models and pipelines."""

    def collect(self) -> Iterator[pytest.Item]:
        from . import _basisopt

        cases = _basisopt.Cases.load(str(self.path))
        for index, name in enumerate(cases.names()):
            yield Case.from_parent(self, name=name, cases=cases, index=index)
        yield Orphans.from_parent(self, name="orphans", cases=cases)


class Case(pytest.Item):
    """One model under one pipeline."""

    def __init__(self, *, cases: _basisopt.Cases, index: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._cases, self._index = cases, index

    def runtest(self) -> None:
        status, text = self._cases.check(self._index, self.config.getoption(_ACCEPT))
        _judge(status, text, self.name)

    def reportinfo(self) -> tuple[pathlib.Path, int | None, str]:
        return self.path, None, self.name


class Orphans(pytest.Item):
    """That every stored snapshot has a case."""

    def __init__(self, *, cases: _basisopt.Cases, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._cases = cases

    def runtest(self) -> None:
        orphans = self._cases.orphans()
        if orphans:
            shown = "\n".join(_shown(pathlib.Path(path), self.config) for path in orphans)
            pytest.fail(f"no case has these snapshots any more; remove them:\n{shown}", pytrace=False)

    def reportinfo(self) -> tuple[pathlib.Path, int | None, str]:
        return self.path, None, self.name


def _judge(status: str, text: str, what: str) -> None:
    """Fails the test unless the snapshot is as stored or was stored now."""
    __tracebackhide__ = True
    if status == "missing":
        pytest.fail(f"{what}: no snapshot is stored yet; pytest {_ACCEPT} stores it", pytrace=False)
    if status == "different":
        pytest.fail(f"{what}: different\n{text}\nIf this is as it should be: pytest {_ACCEPT}", pytrace=False)
    if status == "failed":
        pytest.fail(f"{what}: {text}", pytrace=False)


def _shown(file: pathlib.Path, config: pytest.Config) -> str:
    return str(file.relative_to(config.rootpath)) if file.is_relative_to(config.rootpath) else str(file)


def _slug(text: str) -> str:
    """A text as the name of a file."""
    name = re.sub(r"[^A-Za-z0-9_+=.-]+", "-", text).strip("-.")
    # Files have names of 255 bytes at most.
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{zlib.crc32(text.encode()):08x}"


if not _IS_SERVED:
    # An old pytest would take these for mistakes, in tests that have nothing to do with this package.
    del pytest_addoption, pytest_configure, pytest_collect_file, basisopt_snapshot
