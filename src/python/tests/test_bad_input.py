"""What is no model, no pipeline and no data: an exception that says so, and nothing changed."""

import os
import struct

import basisopt
import numpy as np
import pytest

FOLD = "@fold"
DATA_AWARE = "factorize-conv:energy=0.9:method=output"


@pytest.mark.parametrize("model", [None, 3, [b"x"], object(), "", b"", np.zeros(3)])
def test_things_that_are_no_models(model):
    with pytest.raises((TypeError, ValueError)) as e:
        basisopt.optimize(model, FOLD)
    assert str(e.value)


def test_bytes_that_are_no_model(glyphnet):
    for content in [b"\0" * 64, b"PK\x03\x04" + b"\0" * 64, os.urandom(4096), glyphnet[: len(glyphnet) // 2], b"hello"]:
        with pytest.raises(basisopt.ModelError, match="the model: "):
            basisopt.optimize(content, FOLD)


def test_every_cut_and_every_flip_is_an_error_or_a_model(glyphnet):
    rng = np.random.default_rng(1)
    small = basisopt.optimize(glyphnet, FOLD).bytes
    for i in range(60):
        damaged = bytearray(small)
        damaged[int(rng.integers(0, 3000))] ^= int(rng.integers(1, 256))
        cut = damaged[: int(rng.integers(1, len(damaged)))] if i % 2 else damaged
        try:
            basisopt.optimize(bytes(cut), "@fold", check=False)
        except basisopt.Error as e:
            assert str(e)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(basisopt.MissingFileError) as e:
        basisopt.optimize(tmp_path / "none.onnx", FOLD)
    assert isinstance(e.value, FileNotFoundError) and isinstance(e.value, basisopt.Error)
    with pytest.raises(basisopt.Error):
        basisopt.optimize(tmp_path, FOLD)
    with pytest.raises(ValueError, match="no path"):
        basisopt.optimize("a\0b", FOLD)


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ("factorise-conv", 'did you mean "factorize-conv"'),
        ("@fould", "@fold"),
        ("factorize-conv:enrgy=1", 'did you mean "energy"'),
        ("factorize-conv:energy=2", "energy"),
        ("", "the name of a pass"),
        ("a\0b", "no pass"),
    ],
)
def test_pipelines_that_are_none(glyphnet, pipeline, words):
    with pytest.raises(basisopt.PipelineError, match=words) as e:
        basisopt.optimize(glyphnet, pipeline)
    assert isinstance(e.value, ValueError)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"seed": "a"}, TypeError, "seed"),
        ({"seed": -1}, basisopt.Error, "seed"),
        ({"check": "yes"}, TypeError, "check"),
        ({"threads": 0}, basisopt.PipelineError, "threads"),
        ({"threads": 2**40}, basisopt.PipelineError, "at most 1024"),
        ({"samples": 0}, basisopt.PipelineError, "samples"),
        ({"samples": 1.5}, TypeError, "samples"),
        ({"tolerance": -1.0}, basisopt.PipelineError, "tolerance"),
        ({"tolerance": float("nan")}, basisopt.PipelineError, "tolerance"),
        ({"dims": ["N"]}, TypeError, "dims"),
        ({"dims": {"N": "x"}}, TypeError, "dims"),
        ({"dims": {"N": 0}}, basisopt.PipelineError, "at least 1"),
        ({"dims": {"M": 1}}, basisopt.PipelineError, "its open sizes are N"),
        ({"progress": 3}, TypeError, "progress"),
        ({"output": 3}, TypeError, "output"),
        ({"output": "/nonexistent/a.onnx"}, basisopt.FileError, "no folder /nonexistent"),
        ({"layout": "hwc"}, basisopt.PipelineError, "nchw, nhwc"),
        ({"mean": "abc"}, TypeError, "mean"),
        ({"config": "/nonexistent.toml", "calibrate": np.zeros((2, 3, 32, 32))}, basisopt.MissingFileError, "none"),
        ({"labels": [1]}, TypeError, "labels of what"),
    ],
)
def test_options_that_make_no_sense(glyphnet, arguments, error, words):
    with pytest.raises(error) as e:
        basisopt.optimize(glyphnet, FOLD, **arguments)
    assert words == "none" or words in str(e.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"budget": "speed=2"}, "budget speed=2"),
        ({"budget": "macs=0.5", "energy": 0.9}, "exclude each other"),
        ({"goal": 1.0}, "fine-tune"),
        ({"device": __file__}, "latency="),
        ({"device": "here"}, "latency="),
        ({"include": "a:b"}, "include a:b"),
        ({"method": "magic"}, "weights, output, sequential"),
        ({"engine": "warp"}, "stock, fused, fastest"),
        ({"ranks": {"conv": "x"}}, "ranks"),
        ({"multiple": 0}, "multiple"),
        ({"checkpoint": "state"}, "give fine_tune"),
    ],
)
def test_recipes_that_are_none(glyphnet, arguments, words):
    with pytest.raises(basisopt.PipelineError, match=words):
        basisopt.compress(glyphnet, **arguments)


def images(shape=(8, 3, 32, 32), dtype=np.float32):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (3, TypeError, "a value of type int"),
        (b"abc", TypeError, "bytes"),
        ({"images": images()}, TypeError, "dict"),
        (images(dtype=np.int64), basisopt.DataError, "int64"),
        (images(dtype=complex), basisopt.DataError, "complex128"),
        (np.array(["a", "b"]), basisopt.DataError, "<U1"),
        (np.array([object()]), basisopt.DataError, "object"),
        (images((0, 3, 32, 32)), basisopt.DataError, "no images"),
        (np.float32(1), basisopt.DataError, "no images"),
        (images((8, 3, 16, 16)), basisopt.DataError, r"\[3, 16, 16\]"),
        (images((8, 32, 32, 3)), basisopt.DataError, r"\[32, 32, 3\]"),
        (images((8, 5, 32, 32), np.uint8), basisopt.DataError, "images are"),
        ([], basisopt.DataError, "no images"),
        (iter(()), basisopt.DataError, "generator"),
        ([images(), images((8, 3, 16, 16))], basisopt.DataError, "item 1"),
        ([images(), images(dtype=np.float64)], basisopt.DataError, "float64"),
        (["a.png"], basisopt.DataError, "item 0"),
        ([[1.0, [2.0], 3.0]], basisopt.DataError, "no array"),
        ([{"picture": images()}], basisopt.DataError, "picture"),
        ([(images(), 1, 2)], basisopt.DataError, "3 values"),
        ([(images()[0], 1), images()[0]], basisopt.DataError, "1 of 2"),
        ([(images(), [1, 2])], basisopt.DataError, "8 images"),
        ([(images()[0], 0.5)], basisopt.DataError, "whole numbers"),
        ([(images()[0], {"boxes": 1})], basisopt.DataError, "labels=False"),
        ((images(), np.arange(7)), basisopt.DataError, "8 images"),
        ("/nonexistent/images", basisopt.MissingFileError, "/nonexistent/images"),
    ],
)
def test_data_that_are_none(glyphnet, data, error, words):
    before = bytes(glyphnet)
    with pytest.raises(error, match=words):
        basisopt.compress(glyphnet, data, budget="macs=0.5")
    assert glyphnet == before


def test_labels_that_are_no_class(glyphnet, glyphs, settings):
    pictures, _ = glyphs
    labels = np.full(len(pictures), 1000)
    with pytest.raises(basisopt.DataError, match="1000"):
        basisopt.compress(glyphnet, (pictures, labels), budget="macs=0.5", **settings)
    with pytest.raises(basisopt.DataError, match="1000"):
        basisopt.compress(glyphnet, (pictures, labels), budget="macs=0.5", fine_tune="epochs=1", **settings)


def test_too_few_images_to_train_on(glyphnet, prepared):
    with pytest.raises(basisopt.DataError, match="too few"):
        basisopt.compress(glyphnet, prepared[:2], budget="macs=0.5", fine_tune=True)


def test_files_that_options_name(glyphnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in ({"ranks": "none.ranks"}, {"device": "none.toml", "budget": "latency=0.5"}):
        with pytest.raises(basisopt.MissingFileError, match=r"there is no file none\."):
            basisopt.compress(glyphnet, **arguments)
    # In a pipeline they are part of what was asked for.
    with pytest.raises(basisopt.PipelineError, match="none.ranks"):
        basisopt.optimize(glyphnet, "@fold,allocate-ranks:ranks=none.ranks")


@pytest.mark.parametrize("which", ["output", "checkpoint"])
def test_files_that_cannot_be_written_are_refused_before_the_work(glyphnet, prepared, tmp_path, which):
    model = tmp_path / "net.onnx"
    model.write_bytes(glyphnet)

    def never():
        raise Broken("the data were read")
        yield

    for given, path, words in [
        (model, model, "it is the input model"),
        (glyphnet, tmp_path, "it is a folder"),
        (glyphnet, tmp_path / "none" / "file", "there is no folder"),
    ]:
        with pytest.raises(basisopt.FileError, match=words):
            basisopt.compress(given, never(), fine_tune=True, **{which: path})
        with pytest.raises(basisopt.FileError, match=words):
            basisopt.optimize(given, "fine-tune", train=never(), **{which: path})
    assert model.read_bytes() == glyphnet


def test_checkpoints_that_are_none(glyphnet, prepared, tmp_path):
    other = tmp_path / "notes.txt"
    for content in (b"", b"something of mine", b"basisopt"):
        other.write_bytes(content)
        for resume in (False, True):
            with pytest.raises(basisopt.FileError, match="no checkpoint; name another"):
                basisopt.compress(glyphnet, prepared, fine_tune=True, checkpoint=other, resume=resume)
        assert other.read_bytes() == content
    # Of another version, but one.
    other.write_bytes(b"basisopt-ck\x01" + bytes(40))
    with pytest.raises(basisopt.FileError, match="of an earlier run"):
        basisopt.compress(glyphnet, prepared, fine_tune=True, checkpoint=other)
    with pytest.raises(basisopt.FileError, match="there is no checkpoint"):
        basisopt.compress(glyphnet, prepared, fine_tune=True, checkpoint=tmp_path / "none", resume=True)
    same = {"output": tmp_path / "one", "checkpoint": f"{tmp_path}/./one"}
    with pytest.raises(basisopt.PipelineError, match="are one file"):
        basisopt.compress(glyphnet, prepared, fine_tune=True, **same)


class Broken(RuntimeError):
    """Nothing that basisopt could raise."""


def test_an_iterator_that_raises_half_way_comes_out_as_itself(glyphnet, prepared):
    def broken():
        yield prepared[:8]
        raise Broken("the disk is gone")

    for call in (
        lambda: basisopt.compress(glyphnet, broken(), budget="macs=0.5"),
        lambda: basisopt.optimize(glyphnet, DATA_AWARE, calibrate=broken()),
        lambda: basisopt.compress(glyphnet, broken(), budget="macs=0.5", fine_tune=True),
    ):
        with pytest.raises(Broken, match="the disk is gone"):
            call()


def test_an_array_that_raises_comes_out_as_itself(glyphnet):
    class Array:
        shape, ndim = (8, 3, 32, 32), 4

        def __array__(self, dtype=None, copy=None):
            raise Broken("no array after all")

    with pytest.raises(Broken, match="no array after all"):
        basisopt.compress(glyphnet, Array(), budget="macs=0.5")


def test_a_generator_that_was_used_before(glyphnet, prepared):
    generator = (image for image in prepared[:20])
    basisopt.optimize(glyphnet, DATA_AWARE, calibrate=generator)
    with pytest.raises(basisopt.DataError, match="used before"):
        basisopt.optimize(glyphnet, DATA_AWARE, calibrate=generator)


def test_data_aware_passes_without_data_say_so(glyphnet):
    assert "no-data" in {r["code"] for r in basisopt.optimize(glyphnet, DATA_AWARE).remarks}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(glyphnet, value, onnx):
    model = onnx.load_from_string(glyphnet)
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    weight.raw_data = struct.pack("<f", value) + weight.raw_data[4:]
    before = model.SerializeToString()
    with pytest.raises(basisopt.ModelError, match="NaN or infinity") as e:
        basisopt.optimize(model, FOLD)
    assert weight.name in str(e.value)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_no_numbers(glyphnet, prepared, value, dtype):
    poisoned = prepared[:400].astype(dtype)
    # Beyond what is looked at in one go, and not where an image begins.
    poisoned[371, 2, 5, 7] = value
    words = rf"data: image 371 has a value that is not finite \({value}\)"
    for data in (poisoned, list(poisoned), [poisoned[:350], poisoned[350:]], (poisoned, np.zeros(400, int))):
        with pytest.raises(basisopt.DataError, match=words):
            basisopt.compress(glyphnet, data, budget="macs=0.5")
    with pytest.raises(basisopt.DataError, match="calibrate: image 371"):
        basisopt.optimize(glyphnet, DATA_AWARE, calibrate=poisoned)
    # Of an iterable, only what is read.
    basisopt.optimize(glyphnet, DATA_AWARE, calibrate=[poisoned], samples=60)


class Oversized:
    """A message that protobuf refuses to write."""

    @staticmethod
    def FromString(content):
        raise AssertionError("it was never written")

    def SerializeToString(self):
        raise ValueError("Message onnx.ModelProto exceeds maximum protobuf size of 2GB")


def test_messages_of_more_than_two_gigabytes():
    with pytest.raises(basisopt.ModelError, match="save_as_external_data=True.*give its path"):
        basisopt.optimize(Oversized(), FOLD)


def test_models_that_contradict_themselves(glyphnet, onnx):
    model = onnx.load_from_string(glyphnet)
    model.graph.node[3].input[0] = "nowhere"
    with pytest.raises(basisopt.ModelError, match="nowhere"):
        basisopt.optimize(model, FOLD)


def test_checks_that_fail_say_what_to_do(glyphnet):
    with pytest.raises(basisopt.CheckError, match="check=False"):
        basisopt.optimize(glyphnet, FOLD, tolerance=0.0)
    assert basisopt.optimize(glyphnet, FOLD, tolerance=0.0, check=False).report["rewrites"] > 0
