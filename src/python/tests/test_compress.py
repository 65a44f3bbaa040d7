"""The recipe, on data of all kinds."""

import subprocess

import basisopt
import numpy as np
import pytest

BUDGET = {"budget": "macs=0.5", "measure": False}


@pytest.fixture(scope="module")
def reference(glyphnet, prepared):
    """What comes of an array of all images."""
    return basisopt.compress(glyphnet, prepared, **BUDGET)


def test_the_budget_is_kept(glyphnet, reference):
    report = reference.report
    assert report["after"]["macs"] <= report["before"]["macs"] / 2
    assert report["after"]["macs"] == basisopt.inspect(reference.bytes)["macs"]
    assert any(layer["factored"] for layer in report["layers"])


def test_without_data_the_weights_decide(glyphnet):
    result = basisopt.compress(glyphnet, energy=0.8, measure=False)
    assert ":energy=0.8" in result.report["pipeline"]
    assert all(layer["energy"] >= 0.8 for layer in result.report["layers"] if layer["factored"])


def test_the_command_line_gives_the_same_bytes(glyphnet_path, prepared, program, tmp_path, reference):
    np.save(tmp_path / "images.npy", prepared)
    output = tmp_path / "cli.onnx"
    command = [program, "compress", glyphnet_path, "--data", tmp_path / "images.npy", "--budget", "macs=0.5"]
    subprocess.run([*command, "--no-bench", "-o", output, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    assert reference.bytes == output.read_bytes()


def test_settings_beside_a_model_are_read_as_by_the_command_line(glyphnet_path, program, tmp_path):
    output = tmp_path / "cli.onnx"
    command = [program, "compress", glyphnet_path, "--budget", "macs=0.5", "--no-bench", "-o", output, "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    result = basisopt.compress(glyphnet_path, budget="macs=0.5")
    assert result.bytes == output.read_bytes()
    assert result.report["measured"]["accuracy"]["n"] > 0
    without = basisopt.compress(glyphnet_path, config=False, **BUDGET)
    assert without.report["measured"]["calibration"] is None


def reused(images):
    """Batches that are one buffer, filled again and again."""
    buffer = np.empty((50, *images.shape[1:]), np.float32)
    for i in range(0, len(images), 50):
        buffer[:] = images[i : i + 50]
        yield buffer


class Dlpack:
    """Nothing but what DLPack asks for."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


KINDS = ["batches", "images", "generator", "reused", "dlpack", "wide", "fortran", "big-endian", "strided"]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_data_give_the_same_bytes(glyphnet, prepared, reference, kind):
    data = {
        "batches": lambda: [prepared[i : i + 64] for i in range(0, len(prepared), 64)],
        "images": lambda: list(prepared),
        "generator": lambda: (image for image in prepared),
        "wide": lambda: prepared.astype(np.float64),
        "reused": lambda: reused(prepared),
        "dlpack": lambda: Dlpack(prepared),
        "fortran": lambda: np.asfortranarray(prepared),
        "big-endian": lambda: prepared.astype(">f4"),
        "strided": lambda: np.repeat(prepared, 2, axis=0)[::2],
    }[kind]()
    assert basisopt.compress(glyphnet, data, **BUDGET).bytes == reference.bytes


def test_bytes_are_preprocessed_like_files(glyphnet, glyphs, settings, tmp_path):
    images, labels = glyphs
    np.savez(tmp_path / "glyphs.npz", images=images, labels=labels)
    by_path = basisopt.compress(glyphnet, tmp_path / "glyphs.npz", budget="macs=0.5", **settings)
    kinds = {
        "pair of arrays": (images, labels),
        "pairs": [(image, int(label)) for image, label in zip(images, labels)],
        "batches": [(images[i : i + 50], labels[i : i + 50]) for i in range(0, len(images), 50)],
        "dicts": [{"image": image, "label": label} for image, label in zip(images, labels)],
        "channels first": (np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels),
    }
    for kind, data in kinds.items():
        result = basisopt.compress(glyphnet, data, budget="macs=0.5", **settings)
        assert result.bytes == by_path.bytes, kind
        measured = [r.report["measured"]["accuracy"] for r in (by_path, result)]
        assert measured[0] == measured[1] and measured[0]["before"] > 0.9, kind
    no_labels = basisopt.compress(glyphnet, kinds["pairs"], budget="macs=0.5", labels=False, **settings)
    assert no_labels.report["measured"]["accuracy"] is None
    own_labels = basisopt.compress(glyphnet, images, labels=labels, budget="macs=0.5", **settings)
    assert own_labels.report["measured"]["accuracy"] == by_path.report["measured"]["accuracy"]


class Endless:
    """Images without end, that counts how many were taken."""

    def __init__(self, images):
        self.images, self.taken = images, 0

    def __iter__(self):
        while True:
            for image in self.images:
                self.taken += 1
                yield image


def test_iterables_are_read_only_as_far_as_needed(glyphnet, prepared):
    endless = Endless(prepared)
    basisopt.compress(glyphnet, endless, samples=50, **BUDGET)
    assert endless.taken == 50 + 1000 + 2000
    for samples in (50, None):
        data, calibration = Endless(prepared), Endless(prepared)
        basisopt.compress(glyphnet, data, calibration=calibration, samples=samples, **BUDGET)
        assert calibration.taken == (samples or 1000)
    # What is trained on is read to its end; what is calibrated on is not.
    calibration = Endless(prepared)
    options = {"budget": "macs=0.5", "measure": False, "samples": 20}
    basisopt.compress(glyphnet, prepared[:40], calibration=calibration, fine_tune="epochs=1:batch=16", **options)
    assert calibration.taken == 20
    endless = Endless(prepared)
    basisopt.optimize(glyphnet, "factorize-conv:energy=0.9:method=output", calibrate=endless, samples=30)
    assert endless.taken == 30


class MapStyle:
    """A data set as PyTorch has them: without __iter__, and without an IndexError in the end."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index % len(self.images)]


def test_data_sets_with_a_length_end(glyphnet, prepared, reference):
    assert basisopt.compress(glyphnet, MapStyle(prepared), **BUDGET).bytes == reference.bytes


def test_ranks_are_a_file_or_a_dict(glyphnet, tmp_path):
    ranks = {"/conv2/conv/Conv": 6, "/conv3/conv/Conv": 8}
    file = tmp_path / "ranks.txt"
    file.write_text("6 /conv2/conv/Conv\n8 /conv3/conv/Conv\n")
    for given in (ranks, file):
        report = basisopt.compress(glyphnet, ranks=given, measure=False).report
        assert {x["name"]: x["rank"] for x in report["layers"] if x["factored"]} == ranks
        # What the pipeline says of a dict is no name of a file, and says so.
        assert f"allocate-ranks:ranks={file if given == file else '(given)'}," in report["pipeline"]


def test_a_pipeline_with_ranks_of_a_dict_is_one_and_says_what_is_missing(glyphnet, onnx):
    result = basisopt.compress(glyphnet, ranks={"/conv2/conv/Conv": 6}, measure=False)
    metadata = {p.key: p.value for p in onnx.load_from_string(result.bytes).metadata_props}
    assert metadata["basisopt.pipeline"] == result.report["pipeline"]
    with pytest.raises(basisopt.PipelineError, match=r"ranks=\(given\)"):
        basisopt.optimize(glyphnet, result.report["pipeline"])


def test_layers_are_chosen_by_globs(glyphnet):
    result = basisopt.compress(glyphnet, energy="0.8", include=["/conv*", "/res/*"], exclude="/conv2/*", measure=False)
    factored = {layer["name"] for layer in result.report["layers"] if layer["factored"]}
    assert factored and all(n.startswith(("/conv3", "/res/")) for n in factored)


def test_training_in_memory(glyphnet, glyphs, settings, tmp_path):
    arguments = {"budget": "macs=0.4", "fine_tune": "epochs=1:batch=40", "measure": False, **settings}
    result = basisopt.compress(glyphnet, glyphs, **arguments)
    assert ",reconstruct,fine-tune:epochs=1:batch=40," in result.report["pipeline"]
    assert result.report["training"]["epochs"] and result.report["rungs"]
    # The state of training goes into a file where there is to be one, and a run that is taken up ends the same way.
    state = tmp_path / "state"
    kept = basisopt.compress(glyphnet, glyphs, checkpoint=state, **arguments)
    assert kept.bytes == result.bytes and state.stat().st_size > 0
    resumed = basisopt.compress(glyphnet, glyphs, checkpoint=state, resume=True, **arguments)
    assert resumed.bytes == result.bytes
    with pytest.raises(basisopt.FileError, match="resume=True"):
        basisopt.compress(glyphnet, glyphs, checkpoint=state, **arguments)
    with pytest.raises(basisopt.FileError, match="another network, other data or other options"):
        arguments["fine_tune"] = "epochs=2:batch=40"
        basisopt.compress(glyphnet, glyphs, checkpoint=state, resume=True, **arguments)


def test_latency_is_measured_on_request(glyphnet, prepared):
    result = basisopt.compress(glyphnet, prepared[:40], budget="macs=0.5", bench=True, engine="stock")
    before, after = result.report["measured"]["latency"]
    assert before["median_ms"] > 0 and after["median_ms"] > 0
