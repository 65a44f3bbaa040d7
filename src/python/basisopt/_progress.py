"""Progress: through `tqdm` where it is installed, or through a function of the caller's."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Callable, Optional, Union

# Called with the stage (a pass, or work between passes), units done and in all (0 and 0 as a stage begins), and what is
# being worked at.
ProgressCallback = Callable[[str, int, int, str], Any]
Progress = Optional[Union[bool, ProgressCallback]]


# Units are of very different length, so a rate would say nothing.
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class shown:
    """A context that gives the callback for the compiled half, and takes bars away in the end."""

    def __init__(self, progress: Progress) -> None:
        self._bars: _Bars | None = None
        self._callback: ProgressCallback | None = None
        if progress is None or progress is True:
            bar = _tqdm()
            if progress and bar is None:
                raise ImportError("progress=True needs tqdm: pip install tqdm, or give a function")
            if bar is not None and (progress or sys.stderr is not None and sys.stderr.isatty()):
                self._bars = _Bars(bar)
                self._callback = self._bars.update
        elif callable(progress):
            self._callback = progress
        elif progress is not False:
            raise TypeError(
                f"progress: expected True, False, None or a function, found {type(progress).__qualname__}"
            )

    def __enter__(self) -> ProgressCallback | None:
        return self._callback

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.close()


def _tqdm() -> Any:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return None
    return tqdm


class _Bars:
    """One bar for each stage that takes long enough to have progress."""

    def __init__(self, bar: Any) -> None:
        self._make = bar
        self._bar: Any = None
        self._stage = ""

    def update(self, stage: str, done: int, total: int, what: str) -> None:
        if self._bar is not None and (stage != self._stage or total != self._bar.total):
            self.close()
        if total == 0:
            return
        if self._bar is None:
            self._stage = stage
            self._bar = self._make(total=total, desc=stage, leave=False, bar_format=_FORMAT)
        self._bar.set_postfix_str(what, refresh=False)
        self._bar.n = min(done, total)
        self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
