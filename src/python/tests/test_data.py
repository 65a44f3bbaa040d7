"""What becomes of data of all kinds before the compiled half sees them."""

import basisopt
import numpy as np
import pytest
from basisopt import _data


class Core:
    """A network as far as data are concerned: its inputs."""

    def __init__(self, *inputs):
        self._inputs = [(f"x{i}", "f32", [None, *shape]) for i, shape in enumerate(inputs)]

    def inputs(self):
        return self._inputs


def collected(data, shape, labels=None, limit=None):
    """Images and labels, as the compiled half gets them."""
    packed = _data.images(data, labels, Core(shape), "data", limit)
    kind, sizes, content = packed["array"]
    return np.frombuffer(content, np.dtype(f"{kind[0]}{int(kind[1:]) // 8}")).reshape(sizes), packed.get("labels")


PICTURES = np.random.default_rng(0).integers(0, 256, (35, 12, 10)).astype(np.uint8)


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_the_last_batch_is_one_whatever_its_size(last):
    n = 32 + last
    for batch in (32, 16):
        batches = [PICTURES[i : min(i + batch, n)] for i in range(0, n, batch)]
        found, _ = collected(batches, [1, 12, 10])
        np.testing.assert_array_equal(found, PICTURES[:n])
        labelled = [(images, np.arange(len(images))) for images in batches]
        found, labels = collected(labelled, [1, 12, 10])
        np.testing.assert_array_equal(found, PICTURES[:n])
        assert labels == [int(i) for images in batches for i in range(len(images))]


def test_images_and_batches_may_take_turns():
    for grey in (PICTURES, PICTURES.astype(np.float32)):
        shape = [12, 10] if grey.dtype == np.float32 else [1, 12, 10]
        for data in ([grey[0], grey[1:4], grey[4]], [grey[:2], grey[2], grey[3:5]]):
            np.testing.assert_array_equal(collected(data, shape)[0], grey[:5])
    colour = np.stack([PICTURES] * 3, 1)
    for data in ([colour[0], colour[1:4]], [colour[:3], colour[3]]):
        np.testing.assert_array_equal(collected(data, [3, 12, 10])[0], colour[:4])
    with pytest.raises(basisopt.DataError, match=r"item 1: images of shape \[9, 10\]"):
        collected([PICTURES[:4], PICTURES[:4, :9]], [1, 12, 10])


ROWS = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:, :1]], ids=["five", "one"])
def test_labels_may_stand_in_a_column(rows, kind):
    column = np.arange(8, dtype=kind)[:, None]
    for data in ((rows, column), [(rows[:5], column[:5]), (rows[5:], column[5:])], [[rows, column]]):
        found, labels = collected(data, rows.shape[1:])
        np.testing.assert_array_equal(found, rows)
        assert labels == list(range(8))


def test_a_tuple_of_two_batches_is_no_pair():
    found, labels = collected((ROWS[:5], ROWS[5:]), [5])
    np.testing.assert_array_equal(found, ROWS)
    assert labels is None
    found, labels = collected((PICTURES[:20], PICTURES[20:]), [1, 12, 10])
    np.testing.assert_array_equal(found, PICTURES)
    assert labels is None
    with pytest.raises(basisopt.DataError, match="labels of type float32"):
        collected((ROWS, ROWS[:, :1]), [5])


def test_dicts_are_cut_where_the_limit_is():
    item = {"x0": np.arange(8, dtype=np.float32).reshape(4, 2), "x1": np.arange(4, dtype=np.float32).reshape(4, 1)}
    for limit, n in ((1, 1), (4, 4), (6, 6), (8, 8), (100, 12)):
        batches = _data.inputs([item] * 3, Core([2], [1]), "calibrate", limit)["inputs"]
        assert len(batches) == n
        assert [np.frombuffer(b[1][2], np.float32)[0] for b in batches] == [i % 4 for i in range(n)]
