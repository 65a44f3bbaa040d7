"""The process around the calls: threads, signals, progress, memory, forks, panics."""

import gc
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc

import basisopt
import numpy as np
import pytest
from basisopt import _basisopt, _progress

PIPELINE = "@fold,factorize-conv:energy=0.9"
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_other_threads_go_on_meanwhile(glyphnet, prepared):
    """With such a switch interval another thread runs only where the GIL is released."""
    counted, stop = [0], threading.Event()

    def count():
        while not stop.wait(0.001):
            counted[0] += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = counted[0]
        basisopt.compress(glyphnet, prepared, budget="macs=0.5")
        assert counted[0] > before + 10
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


def test_calls_from_several_threads_do_not_disturb_each_other(glyphnet):
    expected = basisopt.optimize(glyphnet, PIPELINE).bytes
    results: list[object] = [None] * 6

    def work(i):
        try:
            results[i] = basisopt.optimize(glyphnet, PIPELINE).bytes
        except BaseException as e:
            results[i] = e

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(r == expected for r in results)


def test_progress_tells_every_stage(glyphnet, prepared):
    calls = []
    basisopt.compress(glyphnet, prepared, budget="macs=0.5", progress=lambda *args: calls.append(args))
    stages = [stage for stage, done, total, _ in calls if (done, total) == (0, 0)]
    assert stages[:2] == ["freeze-weights", "fold-constants"]
    assert {"allocate-ranks", "factorize-conv", "factorize-linear", "evaluating"} <= set(stages)
    assert all(isinstance(what, str) and 0 <= done <= total for _, done, total, what in calls)
    # The same without anybody who looks.
    silent = basisopt.compress(glyphnet, prepared, budget="macs=0.5", progress=False)
    assert silent.bytes == basisopt.compress(glyphnet, prepared, budget="macs=0.5").bytes


class Enough(Exception):
    """Nothing that basisopt could raise."""


def test_what_a_callback_raises_stops_the_work(glyphnet, prepared, tmp_path):
    def callback(stage, done, total, what):
        raise Enough(stage)

    output = tmp_path / "small.onnx"
    with pytest.raises(Enough, match="freeze-weights"):
        basisopt.compress(glyphnet, prepared, budget="macs=0.5", progress=callback, output=output)
    assert list(tmp_path.iterdir()) == []


def test_bars_are_those_of_tqdm(glyphnet, prepared):
    pytest.importorskip("tqdm")
    with _progress.shown(True) as callback:
        bars = callback.__self__
        callback("evaluating", 0, 0, "")
        assert bars._bar is None
        callback("evaluating", 3, 10, "the original")
        first = bars._bar
        assert (first.n, first.total, first.desc) == (3, 10, "evaluating")
        callback("evaluating", 7, 10, "the result")
        assert bars._bar is first and first.n == 7
        callback("measuring", 1, 5, "rounds")
        assert bars._bar is not first
    assert bars._bar is None
    # pytest's stderr is no terminal.
    with _progress.shown(None) as callback:
        assert callback is None
    basisopt.compress(glyphnet, prepared, budget="macs=0.5", progress=True)


INTERRUPTED = """
    import basisopt, numpy as np, signal, sys, os
    # Who is started in the background by a shell ignores it, and so do the processes that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    images = np.load(sys.argv[2])
    labels = np.arange(len(images)) % 10
    model = open(sys.argv[1], "rb").read()
    out = sys.argv[3]

    def callback(stage, done, total, what):
        # Once it is well under way.
        if stage == "fine-tune" and done > 0:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        basisopt.compress(model, (images, labels), budget="macs=0.5", fine_tune="epochs=100000", progress=callback,
                          output=out, **eval(sys.argv[4]))
    except KeyboardInterrupt:
        # The interpreter is as good as new.
        basisopt.optimize(model, "@fold")
        print("interrupted")
"""


@pytest.mark.parametrize("options", ["{}", "{'checkpoint': out + '.state'}"])
def test_ctrl_c_is_a_keyboard_interrupt(glyphnet_path, prepared, tmp_path, options):
    np.save(tmp_path / "images.npy", prepared)
    script = textwrap.dedent(INTERRUPTED)
    output = tmp_path / "small.onnx"
    command = [sys.executable, "-c", script, glyphnet_path, tmp_path / "images.npy", output, options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
    assert not output.exists()
    # What there was of training is kept where it was asked for.
    assert (tmp_path / "small.onnx.state").exists() == ("checkpoint" in options)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_processes_work_too(glyphnet):
    expected = basisopt.optimize(glyphnet, PIPELINE).bytes
    child = os.fork()
    if child == 0:
        # A child that hangs is ended by the alarm.
        signal.alarm(120)
        code = 1
        try:
            code = 0 if basisopt.optimize(glyphnet, PIPELINE).bytes == expected else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def resident() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def n_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@LINUX
def test_two_hundred_calls_leave_nothing_behind(glyphnet, prepared, tmp_path):
    def broken():
        yield prepared[:8]
        raise Enough

    def once():
        basisopt.optimize(glyphnet, "@fold", check=False)
        with pytest.raises(basisopt.PipelineError):
            basisopt.optimize(glyphnet, "nothing")
        with pytest.raises(basisopt.ModelError):
            basisopt.optimize(glyphnet[: len(glyphnet) // 2], "@fold")
        with pytest.raises(basisopt.DataError):
            basisopt.compress(glyphnet, prepared[:8, :, :16], budget="macs=0.5")
        with pytest.raises(Enough):
            basisopt.compress(glyphnet, broken())

    for _ in range(20):
        once()
    gc.collect()
    tracemalloc.start()
    threads, memory, objects = n_threads(), resident(), tracemalloc.get_traced_memory()[0]
    for _ in range(200):
        once()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - objects
    tracemalloc.stop()
    # One copy of the model or of the images per call would be 75 MB, or 20 MB.
    assert grown < 100_000
    assert resident() - memory < 10_000_000
    # Threads of a pool end by themselves, a moment later.
    deadline = time.monotonic() + 60
    while n_threads() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert n_threads() <= threads


def test_a_panic_is_an_error(capfd):
    with pytest.raises(basisopt.Error, match=r"the sky fell \(this is a bug\)") as e:
        _basisopt.panic("the sky fell")
    assert type(e.value) is basisopt.Error


def test_exceptions_can_be_sent_to_other_processes():
    for error in (basisopt.Error("a"), basisopt.DataError("b"), basisopt.MissingFileError("c")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)
