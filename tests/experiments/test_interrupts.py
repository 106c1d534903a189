"""Ctrl-C, as a real signal: once in a step, twice, outside of steps, and in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dr_plugin.datasets import packing
from dr_plugin.experiments import checkpoint, conclude, evaluate, report, run, stage
from dr_plugin.experiments.interrupts import Interrupts
from dr_plugin.experiments.recipe import load_recipe
from dr_plugin.experiments.run import run_experiment
from dr_plugin.experiments.trainer import StageTrainer

from .fault_cases import STEPS, assert_same_run, write_recipe


def press():
    os.kill(os.getpid(), signal.SIGINT)


def handler():
    return signal.getsignal(signal.SIGINT)


def test_first_is_noted_and_the_second_raises():
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        press()
        assert interrupts.asked
        press()
        pytest.fail("the second one was not heard")
    assert handler() is signal.default_int_handler


def test_one_that_nobody_followed_is_raised_at_the_end():
    with pytest.raises(KeyboardInterrupt), Interrupts():
        press()


def test_nothing_is_put_off_where_nothing_need_be_finished():
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts, interrupts.at_once():
        press()
        pytest.fail("it was put off")


def test_other_thread_changes_no_handler():
    seen = []

    def enter():
        with Interrupts():
            seen.append(handler())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda *_: None])
def test_handler_of_the_users_stays(own):
    before = signal.signal(signal.SIGINT, own)
    try:
        with Interrupts() as interrupts:
            press()
            assert handler() is own
            assert not interrupts.asked
    finally:
        signal.signal(signal.SIGINT, before)


# Runs


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, make_tiny_imagenet):
    return write_recipe(tmp_path_factory.mktemp("data"), make_tiny_imagenet)


@pytest.fixture(scope="module")
def whole(recipe_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_experiment(load_recipe(recipe_file), folder, device="cpu")
    return folder


def press_in_step(patched, number, times=1):
    """Interrupt within the forward pass of a step, counted over the stages."""
    step, count = StageTrainer.forward_and_backward, 0

    def interrupted(self):
        nonlocal count
        count += 1
        if count == number:
            for _ in range(times):
                press()
        step(self)

    patched.setattr(StageTrainer, "forward_and_backward", interrupted)


class Notes:
    def __init__(self):
        self.notes = []

    def update(self, task, done, total, **figures):
        """Nothing."""

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize(
    "number", [2, STEPS, 2 * STEPS, 2 * STEPS + 1]
)  # an epoch's last and a stage's among them
def test_interrupted_step_is_finished_and_saved(recipe_file, whole, tmp_path, monkeypatch, number):
    folder, reporter = tmp_path / "run", Notes()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        press_in_step(patched, number)
        run_experiment(load_recipe(recipe_file), folder, device="cpu", reporter=reporter)
    done = number if number <= 2 * STEPS else number - 2 * STEPS
    assert checkpoint.load(folder / "checkpoint" / "last.pt")["position"]["steps_done"] == done
    assert reporter.notes[-1] == f"interrupted after step {done}: writing the checkpoint"
    assert handler() is signal.default_int_handler
    run_experiment(load_recipe(recipe_file), folder, device="cpu", resume=True)
    assert_same_run(whole, folder)


def test_interrupted_last_step_of_a_budget_is_evaluated_first(recipe_file, tmp_path, monkeypatch):
    """A checkpoint before that would go on as if it had been evaluated."""
    recipe, folder = load_recipe(recipe_file, ["limits.steps=3"]), tmp_path / "run"
    run_experiment(recipe, tmp_path / "whole", device="cpu")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        press_in_step(patched, 3)
        run_experiment(recipe, folder, device="cpu")
    assert checkpoint.load(folder / "checkpoint" / "last.pt")["best"]["epoch"] == 1
    run_experiment(recipe, folder, device="cpu", resume=True)
    assert_same_run(tmp_path / "whole", folder)


def test_interrupted_twice_ends_at_once(recipe_file, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        press_in_step(patched, STEPS + 2, times=2)
        run_experiment(load_recipe(recipe_file), folder, device="cpu")
    assert checkpoint.load(folder / "checkpoint" / "last.pt")["position"]["steps_done"] == STEPS
    run_experiment(load_recipe(recipe_file), folder, device="cpu", resume=True)
    assert_same_run(whole, folder)


@pytest.mark.parametrize(("module", "name"), [(run, "load_data"), (stage, "rank"), (run, "conclude")])
def test_interrupt_outside_of_steps_ends_at_once(recipe_file, whole, tmp_path, monkeypatch, module, name):
    def interrupted(*_, **__):
        press()
        pytest.fail("it was put off")

    folder = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, name, interrupted)
        run_experiment(load_recipe(recipe_file), folder, device="cpu")
    run_experiment(load_recipe(recipe_file), folder, device="cpu", resume=folder.exists())
    assert_same_run(whole, folder)


def press_in(patched, owner, name, number, when=lambda: True):
    """Interrupt within this call of a function, which then goes on."""
    call, count = getattr(owner, name), 0

    def interrupted(*arguments, **settings):
        nonlocal count
        count += when()
        if count == number and when():
            press()
        return call(*arguments, **settings)

    patched.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        (packing.Source, "decode", 7),  # by a thread of its own
        (evaluate, "nearest", 2),  # of the selection
        (conclude.Context, "load_best", 1),
        (evaluate, "precision_at_k", 5),  # of the conclusion
        (report, "replacing", 2),
    ],
)
def test_interrupt_in_the_middle_of_work_leaves_nothing_half_done(
    recipe_file, whole, tmp_path, monkeypatch, owner, name, number
):
    recipe = load_recipe(recipe_file, [f"data.cache={tmp_path / 'cache'}"])
    folder = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        press_in(patched, owner, name, number)
        run_experiment(recipe, folder, device="cpu")
    assert not (folder / "report").exists()
    assert not list(tmp_path.rglob("*.partial"))
    assert handler() is signal.default_int_handler
    run_experiment(recipe, folder, device="cpu", resume=folder.exists())
    assert_same_run(whole, folder)


def test_second_interrupt_while_the_checkpoint_is_written_keeps_the_one_before(
    recipe_file, whole, tmp_path, monkeypatch
):
    folder, reporter = tmp_path / "run", Notes()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        press_in_step(patched, STEPS + 2)
        asked = lambda: bool(reporter.notes) and reporter.notes[-1].startswith("interrupted after")  # noqa: E731
        press_in(patched, checkpoint._Watched, "write", 3, asked)
        run_experiment(load_recipe(recipe_file), folder, device="cpu", reporter=reporter)
    assert checkpoint.load(folder / "checkpoint" / "last.pt")["position"]["steps_done"] == STEPS
    assert not list(folder.rglob("*.partial"))
    run_experiment(load_recipe(recipe_file), folder, device="cpu", resume=True)
    assert_same_run(whole, folder)


def test_first_one_is_answered(capfd):
    with pytest.raises(KeyboardInterrupt), Interrupts():
        press()
        assert capfd.readouterr().err == "finishing the step; again to end now\n"
        press()
    assert capfd.readouterr().err == ""


def test_ctrl_c_on_the_command_line(recipe_file, tmp_path):
    folder = tmp_path / "run"
    arguments = [recipe_file, "--set", "stages.0.epochs=100000", "--output", folder, "--device", "cpu"]
    code = "import sys; from dr_plugin.cli import run; run(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    journal = folder / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (journal.exists() and journal.read_bytes().count(b'"train"') > STEPS + 1):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    *answered, line = errors.splitlines()
    assert line == f"interrupted; go on with: dr-run --resume {folder}"
    last = json.loads(journal.read_text().splitlines()[-1])
    state = checkpoint.load(folder / "checkpoint" / "last.pt")
    # Between two epochs, nothing is put off.
    if last["step"] % STEPS:
        assert answered == ["finishing the step; again to end now"]
        assert f"interrupted after step {last['step']}: writing the checkpoint" in out
        assert state["position"]["steps_done"] == last["step"]
        assert state["journal_size"] == journal.stat().st_size
