"""Sweeps on small data: the runs they make, that a killed one loses nothing, and what is refused before training."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from dr_plugin.experiments import (
    checkpoint,
    recipe_file,
    report_figures,
    run,
    series,
    series_run,
    stage,
    sweep,
    sweep_figures,
)
from dr_plugin.experiments.recipe import RecipeError, load_recipe
from dr_plugin.experiments.report_figures import image_png
from dr_plugin.experiments.run import is_finished, run_experiment
from dr_plugin.experiments.sweep import run_sweep
from dr_plugin.experiments.sweep_plan import plan
from dr_plugin.experiments.trainer import TrainingError

RECIPE = """\
seed: 4
data:
  dataset:
    type: TinyImageNet
    root: {root}
  selection: 2
  image_size: 16
  cache: {cache}
  augment:
    pixel_shift: 1
trunk:
  type: DeepRankingTrunk
  convnet:
    type: SmallConvNet
    channels:
      - 8
  embedding_size: 8
stages:
  - name: softmax
    epochs: 2
    batch_size: 8
    optimizer:
      type: SGD
      lr: 0.1
      momentum: 0.9
    averaged_weights:
      decay: 0.9
  - name: ranking
    epochs: 2
    batch_size: 8
    sampler:
      type: MPerClassSampler
      m: 2
    miner:
      type: UniformTripletMiner
      triplets_per_query: 4
    loss:
      type: DeepRankingLoss
    optimizer:
      type: SGD
      lr: 0.05
      momentum: 0.9
evaluation:
  k: 3
  recall_at:
    - 1
  baselines:
    - untrained
checkpoint:
  every_steps: 2
report:
  queries: 0
sweep:
  seeds:
    - 4
    - 7
  grid:
    stages.ranking.loss.gap:
      - 0.1
      - 0.4
  points:
    - stages.1.miner.triplets_per_query: 1
      stages.1.loss.gap: 0.4
  shared_stages: 1
  x: stages.ranking.loss.gap
  figures:
    - val.precision_at_3
    - train.recall_at_1
"""
POINTS = ["gap=0.1", "gap=0.4", "triplets_per_query=1,gap=0.4"]
ONE_SEED = "sweep.seeds=[4]"
TWO_RUNS = [ONE_SEED, "sweep.points=[]"]


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory, make_tiny_imagenet):
    folder = tmp_path_factory.mktemp("data")
    root = make_tiny_imagenet(folder / "data", classes=4, train=12, val=3, size=20)
    path = folder / "small.yaml"
    path.write_text(RECIPE.format(root=root, cache=folder / "cache"))
    return path


@pytest.fixture(scope="module", autouse=True)
def _undrawn():
    """The runs' pictures, which take most of the time here, are looked at elsewhere."""
    pixel = image_png(np.zeros((1, 1, 3), dtype=np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        for module in (report_figures, sweep_figures):
            patch.setattr(module, "to_png", lambda figure: pixel)
        yield


@pytest.fixture(scope="module")
def swept(recipe_path, tmp_path_factory):
    """A sweep that nothing interrupted, what it said, and its result."""
    folder, reporter = tmp_path_factory.mktemp("swept") / "sweep", Notes()
    result = run_sweep(load_recipe(recipe_path), folder, device="cpu", reporter=reporter)
    return folder, reporter.notes, result


class Notes:
    def __init__(self):
        self.notes = []

    def update(self, *_, **__):
        pass

    def note(self, text):
        self.notes.append(text)


def course(folder):
    """What a run's journal says, without what the clock put in."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("time_s", "images_per_s")} for record in records]


def figures(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    return {key: metrics[key] for key in ("val", "train", "selection", "baselines")}


def assert_same_run(one, two):
    assert course(one) == course(two)
    assert figures(one) == figures(two)
    a, b = (checkpoint.load(folder / "checkpoint" / "best.pt")["models"]["trunk"] for folder in (one, two))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def planned(recipe):
    return plan(recipe, recipe_file.parse(recipe.to_yaml(), "resolved.yaml"))


# -- whole sweeps ----------------------------------------------------------------------------------------------------


def test_folder_holds_a_run_for_each_point_and_seed(swept):
    folder, _, result = swept
    names = {path.name for path in folder.iterdir()}
    assert names == {"recipe.yaml", "runs", "shared", "sweep.json", "sweep.md", "sweep.html", "sweep.png"}
    expected = {f"{point}-seed{seed}" for point in POINTS for seed in (4, 7)}
    assert {path.name for path in (folder / "runs").iterdir()} == expected
    assert {path.name for path in (folder / "shared").iterdir()} == {"seed4", "seed7"}
    assert all(is_finished(path) for path in (folder / "runs").iterdir())
    assert not list(folder.rglob("*.partial")) + list(folder.rglob("*.new"))
    assert result.report == folder / "sweep.html"
    assert result.metrics == json.loads((folder / "sweep.json").read_text())


def test_run_of_a_point_is_an_ordinary_one(swept, recipe_path):
    folder = swept[0] / "runs" / "triplets_per_query=1,gap=0.4-seed7"
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.sweep is None
    assert recipe.name == "small-triplets_per_query=1,gap=0.4-seed7"
    settings = ["seed=7", "stages.1.miner.triplets_per_query=1", "stages.1.loss.gap=0.4", "sweep=null"]
    assert recipe == load_recipe(recipe_path, [*settings, f"name={recipe.name}"])
    assert {path.name for path in (folder / "checkpoint").iterdir()} == {"best.pt"}
    assert (folder / "environment.json").exists()


@pytest.mark.parametrize(
    ("point", "seed", "settings"),
    [
        ("gap=0.4", 4, ["stages.1.loss.gap=0.4"]),
        ("triplets_per_query=1,gap=0.4", 7, ["stages.1.loss.gap=0.4", "stages.1.miner.triplets_per_query=1"]),
    ],
)
def test_point_through_a_shared_stage_is_the_recipe_run_whole(
    swept, recipe_path, tmp_path, point, seed, settings
):
    """To the bit: figures, course and weights."""
    recipe = load_recipe(recipe_path, [*settings, f"seed={seed}", "sweep=null"])
    run_experiment(recipe, tmp_path / "whole", device="cpu")
    assert_same_run(swept[0] / "runs" / f"{point}-seed{seed}", tmp_path / "whole")


def test_shared_stage_is_trained_once_a_seed(swept):
    folder, notes, _ = swept
    assert [note for note in notes if note.startswith("shared")] == [
        "shared stages, seed 4",
        "shared stages, seed 7",
    ]
    assert {record["stage"] for record in course(folder / "shared" / "seed4")} == {"softmax"}
    assert course(folder / "shared" / "seed4") != course(folder / "shared" / "seed7")


def test_notes_count_the_points(swept):
    counted = [note for note in swept[1] if note.startswith("point")]
    assert counted == [
        "point 1/6: gap=0.1, seed 4",
        "point 2/6: gap=0.4, seed 4",
        "point 3/6: triplets_per_query=1, gap=0.4, seed 4",
        "point 4/6: gap=0.1, seed 7",
        "point 5/6: gap=0.4, seed 7",
        "point 6/6: triplets_per_query=1, gap=0.4, seed 7",
    ]


def test_table_holds_the_figures_of_the_runs(swept):
    folder, _, result = swept
    assert result.metrics["x"] == "stages.ranking.loss.gap"
    for row in result.metrics["points"]:
        for figure in ("val.precision_at_3", "train.recall_at_1"):
            part, name = figure.split(".")
            own = {
                str(seed): figures(folder / "runs" / f"{row['name']}-seed{seed}")[part][name]
                for seed in (4, 7)
            }
            assert row["figures"][figure]["values"] == own
    assert [row["along"] for row in result.metrics["points"]] == [
        {"stages.ranking.loss.gap": gap} for gap in (0.1, 0.4, 0.4)
    ]


def test_sweep_without_shared_stages_gives_the_same_runs(swept, recipe_path, tmp_path):
    recipe = load_recipe(
        recipe_path,
        [*TWO_RUNS, "sweep.shared_stages=0", "sweep.grid={stages.1.loss.gap: [0.4]}", "sweep.x=null"],
    )
    run_sweep(recipe, tmp_path / "sweep", device="cpu")
    assert not (tmp_path / "sweep" / "shared").exists()
    assert_same_run(swept[0] / "runs" / "gap=0.4-seed4", tmp_path / "sweep" / "runs" / "gap=0.4-seed4")


def test_points_may_change_the_data(recipe_path, tmp_path):
    settings = ["sweep={seeds: [1], grid: {data.classes: [2, 3]}}", "limits.steps=1", "stages.1.batch_size=4"]
    result = run_sweep(load_recipe(recipe_path, settings), tmp_path / "sweep", device="cpu")
    assert [row["figures"]["val.precision_at_3"]["n"] for row in result.metrics["points"]] == [1, 1]


# -- interruptions ---------------------------------------------------------------------------------------------------


def interrupt_after(monkeypatch, step):
    """Raise KeyboardInterrupt after so many steps of all runs together."""
    count, after_step = 0, stage.StageRun._after_step

    def stop(self, trainer):
        nonlocal count
        after_step(self, trainer)
        count += 1
        if count == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(stage.StageRun, "_after_step", stop)


def interrupt_at(monkeypatch, module, name, call):
    """Raise KeyboardInterrupt in the place of the n-th call of a module's function."""
    count, original = 0, getattr(module, name)

    def stop(*arguments, **options):
        nonlocal count
        count += 1
        if count == call:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, stop)


@pytest.mark.parametrize(
    "interrupt",
    [
        lambda patch: interrupt_after(patch, 3),  # in the shared stage
        lambda patch: interrupt_after(patch, 10 + 10 + 3),  # in the second point
        lambda patch: interrupt_at(patch, run, "conclude", 2),  # the first point's evaluation
        lambda patch: interrupt_at(
            patch, series_run, "replacing", 2
        ),  # between the two files that are copied
        lambda patch: interrupt_at(patch, series_run, "write_text", 1),  # before a new folder's recipe
        lambda patch: interrupt_at(patch, sweep, "write_sweep_report", 1),
        lambda patch: interrupt_at(patch, run, "write_text", 1),  # before a run's recipe
    ],
    ids=["shared", "second", "conclude", "copy", "copied", "table", "begin"],
)
def test_interrupted_sweep_resumes_to_the_same_bits(swept, recipe_path, tmp_path, monkeypatch, interrupt):
    folder = tmp_path / "sweep"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt(patched)
        run_sweep(load_recipe(recipe_path, TWO_RUNS), folder, device="cpu")
    run_sweep(load_recipe(folder / "recipe.yaml"), folder, device="cpu", resume=True)
    for name in ("gap=0.1-seed4", "gap=0.4-seed4"):
        assert_same_run(swept[0] / "runs" / name, folder / "runs" / name)
    assert (
        not list(folder.rglob("*.partial"))
        + list(folder.rglob("*.new"))
        + list(folder.rglob("runs/*/*/last.pt"))
    )


CHILD = """\
import sys
from pathlib import Path
import torch
from dr_plugin.experiments.recipe import load_recipe
from dr_plugin.experiments.sweep import run_sweep
torch.set_num_threads(int(sys.argv[2]))
recipe, folder = sys.argv[1], Path(sys.argv[3])
run_sweep(load_recipe(recipe, sys.argv[4:]), folder, device="cpu")
"""


def test_killed_process_resumes_to_the_same_bits(swept, recipe_path, tmp_path):
    """SIGKILL a real process while its point trains."""
    folder, threads = tmp_path / "sweep", str(torch.get_num_threads())
    settings = [*TWO_RUNS, "sweep.grid={stages.1.loss.gap: [0.4]}", "sweep.x=null"]
    command = [sys.executable, "-c", CHILD, str(recipe_path), threads, str(folder), *settings]
    journal = folder / "runs" / "gap=0.4-seed4" / "metrics.jsonl"
    shared = len(course(swept[0] / "shared" / "seed4"))
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not (journal.exists() and journal.read_bytes().count(b"\n") > shared + 2):
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    run_sweep(load_recipe(folder / "recipe.yaml"), folder, device="cpu", resume=True)
    assert_same_run(swept[0] / "runs" / "gap=0.4-seed4", folder / "runs" / "gap=0.4-seed4")


def test_what_a_kill_leaves_behind_is_cleared(swept, recipe_path, tmp_path):
    """A run's folder without a whole recipe.yaml, and one that was being made."""
    folder, recipe = tmp_path / "sweep", load_recipe(recipe_path, TWO_RUNS)
    (folder / "runs" / "gap=0.1-seed4").mkdir(parents=True)
    (folder / "runs" / "gap=0.1-seed4" / "recipe.yaml.partial").write_text("see")
    (folder / "runs" / ".gap=0.4-seed4.new").mkdir()
    (folder / "runs" / ".gap=0.4-seed4.new" / "stale").write_text("old")
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    run_sweep(recipe, folder, device="cpu", resume=True)
    for name in ("gap=0.1-seed4", "gap=0.4-seed4"):
        assert_same_run(swept[0] / "runs" / name, folder / "runs" / name)
    names = {path.name for path in folder.rglob("*")}
    assert not names & {"recipe.yaml.partial", ".gap=0.4-seed4.new", "stale"}


def test_resume_runs_nothing_that_is_finished(swept, monkeypatch):
    folder, _, result = swept
    monkeypatch.setattr(series_run, "run_experiment", None)
    monkeypatch.setattr(series, "load_data", None)
    again = run_sweep(load_recipe(folder / "recipe.yaml"), folder, device="cpu", resume=True)
    assert again.metrics == result.metrics


@pytest.mark.parametrize(
    ("step", "reason"), [(3, "the loss became nan"), (5, "got NaN")], ids=["training", "evaluation"]
)
def test_run_that_diverges_is_told_and_keeps_no_other_from_running(
    swept, recipe_path, tmp_path, monkeypatch, step, reason
):
    after_step = stage.StageRun._after_step

    def poison(self, trainer):
        after_step(self, trainer)
        if self.context.folder.name == "gap=0.1-seed4" and trainer.steps_done == step:
            with torch.no_grad():
                trainer.models["trunk"].convnet[0].weight.fill_(float("nan"))

    folder = tmp_path / "sweep"
    with monkeypatch.context() as patched, pytest.raises(TrainingError) as caught:
        patched.setattr(stage.StageRun, "_after_step", poison)
        run_sweep(load_recipe(recipe_path, TWO_RUNS), folder, device="cpu")
    assert str(caught.value).startswith(f"1 of 2 runs failed, the others are in {folder / 'sweep.html'}; ")
    assert f"gap=0.1-seed4: {reason}" in str(caught.value)
    table = json.loads((folder / "sweep.json").read_text())
    assert [row["figures"]["val.precision_at_3"]["n"] for row in table["points"]] == [0, 1]
    assert list(table["failed"]) == ["gap=0.1-seed4"]
    result = run_sweep(load_recipe(folder / "recipe.yaml"), folder, device="cpu", resume=True)
    assert result.metrics["failed"] == {}
    assert_same_run(swept[0] / "runs" / "gap=0.1-seed4", folder / "runs" / "gap=0.1-seed4")


def test_figure_that_no_run_has_is_told_after_the_first(recipe_path, tmp_path):
    settings = ["sweep={seeds: [1], figures: [val.precison, val.precision_at_3]}", "limits.steps=1"]
    reporter = Notes()
    run_sweep(load_recipe(recipe_path, settings), tmp_path / "sweep", device="cpu", reporter=reporter)
    told = [note for note in reporter.notes if "sweep.figures" in note]
    assert told == ["sweep.figures: no metrics.json has a number at val.precison so far"]


# -- refusals --------------------------------------------------------------------------------------------------------


def test_single_experiment_and_sweep_refuse_the_other_ones_recipe(recipe_path, tmp_path):
    with pytest.raises(RecipeError, match="got a sweep, expected one experiment"):
        run_experiment(load_recipe(recipe_path), tmp_path / "run", device="cpu")
    with pytest.raises(RecipeError, match="expected a recipe with a sweep"):
        run_sweep(load_recipe(recipe_path, ["sweep=null"]), tmp_path / "run", device="cpu")
    assert not list(tmp_path.iterdir())


def test_folder_in_use_is_refused_and_left_alone(recipe_path, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RecipeError, match="is not empty; choose another folder"):
        run_sweep(load_recipe(recipe_path), tmp_path, device="cpu")
    with pytest.raises(RecipeError, match=r"holds no recipe\.yaml"):
        run_sweep(load_recipe(recipe_path), tmp_path, device="cpu", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_resume_with_another_recipe_is_refused(swept, monkeypatch):
    folder = swept[0]
    monkeypatch.setattr(series_run, "run_experiment", None)
    other = load_recipe(folder / "recipe.yaml", ["stages.0.epochs=3"])
    with pytest.raises(RecipeError, match=r"gap=0\.1-seed4 was made by another recipe"):
        run_sweep(other, folder, device="cpu", resume=True)


def test_finished_point_is_not_resumed_by_itself(swept):
    """It has no last.pt: a resume would begin anew over its figures."""
    folder = swept[0] / "runs" / "gap=0.1-seed4"
    with pytest.raises(RecipeError, match=r"finished run without last\.pt"):
        run_experiment(load_recipe(folder / "recipe.yaml"), folder, device="cpu", resume=True)


def test_all_points_are_held_against_the_data_before_training(recipe_path, tmp_path):
    settings = [
        "sweep={seeds: [1], grid: {stages.ranking.batch_size: [8, 1000, 2000]}}",
        "stages.ranking.sampler=null",
    ]
    with pytest.raises(RecipeError) as caught:
        run_sweep(load_recipe(recipe_path, settings), tmp_path / "sweep", device="cpu")
    assert caught.value.lines == [
        f"stages[1].batch_size: got {size}, expected at most 40, the images to train on"
        for size in (1000, 2000)
    ]
    assert not list(tmp_path.iterdir())
