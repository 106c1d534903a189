"""Whole runs on several processes: one folder, resumed on any number of them."""

import json

import pytest
from torch import nn

from dr_plugin.experiments import stage
from dr_plugin.experiments.recipe import RecipeError, load_recipe
from dr_plugin.experiments.run import run_experiment

from ..processes import on_ranks
from .test_run import RECIPE, assert_same_run, course

STREAM = """\
    stream:
      type: TripletStream
      byte_budget: 100000
      triplets_per_image: 1
      weighting: uniform
      shared: {shared}
"""


class StopError(Exception):
    """In the place of a kill: all processes stop after the same step."""


def run(recipe, folder, resume=False, stop_after=None):
    """The run's metrics on this process; None where it was stopped after so many checkpoints."""
    saved = 0
    save = stage.StageRun._save

    def counted(self):
        nonlocal saved
        save(self)
        saved += 1
        if saved == stop_after:
            raise StopError

    stage.StageRun._save = counted
    try:
        return run_experiment(load_recipe(recipe), folder, device="cpu", resume=resume).metrics
    except StopError:
        return None
    finally:
        stage.StageRun._save = save


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, make_tiny_imagenet):
    folder = tmp_path_factory.mktemp("data")
    root = make_tiny_imagenet(folder / "data", classes=4, train=12, val=3, size=20)
    path = folder / "small.yaml"
    text = RECIPE.format(root=root, cache=folder / "cache").replace("    - hog\n", "")
    path.write_text(text.replace("epochs: 3", "epochs: 2").replace("cutmix: 1.0", "cutmix: null"))
    return path


def test_two_processes_leave_one_run_and_all_get_its_figures(recipe, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    found = on_ranks(2, run, recipe, whole)
    assert found[0] == found[1] == json.loads((whole / "metrics.json").read_text())
    assert json.loads((whole / "environment.json").read_text())["processes"] == 2
    assert (whole / "report" / "report.html").is_file()
    assert on_ranks(2, run, recipe, stopped, False, 3) == [None, None]
    on_ranks(2, run, recipe, stopped, True)
    assert_same_run(whole, stopped)


class PlainTrunk(nn.Module):
    """Without batch normalisation and dropout, which differ between one process and several."""

    def __init__(self, input_size, embedding_size):
        super().__init__()
        self.embedding_size = embedding_size
        self.convnet = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()
        )
        self.head = nn.Linear(72, embedding_size)

    def forward(self, images):
        return nn.functional.normalize(self.head(self.convnet(images)))


def test_run_goes_on_with_more_and_with_fewer_processes(recipe, tmp_path):
    text = recipe.read_text()
    start, end = text.index("trunk:\n"), text.index("stages:\n")
    trunk = f"trunk:\n  type: {__name__}.PlainTrunk\n  embedding_size: 8\n"
    recipe = recipe.with_name("plain.yaml")
    recipe.write_text(text[:start] + trunk + text[end:])
    folder = tmp_path / "run"
    on_ranks(2, run, recipe, folder, False, 2)
    on_ranks(3, run, recipe, folder, True, 3)
    run(recipe, folder, resume=True)
    alone = tmp_path / "alone"
    run(recipe, alone)
    mixed, expected = course(folder), course(alone)
    assert len(mixed) == len(expected)
    for one, other in zip(mixed, expected, strict=True):
        for key in ("event", "stage", "epoch", "step", "images_seen", "learning_rate"):
            assert one.get(key) == other.get(key)
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-3)


@pytest.mark.parametrize("shared", ["false", "true"])
def test_each_process_streams_its_share(shared, recipe, tmp_path):
    text = recipe.read_text()
    start, end = text.index("    sampler:\n      type: MPerClass"), text.index("    loss:\n      type: Deep")
    miner = "    miner:\n      type: EmbeddingsAlreadyPackagedAsTriplets\n"
    streamed = recipe.with_name("streamed.yaml")
    text = text[:start] + STREAM.format(shared=shared) + miner + text[end:]
    before, ranking = text.split("  - name: ranking\n")
    streamed.write_text(before + "  - name: ranking\n" + ranking.replace("batch_size: 8", "batch_size: 12"))
    found = on_ranks(2, run, streamed, tmp_path / "two")
    alone = run(streamed, tmp_path / "one")
    for metrics in (*found, alone):
        counted = metrics["stages"][1]
        assert counted["images_seen"] == counted["steps"] * 12
        assert counted["triplets"]["accepted"] == counted["steps"] * 4
    assert found[0]["stages"][1]["steps"] == alone["stages"][1]["steps"]


def refused(recipe, folder):
    with pytest.raises(RecipeError) as caught:
        run_experiment(load_recipe(recipe, ["stages.1.batch_size=2"]), folder, device="cpu")
    return caught.value.lines


def on_cpus(recipe, folder):
    with pytest.raises(RecipeError, match="sync_batchnorm: got true on CPUs, expected false"):
        run_experiment(load_recipe(recipe, ["sync_batchnorm=true"]), folder, device="cpu")


def test_sync_batchnorm_wants_gpus(recipe, tmp_path):
    on_ranks(2, on_cpus, recipe, tmp_path / "run")


def test_batch_smaller_than_the_processes_is_refused_by_all(recipe, tmp_path):
    line = "stages[1].batch_size: got 2 on 3 processes, expected at least 3, an image for each"
    assert on_ranks(3, refused, recipe, tmp_path / "run") == [[line]] * 3
    assert not (tmp_path / "run").exists()
