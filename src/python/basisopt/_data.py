"""Images and other inputs of all kinds: arrays, tensors, paths, iterables of batches or of single images.

An iterable is read only as far as it is needed, and only once. What was read is packed into plain bytes, so that the work
can go on without the GIL whatever becomes of the arrays.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from . import _basisopt
from ._errors import DataError
from ._models import path_of

# Names under which a dict holds images, and labels.
_IMAGES = ("image", "images", "img", "pixel_values", "input", "inputs", "x", "data")
_LABELS = ("label", "labels", "target", "targets", "y")

# Chosen by and reported on, beside what is calibrated on: as many as the command line uses at most.
_JUDGED = 1000
_REPORTED = 2000

# Values of an array that are looked at in one go.
_STRIDE = 1 << 20


def n_needed(samples: int) -> int:
    """How many images a run without training looks at, at most."""
    return samples + _JUDGED + _REPORTED


def images(data: Any, labels: Any, core: _basisopt.Model, name: str, limit: int | None) -> dict[str, Any] | None:
    """Images for a network with one input, of any kind, as the compiled half takes them.

    `labels` are of their own (an array or a path), or `False` where those of the data are to be ignored. `limit` is how
    many are read from an iterable.
    """
    if data is None:
        if labels is not None and labels is not False:
            raise TypeError("labels: labels of what? give data as well")
        return None
    if isinstance(data, (str, os.PathLike)):
        path = path_of(data, name)
        if labels is None or labels is False:
            return {"path": path}
        if not isinstance(labels, (str, os.PathLike)):
            raise TypeError("labels: labels of images on disk are on disk as well: give a path")
        return {"path": path, "labels": path_of(labels, "labels")}
    if isinstance(labels, (str, os.PathLike)):
        raise TypeError("labels: labels of images in memory are in memory as well: give an array")
    if isinstance(data, tuple) and len(data) == 2 and _is_array(data[0]) and not _is_sample(data[1], data[0]):
        # Images, and labels or None.
        data, own = data
        labels = own if labels is None else labels
    if _is_array(data):
        array = _checked(_array(data), name)
        if array.ndim < 2:
            raise DataError(f"{name}: an array of shape {list(array.shape)} holds no images; expected [N, …]")
        if len(array) == 0:
            raise DataError(f"{name}: there are no images in an array of shape {list(array.shape)}")
        _check_finite(array, name, 0)
        packed: dict[str, Any] = {"name": name, "array": _plain(array)}
    else:
        packed, own = _collected(data, core, name, limit, want_labels=labels is not False)
        labels = own if labels is None else labels
    n = packed["array"][1][0]
    if labels is not None and labels is not False:
        values = _labels(labels, n, name, at_least=not _is_array(data))
        packed["labels"] = values[:n]
    return packed


def inputs(data: Any, core: _basisopt.Model, name: str, limit: int) -> dict[str, Any]:
    """Arrays for every input of a network: an iterable of dicts from names of inputs to arrays."""
    described = core.inputs()
    names = [n for n, _, _ in described]
    expected = f"expected dicts of arrays by the names of the inputs: {', '.join(names)}"
    if isinstance(data, Mapping):
        data = [data]
    if _is_array(data) or isinstance(data, (str, bytes, os.PathLike)) or not isinstance(data, Iterable):
        raise TypeError(f"{name}: {expected}; found {_kind(data)}")
    # Where the network leaves the number of inputs open, one at a time is what it is run with.
    is_open = all(shape and shape[0] is None for _, _, shape in described)
    batches: list[list[tuple[str, list[int], bytes]]] = []
    taken = 0
    for i, item in enumerate(data):
        if not isinstance(item, Mapping):
            raise TypeError(f"{name}: item {i}: {expected}; found {_kind(item)}")
        if missing := [n for n in names if n not in item]:
            raise DataError(f"{name}: item {i}: {expected}; there is no {', '.join(missing)}")
        arrays = []
        for input_name, dtype, _ in described:
            array = _array(item[input_name])
            wanted = _numpy_type(dtype)
            if wanted is not None and array.dtype != wanted:
                if not np.can_cast(array.dtype, wanted, "same_kind"):
                    raise DataError(f"{name}: item {i}: {input_name!r} is {array.dtype}, the network takes {wanted}")
                array = array.astype(wanted)
            arrays.append(array)
        sizes = {a.shape[0] if a.ndim else 0 for a in arrays}
        if is_open and len(sizes) == 1:
            n = min(*sizes, limit - taken)
            parts = [[a[j : j + 1] for a in arrays] for j in range(n)]
        else:
            n, parts = max(sizes, default=1), [arrays]
        batches += [[_plain(a) for a in part] for part in parts]
        taken += n
        if taken >= limit:
            break
    if not batches:
        raise DataError(f"{name}: there is nothing in it (a generator that was used before is empty)")
    return {"inputs": batches}


def calibration(data: Any, core: _basisopt.Model, name: str, limit: int) -> dict[str, Any] | None:
    """What a pipeline calibrates on: images, or arrays for all inputs of a network that has several."""
    if data is not None and len(core.inputs()) > 1:
        return inputs(data, core, name, limit)
    return images(data, False if data is not None else None, core, name, limit)


def _collected(
    data: Any, core: _basisopt.Model, name: str, limit: int | None, want_labels: bool
) -> tuple[dict[str, Any], list[int] | None]:
    """Images out of an iterable, and their labels if all have one."""
    is_data_set = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(data, (bytes, bytearray, memoryview, Mapping)) or not (isinstance(data, Iterable) or is_data_set):
        raise TypeError(
            f"{name}: expected an array [N, …], (images, labels), a path, or an iterable of images or batches; "
            f"found {_kind(data)}"
        )
    described = core.inputs()
    rank = len(described[0][2]) if len(described) == 1 and described[0][2] else None
    own_names = tuple(n for n, _, _ in described)
    first: np.ndarray | None = None
    parts: list[bytes] = []
    labels: list[int] = []
    n = n_labelled = 0
    for i, item in enumerate(_iterator(data)):
        at = f"{name}: item {i}"
        found, label = _pair(item, own_names + _IMAGES, at)
        array = _checked(_array(found), at)
        # What the first item was the others are: a last batch of three images in grey looks like one in colour.
        if first is None:
            first = array = _batched(array, rank, at)
        elif array.shape == first.shape[1:]:
            array = array[None]
        elif array.shape[1:] != first.shape[1:]:
            array = _batched(array, rank, at)
        if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
            raise DataError(
                f"{at}: images of shape {list(array.shape[1:])} and type {array.dtype}, but of shape "
                f"{list(first.shape[1:])} and type {first.dtype} before"
            )
        taken = len(array) if limit is None else min(len(array), limit - n)
        if label is not None and want_labels:
            labels += _labels(label, len(array), at)[:taken]
            n_labelled += taken
        _check_finite(array[:taken], name, n)
        # Packed at once: a loader may use its buffer again for the next batch.
        parts.append(_plain(array[:taken])[2])
        n += taken
        if limit is not None and n >= limit:
            break
    if first is None or n == 0:
        raise DataError(f"{name}: there are no images in it (a generator that was used before is empty)")
    if n_labelled not in (0, n):
        raise DataError(f"{name}: {n_labelled} of {n} images have a label; all must have one, or none")
    dtype, shape, _ = _plain(first[:0])
    packed = {"name": name, "array": (dtype, [n, *shape[1:]], b"".join(parts))}
    return packed, labels if n_labelled else None


def _iterator(data: Any) -> Iterator[Any]:
    if isinstance(data, Iterable):
        return iter(data)
    # A data set as PyTorch has them; many of those never raise IndexError.
    return (data[i] for i in range(len(data)))


def _pair(item: Any, image_names: tuple[str, ...], at: str) -> tuple[Any, Any]:
    """The images of an item, and its labels if it has any."""
    if isinstance(item, Mapping):
        image = next((k for k in image_names if k in item), None)
        if image is None:
            keys = ", ".join(str(k) for k in item)
            raise DataError(f"{at}: a dict with {keys}; the images are looked for under {', '.join(_IMAGES)}")
        label = next((k for k in _LABELS if k in item), None)
        return item[image], None if label is None else item[label]
    if isinstance(item, (tuple, list)):
        if len(item) == 1:
            return item[0], None
        if len(item) == 2 and not _is_sample(item[1], item[0]):
            return item[0], item[1]
        if not (item and all(isinstance(x, (int, float, list)) for x in item)):
            raise DataError(f"{at}: expected images, or (images, labels); found {len(item)} values")
    return item, None


def _is_sample(value: Any, like: Any) -> bool:
    """Whether this is one more image beside another, or one more batch, and not its label."""
    if not _is_array(value) or not _is_array(like):
        return False
    if _rank(value) < 2 or _rank(value) != _rank(like):
        return False
    value, like = _array(value), _array(like)
    # Labels may be [N,1], and the network's input [N,M].
    is_label = value.dtype.kind in "iu" and value.dtype != like.dtype
    return not is_label and value.shape[1:] == like.shape[1:]


def _rank(value: Any) -> int:
    rank = getattr(value, "ndim", None)
    return rank if isinstance(rank, int) else _array(value).ndim


def _batched(array: np.ndarray, rank: int | None, at: str) -> np.ndarray:
    """The array with an axis for the images in front."""
    shape = array.shape
    if array.dtype == np.uint8:
        is_one = array.ndim == 2 or array.ndim == 3 and (shape[0] in (1, 3) or shape[-1] in (1, 3))
        if array.ndim not in (2, 3, 4):
            raise DataError(f"{at}: bytes of shape {list(shape)}; images are [H,W], [H,W,1|3] or [1|3,H,W]")
        return array[None] if is_one else array
    rank = 4 if rank is None else rank
    if array.ndim == rank:
        return array
    if array.ndim == rank - 1:
        return array[None]
    raise DataError(
        f"{at}: an array of shape {list(shape)} is neither an image nor a batch: the network's input has {rank} axes, "
        "the first of them the batch"
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (
        hasattr(value, "__array__") or hasattr(value, "__dlpack__") or hasattr(value, "__array_interface__")
    )


def _array(value: Any) -> np.ndarray:
    """A NumPy array of whatever holds numbers."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        # NumPy has no such type.
        array: np.ndarray = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        return array
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return np.from_dlpack(value)
    try:
        return np.asarray(value)
    # Ragged nested lists.
    except ValueError as e:
        raise DataError(f"{_kind(value)} is no array: {e}") from e


def _checked(array: np.ndarray, at: str) -> np.ndarray:
    if array.dtype.kind == "f" and array.dtype.itemsize in (2, 4, 8) or array.dtype == np.uint8:
        return array
    raise DataError(
        f"{at}: values of type {array.dtype}; images are uint8, preprocessed inputs are float16, float32 or float64"
    )


def _check_finite(images: np.ndarray, name: str, first: int) -> None:
    """Refuses images with NaN or infinity: one such value spoils every sum that it goes into. `first` is the number of the
    first of them."""
    if images.dtype.kind != "f" or len(images) == 0:
        return
    step = max(1, _STRIDE // max(1, images[0].size))
    for start in range(0, len(images), step):
        part = images[start : start + step]
        if np.isfinite(part).all():
            continue
        for i, image in enumerate(part):
            if (wrong := image[~np.isfinite(image)]).size:
                raise DataError(f"{name}: image {first + start + i} has a value that is not finite ({wrong[0]})")


def _labels(value: Any, n: int, at: str, at_least: bool = False) -> list[int]:
    array = _array(value)
    if array.dtype.kind not in "iu":
        raise DataError(
            f"{at}: labels of type {array.dtype}; expected whole numbers, one per image (labels=False leaves them out)"
        )
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    array = array.reshape(1) if array.ndim == 0 else array
    if array.ndim != 1 or (len(array) < n if at_least else len(array) != n):
        raise DataError(f"{at}: labels of shape {list(array.shape)} for {n} images; expected one per image")
    return [int(v) for v in array]


def _plain(array: np.ndarray) -> tuple[str, list[int], bytes]:
    """Type, shape, and the values in C order, little-endian."""
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    kind = "bool" if array.dtype.kind == "b" else f"{array.dtype.kind}{8 * array.dtype.itemsize}"
    return kind, list(array.shape), array.tobytes()


def _numpy_type(name: str | None) -> np.dtype | None:
    """NumPy's type of an element type of ours, where it has one."""
    try:
        return None if name is None else np.dtype({"bool": "?"}.get(name, f"{name[0]}{int(name[1:]) // 8}"))
    except (TypeError, ValueError):
        return None


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__qualname__}"
