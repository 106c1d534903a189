"""Processes that do one job: what they give back, and that they end with the process that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dr_plugin.atomic import WriteError, telling
from dr_plugin.experiments import series, workers
from dr_plugin.experiments.journal import SilentReporter
from dr_plugin.experiments.recipe import RecipeError
from dr_plugin.experiments.series_run import PlannedRun
from dr_plugin.experiments.workers import Worker, first_done

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable_in_workers(monkeypatch):
    """A worker imports this module by its name; what is installed still goes before the checkout."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])


def told(text, device, reporter):
    reporter.note("nothing is shown")
    return text and f"{text} on {device} with {torch.get_num_threads()} threads"


def refuses(lines, device, reporter):
    raise RecipeError(*lines)


def finds_no_room(path, device, reporter):
    with telling(path), open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def breaks(device, reporter):
    raise RuntimeError("no such thing")


def dies(device, reporter):
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps(path, device, reporter):
    path.write_text(str(os.getpid()))
    time.sleep(600)


def sleeps_long(run, shared, device, reporter):
    time.sleep(600)


def work(function, *arguments, device="cpu", of=("cpu",)):
    return Worker(function, *arguments, device=device, of=of).start().result()


def test_answer_comes_back_from_a_process_of_its_own():
    assert work(told, None) is None
    assert work(told, "done").startswith("done on cpu with ")


def test_threads_are_divided_among_the_workers_of_one_device(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert work(told, "done", of=("cpu", "cuda:0", "cpu")) == "done on cpu with 3 threads"


def test_mistakes_and_failures_come_back(tmp_path):
    with pytest.raises(RecipeError) as caught:
        work(refuses, ["one: got 1", "two: got 2"])
    assert caught.value.lines == ["one: got 1", "two: got 2"]
    with pytest.raises(WriteError, match=r"full: cannot be written \(no space left on device\)"):
        work(finds_no_room, tmp_path / "full")
    assert work(breaks) == "RuntimeError: no such thing"
    assert work(dies) == "its process ended with status -9; was it killed for want of memory?"


def test_first_done_is_the_one_that_has_ended(tmp_path):
    slow = Worker(sleeps, tmp_path / "pid", device="cpu", of=("cpu",)).start()
    quick = Worker(told, None, device="cpu", of=("cpu",)).start()
    assert first_done([slow, quick]) is quick
    quick.result()
    slow.stop()
    assert not alive(slow._process.pid)


def test_interrupt_right_after_a_start_finds_the_worker(tmp_path, monkeypatch):
    """As a series starts them: whoever is interrupted then must not wait for it for ever."""
    started = []

    def interrupted(process):
        start(process)
        started.append(process)
        os.kill(os.getpid(), signal.SIGINT)

    job = series._Job(PlannedRun("a run", None, tmp_path, None), shared=False, text="a run")
    monkeypatch.setattr(series, "train", sleeps_long)
    start = workers._SPAWN.Process.start
    monkeypatch.setattr(workers._SPAWN.Process, "start", interrupted)
    one = series.Series(tmp_path, [], ["cpu", "cpu"], SilentReporter(), what="series", each="run")
    with pytest.raises(KeyboardInterrupt):
        one._on_devices([job], lambda: None)
    (process,) = started
    alive_still = process.is_alive()
    process.kill()
    assert not alive_still


def test_worker_that_was_never_started_is_nothing_to_stop(tmp_path):
    Worker(sleeps, tmp_path / "pid", device="cpu", of=("cpu",)).stop()
    assert not list(tmp_path.iterdir())


PARENT = """
import sys
from pathlib import Path
from dr_plugin.experiments.workers import Worker

def sleeps(path, device, reporter):
    import os, time
    path.write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    Worker(sleeps, Path(sys.argv[1]), device="cpu", of=("cpu",)).start().result()
"""


def test_worker_ends_when_its_parent_is_killed(tmp_path):
    script, pid_file = tmp_path / "parent.py", tmp_path / "pid"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, script, pid_file])
    wait_for(lambda: pid_file.exists() and pid_file.read_text())
    worker = int(pid_file.read_text())
    assert alive(worker)
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(worker))


def alive(pid):
    """Whether the process runs; one that has ended and that nobody has asked for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
