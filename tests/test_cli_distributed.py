"""``dr-run --nproc N`` and torchrun, with real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from dr_plugin.cli import run
from dr_plugin.experiments import launched

RECIPE = """\
seed: 1
data:
  dataset:
    type: Digits
  image_size: 8
  selection: 10
  cache: {cache}
trunk:
  type: DeepRankingTrunk
  convnet:
    type: SmallConvNet
    channels:
      - 8
  embedding_size: 8
  low_resolution: false
stages:
  - name: ranking
    epochs: 6
    batch_size: 120
    evaluate_every: 0
    sampler:
      type: MPerClassSampler
      m: 12
    miner:
      type: UniformTripletMiner
    loss:
      type: DeepRankingLoss
    optimizer:
      type: SGD
      lr: 0.1
evaluation:
  k: 3
checkpoint:
  every_steps: 2
report:
  queries: 0
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "digits_small.yaml"
    path.write_text(RECIPE.format(cache=folder / "cache"))
    return path


@contextmanager
def started(*arguments):
    """The command in a process group of its own, which is gone after the block."""
    command = [sys.executable, "-m", "dr_plugin", "run", "--device", "cpu", *map(str, arguments)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()  # torchrun ends its own


def wait_until(condition):
    """Until it is so; an error after five minutes."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_begun(folder):
    """Whether the journal has some lines, and so the first checkpoint was written."""
    journal = folder / "metrics.jsonl"
    return journal.exists() and len(journal.read_text().splitlines()) >= 10


def kill_rank(rank, folder):
    """SIGKILL to this rank once it trains."""
    wait_until(lambda: has_begun(folder))
    [found] = ranks(rank, folder)
    os.kill(int(found.name), signal.SIGKILL)


def ranks(rank, folder):
    """The processes of /proc that have this rank in the run of this folder."""
    return [one for one in Path("/proc").glob("[0-9]*") if is_rank(one, rank, folder)]


def is_rank(process, rank, folder):
    """Whether a process of /proc has this rank in the run of this folder."""
    try:
        command = (process / "cmdline").read_text().split("\0")
        variables = (process / "environ").read_text().split("\0")
    except OSError:
        return False
    return str(folder) in command and f"RANK={rank}" in variables


def figures(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics["val"], metrics["stages"][0]["images_seen"]


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """A run on two processes that nothing interrupted, and what it printed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with started(recipe, "--nproc", 2, "--output", folder) as process:
        out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return folder, out


def test_command_trains_on_two_processes_and_prints_once(whole):
    folder, out = whole
    assert json.loads((folder / "environment.json").read_text())["processes"] == 2
    assert out.count("digits_small: working in") == 1
    assert out.count("report: ") == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes in /proc")
def test_killed_rank_is_told_and_the_run_goes_on_to_the_same_figures(whole, recipe, tmp_path):
    folder = tmp_path / "run"
    with started(recipe, "--nproc", 2, "--output", folder) as process:
        kill_rank(1, folder)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "ended by SIGKILL" in errors
    assert f"go on with: dr-run --nproc 2 --resume {folder}" in " ".join(errors.split())
    with started("--nproc", 2, "--resume", folder) as process:
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert figures(folder) == figures(whole[0])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes in /proc")
def test_elastic_restart_goes_on_from_the_last_checkpoint(whole, recipe, tmp_path):
    folder = tmp_path / "run"
    with started(recipe, "--nproc", 2, "--max-restarts", 1, "--output", folder) as process:
        kill_rank(0, folder)  # which writes, and holds the folder
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert figures(folder) == figures(whole[0])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes in /proc")
def test_processes_end_when_their_torchrun_is_killed(recipe, tmp_path):
    """Else they would hold the folder, and write on in it."""
    folder = tmp_path / "run"
    with started(recipe, "--set", "stages.0.epochs=100000", "--nproc", 2, "--output", folder) as process:
        wait_until(lambda: has_begun(folder))
        assert ranks(0, folder)
        process.kill()
        wait_until(lambda: not ranks(0, folder) and not ranks(1, folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nproc", "2", "tiny_fig6_cpu"], "got a sweep on 2 processes, expected one experiment"),
        (["--max-restarts", "1", "quickstart"], "--max-restarts: got 1 without --nproc"),
        (["--nproc", "0", "quickstart"], "Invalid value for '--nproc'"),
    ],
)
def test_what_several_processes_cannot_run_is_refused(arguments, message):
    result = CliRunner().invoke(run, arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output


def test_folder_of_another_run_is_refused_before_torchrun_could_go_on_in_it(whole, recipe):
    result = CliRunner().invoke(
        run, ["--nproc", "2", "--max-restarts", "1", "--output", str(whole[0]), str(recipe)]
    )
    assert result.exit_code == 2
    assert f"--output: {whole[0]} is not empty" in " ".join(result.output.split())


def test_only_who_began_a_run_goes_on_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    launched.note_launch(tmp_path)
    assert not launched.is_restart(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert launched.is_restart(tmp_path)
    assert not launched.is_restart(tmp_path / "other")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    assert not launched.is_restart(tmp_path)
    launched.forget_launch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_torchrun_with_restarts_wants_a_folder(recipe, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    result = CliRunner().invoke(run, [str(recipe)])
    assert result.exit_code == 1
    assert "--output: got none under torchrun --max-restarts, expected the run's folder" in result.output
