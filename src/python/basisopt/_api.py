"""The functions of the package."""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

from . import _basisopt, _data
from ._errors import FileError, MissingFileError, PipelineError
from ._models import Read, path_of, read
from ._progress import Progress, shown
from ._result import Result

# What stands in the pipeline for ranks that are given as a dict, in place of a file's name.
_RANKS = "(given)"
# What all checkpoints begin with, of one run or of several, of this version or another: `src/train/checkpoint.rs`.
_CHECKPOINT = b"basisopt-c"
# Calibrated on, if nothing is said.
_SAMPLES = 1000


def optimize(
    model: Any,
    pipeline: str,
    *,
    calibrate: Any = None,
    samples: int | None = None,
    train: Any = None,
    labels: Any = None,
    original: Any = None,
    check: bool = True,
    tolerance: float | None = None,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    threads: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    scale: float | None = None,
    layout: str | None = None,
    channels: str | None = None,
    resize: int | None = None,
    crop: int | None = None,
    label_offset: int | None = None,
    config: str | os.PathLike[str] | bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress = None,
    output: str | os.PathLike[str] | None = None,
    base_dir: str | os.PathLike[str] | None = None,
) -> Result:
    """Runs a pipeline over a model, as `basisopt opt -p PIPELINE` does.

    The model is bytes, a path, an `onnx.ModelProto` or an `onnx_ir.Model`; what is given never changes. Passes with their
    options are text: `"@fold,factorize-conv:energy=0.9"` (see `passes()` and `presets()`).

    - `calibrate`, `samples`: what passes with `method=output` or `method=sequential` learn from, and how many of it (1000).
      For networks with several inputs an iterable of dicts from their names to arrays.
    - `train`, `labels`, `original`: images for `fine-tune` and `reconstruct`, and the model that training imitates if it is
      not this one. `checkpoint` is a file for the state of training, `resume=True` goes on from it.
    - `check=False` does not run the network before and after passes; `tolerance` is what exact passes may move outputs by
      (1e-4, relative).
    - `dims`: sizes for open dimensions, by name or as `"INPUT:AXIS"`. `threads`: for decompositions, all cores by default.
    - `mean`, `std`, `scale`, `layout`, `channels`, `resize`, `crop`, `label_offset`: how images of bytes become inputs. What
      is left open is read from `config`, or from `NAME.toml` beside a model that is a path (`config=False`: from nowhere).
    - `progress`: `None` shows a `tqdm` bar on a terminal, `True` always; or a function of stage, done, total and what.
    - `output`: also written there, whole or not at all. `base_dir`: the folder of the external data of a model in memory.

    Raises `basisopt.Error` and its subclasses, with the words of the command line.
    """
    source = read(model, base_dir)
    if not isinstance(pipeline, str):
        raise TypeError(f"pipeline: expected text, found {type(pipeline).__qualname__}")
    limit = _SAMPLES if samples is None else _count(samples, "samples")
    if train is None and (checkpoint is not None or resume):
        raise PipelineError("checkpoint and resume are for training: give train")
    options = _common(source, seed=seed, dims=dims, output=output, checkpoint=checkpoint, resume=resume)
    options |= _images(mean, std, scale, layout, channels, resize, crop, label_offset, config)
    options |= {
        "pipeline": pipeline,
        "check": check,
        "tolerance": tolerance,
        "threads": threads,
        "samples": samples,
        "calibrate": _data.calibration(calibrate, source.core, "calibrate", limit),
        "train": _data.images(train, labels, source.core, "train", None),
        "original": None if original is None else read(original).core,
    }
    with shown(progress) as callback:
        return Result(source, source.core.optimize(options | {"progress": callback}))


def compress(
    model: Any,
    data: Any = None,
    *,
    budget: str | None = None,
    energy: float | str | None = None,
    ranks: str | os.PathLike[str] | Mapping[str, int] | None = None,
    method: str | None = None,
    device: str | os.PathLike[str] | None = None,
    greedy: bool = False,
    multiple: int | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    fine_tune: str | bool | None = None,
    goal: float | None = None,
    calibration: Any = None,
    samples: int | None = None,
    labels: Any = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    scale: float | None = None,
    layout: str | None = None,
    channels: str | None = None,
    resize: int | None = None,
    crop: int | None = None,
    label_offset: int | None = None,
    config: str | os.PathLike[str] | bool | None = None,
    measure: bool = True,
    bench: bool = False,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    batch: int | None = None,
    engine: str | None = None,
    threads: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress = None,
    output: str | os.PathLike[str] | None = None,
    base_dir: str | os.PathLike[str] | None = None,
) -> Result:
    """Makes a network smaller: folds, chooses ranks for a budget, factorises, trains if asked to, and measures, as
    `basisopt compress` does.

    `data` is shared out: `samples` images (1000) to calibrate on, up to 1000 to choose by, up to 2000 to report on. It is

    - an array `[N, …]` of floats, as they are fed to the network, or of `uint8` images;
    - `(images, labels)`;
    - a path that `basisopt compress --data` takes;
    - any iterable of batches or single images, or of pairs or dicts of images and labels: arrays, PyTorch tensors, a
      `DataLoader`. It is read once, and only as far as it is needed; all of it with `fine_tune`, so it must end then.

    Without any of `budget` (`"macs=0.36"`, `"params=0.5"`, `"bytes=0.5"`, `"latency=0.6"`, `"energy=0.9"`, `"drop=1.0"`),
    `energy` and `ranks`, at most one point of accuracy is given up; without data, 95 % of every layer's energy is kept.

    - `ranks`: a file, or a dict from layers to ranks. `method`: `"weights"`, `"output"` or `"sequential"`. `device`: the file
      of a device's profile, for a budget of latency. `multiple`: ranks are rounded to multiples of it. `include`,
      `exclude`: globs of layers' names.
    - `fine_tune`: `True`, or options of the pass `fine-tune`, such as `"epochs=10:flip=on"`; `goal`: points that may be lost.
    - `calibration`: images to calibrate on instead of some of `data`. `labels`: those of `data`, or `False` for none.
    - `measure=False` measures nothing but sizes; `bench=True` measures latency as well, with `batch`, `engine` (`"stock"`,
      `"fused"`, `"fastest"`) and `threads` (1).

    Everything else is as in `optimize`.
    """
    source = read(model, base_dir)
    fine_tune = "" if fine_tune is True else None if fine_tune is False else fine_tune
    if fine_tune is None and (checkpoint is not None or resume):
        raise PipelineError("checkpoint and resume are for training: give fine_tune")
    n_samples = _SAMPLES if samples is None else _count(samples, "samples")
    # What is trained on is read to its end.
    limit = _data.n_needed(n_samples) if fine_tune is None else None
    options = _common(source, seed=seed, dims=dims, output=output, checkpoint=checkpoint, resume=resume)
    options |= _images(mean, std, scale, layout, channels, resize, crop, label_offset, config)
    ranks_path, ranks_text = _ranks(ranks)
    options |= {
        "budget": budget,
        "energy": _number(energy, "energy"),
        "ranks": ranks_path,
        "ranks_text": ranks_text,
        "method": method,
        # This machine, or a file.
        "device": device if device is None or device == "here" else _existing(device, "device"),
        "greedy": greedy,
        "multiple": multiple,
        "include": _globs(include, "include"),
        "exclude": _globs(exclude, "exclude"),
        "fine_tune": fine_tune,
        "goal": goal,
        "samples": samples,
        "batch": batch,
        "engine": engine,
        "threads": threads,
        "measure": measure,
        "bench": bench,
        "data": _data.images(data, labels, source.core, "data", limit),
        "calibration": _data.images(
            calibration, None if calibration is None else False, source.core, "calibration", n_samples
        ),
    }
    with shown(progress) as callback:
        return Result(source, source.core.compress(options | {"progress": callback}))


def inspect(
    model: Any, *, dims: Mapping[str, int] | None = None, base_dir: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """What a network costs: `file_bytes`, `params`, `param_bytes`, `macs` per image (`None` where a size is open), and its
    `layers` with name, kind, params and macs."""
    inspected: dict[str, Any] = json.loads(read(model, base_dir).core.inspect({"dims": _dims(dims)}))
    return inspected


def passes() -> list[dict[str, Any]]:
    """All passes: name, summary, fidelity (`exact`, `approximate`, `trained`) and options with what they accept."""
    listed: list[dict[str, Any]] = json.loads(_basisopt.passes())
    return listed


def presets() -> dict[str, str]:
    """Pipelines with a name of their own: `@NAME` in a pipeline stands for them."""
    return dict(_basisopt.presets())


def _common(
    source: Read, *, seed: int, dims: Mapping[str, int] | None, output: Any, checkpoint: Any, resume: bool
) -> dict[str, Any]:
    written = None if output is None else path_of(output, "output")
    if written is not None:
        _check_target(written, source.path)
    state = None if checkpoint is None else path_of(checkpoint, "checkpoint")
    if state is not None:
        _check_target(state, source.path)
        if written is not None and os.path.realpath(state) == os.path.realpath(written):
            raise PipelineError(f"checkpoint and output are one file, {state}; name another for one of them")
    if resume and (state is None or not os.path.isfile(state)):
        raise FileError(f"resume: there is no checkpoint ({state or 'give checkpoint=PATH'})")
    if state is not None and os.path.exists(state):
        if not _is_checkpoint(state):
            raise FileError(f"{state} is a file that is no checkpoint; name another")
        if not resume:
            raise FileError(
                f"{state} is the checkpoint of an earlier run: go on from it with resume=True, remove it, or name another"
            )
    return {"seed": seed, "dims": _dims(dims), "output": written, "checkpoint": state, "resume": resume}


def _check_target(target: str, source: str | None) -> None:
    """Refuses a file that cannot be written, before any work is done for it."""
    if source is not None and os.path.exists(target) and os.path.samefile(target, source):
        raise FileError(f"refusing to write {target}: it is the input model; choose another path")
    if os.path.isdir(target):
        raise FileError(f"cannot write {target}: it is a folder; name a file in it")
    folder = os.path.dirname(target)
    if folder and not os.path.isdir(folder):
        raise FileError(f"cannot write {target}: there is no folder {folder}; create it first")


def _is_checkpoint(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(_CHECKPOINT)) == _CHECKPOINT
    except OSError as e:
        raise FileError(f"cannot read {path}: {e.strerror}") from e


def _existing(value: Any, name: str) -> str:
    """The path of a file that a pass will read."""
    path = path_of(value, name)
    if not os.path.exists(path):
        raise MissingFileError(f"{name}: there is no file {path}")
    return path


def _images(
    mean: Any,
    std: Any,
    scale: Any,
    layout: Any,
    channels: Any,
    resize: Any,
    crop: Any,
    label_offset: Any,
    config: Any,
) -> dict[str, Any]:
    def values(value: Any) -> Any:
        return [value] if isinstance(value, numbers.Real) else None if value is None else list(value)

    return {
        "mean": values(mean),
        "std": values(std),
        "scale": scale,
        "layout": layout,
        "channels": channels,
        "resize": resize,
        "crop": crop,
        "label_offset": label_offset,
        "config": None if config is None or isinstance(config, bool) else path_of(config, "config"),
        "beside": config is not False,
    }


def _dims(dims: Mapping[str, int] | None) -> list[tuple[str, int]]:
    if dims is None:
        return []
    if not isinstance(dims, Mapping):
        raise TypeError(f"dims: expected a dict from names to sizes, found {type(dims).__qualname__}")
    return list(dims.items())


def _ranks(ranks: Any) -> tuple[str | None, str | None]:
    if ranks is None or not isinstance(ranks, Mapping):
        return None if ranks is None else _existing(ranks, "ranks"), None
    for name, rank in ranks.items():
        if not isinstance(name, str) or "#" in name or "\n" in name or not isinstance(rank, numbers.Integral):
            raise PipelineError(f"ranks: {name!r}: {rank!r}: expected the name of a layer and a whole number")
    return _RANKS, "".join(f"{rank} {name}\n" for name, rank in ranks.items())


def _globs(globs: str | Sequence[str] | None, name: str) -> str | None:
    if globs is None or isinstance(globs, str):
        return globs
    globs = list(globs)
    if not globs or not all(isinstance(g, str) for g in globs):
        raise TypeError(f"{name}: expected a glob or several")
    return "|".join(globs)


def _number(value: Any, name: str) -> str | None:
    """A number as the text of a pipeline has it."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, found {type(value).__qualname__}")
    return str(value)


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected a whole number, found {type(value).__qualname__}")
    if value < 1:
        raise PipelineError(f"{name}: expected at least 1, found {value}")
    return int(value)
