"""Whole runs on small data: the folder they leave, and that a killed one resumes to the same bits."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from dr_plugin.experiments import checkpoint, run, stage
from dr_plugin.experiments.recipe import RecipeError, load_recipe
from dr_plugin.experiments.run import run_experiment
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
    horizontal_flip: true
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
    cutmix: 1.0
    label_smoothing: 0.1
    optimizer:
      type: SGD
      lr: 0.1
      momentum: 0.9
    averaged_weights:
      decay: 0.9
  - name: ranking
    epochs: 3
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
    scheduler:
      type: OneCycleLR
evaluation:
  k: 3
  recall_at:
    - 1
  baselines:
    - untrained
    - pixels
    - hog
checkpoint:
  every_steps: 2
report:
  queries: 2
  top: 3
  bottom: 3
"""


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, make_tiny_imagenet):
    folder = tmp_path_factory.mktemp("data")
    root = make_tiny_imagenet(folder / "data", classes=4, train=12, val=3, size=20)
    path = folder / "small.yaml"
    path.write_text(RECIPE.format(root=root, cache=folder / "cache"))
    return path


@pytest.fixture(scope="module")
def whole(recipe_file, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run_experiment(load_recipe(recipe_file), folder, device="cpu")


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
    for name in ("last.pt", "best.pt"):
        a, b = (checkpoint.load(folder / "checkpoint" / name)["models"]["trunk"] for folder in (one, two))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_run_leaves_all_that_it_takes_to_repeat_and_judge_it(whole, recipe_file):
    folder, result = whole
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "recipe.yaml",
        "metrics.json",
        "metrics.jsonl",
        "environment.json",
        "checkpoint",
        "report",
    }
    assert load_recipe(folder / "recipe.yaml") == load_recipe(recipe_file)
    assert result.report == folder / "report" / "report.html"
    assert result.metrics == json.loads((folder / "metrics.json").read_text())
    assert {
        "val",
        "train",
        "selection",
        "baselines",
        "stages",
        "wall_time_s",
        "peak_memory_mib",
        "peak_memory_of",
        "name",
        "k",
    } == result.metrics.keys()
    assert set(result.metrics["baselines"]) == {"untrained", "pixels", "hog"}
    assert [item["steps"] for item in result.metrics["stages"]] == [2 * 5, 3 * 5]
    assert [item["images_seen"] for item in result.metrics["stages"]] == [80, 120]
    assert not list(folder.rglob("*.partial"))


def test_environment_names_no_user_host_or_path(whole):
    text = (whole[0] / "environment.json").read_text()
    for secret in (os.uname().nodename, os.path.expanduser("~"), str(whole[0])):
        assert secret not in text
    assert json.loads(text)["packages"]["torch"] == torch.__version__.split("+")[0]


def test_journal_tells_the_course(whole):
    records = course(whole[0])
    evaluated = [(r["stage"], r["epoch"]) for r in records if r["event"] == "evaluate"]
    assert evaluated == [("softmax", 1), ("softmax", 2), ("ranking", 1), ("ranking", 2), ("ranking", 3)]
    assert [r["step"] for r in records if r["event"] == "train" and r["stage"] == "ranking"] == list(
        range(1, 16)
    )
    assert all(0 <= r["precision_at_3"] <= 1 for r in records if r["event"] == "evaluate")


def test_best_checkpoint_is_the_best_of_the_last_stage(whole):
    evaluated = [r for r in course(whole[0]) if r["event"] == "evaluate" and r["stage"] == "ranking"]
    best = max(evaluated, key=lambda record: record["precision_at_3"])
    saved = checkpoint.load(whole[0] / "checkpoint" / "best.pt")["best"]
    assert (saved["epoch"], saved["precision_at_3"]) == (best["epoch"], best["precision_at_3"])
    assert whole[1].metrics["selection"]["precision_at_3"] == best["precision_at_3"]


def test_same_recipe_gives_the_same_numbers(whole, recipe_file, tmp_path):
    run_experiment(load_recipe(recipe_file), tmp_path / "again", device="cpu")
    assert_same_run(whole[0], tmp_path / "again")


def test_another_seed_gives_other_numbers(whole, recipe_file, tmp_path):
    run_experiment(load_recipe(recipe_file, ["seed=5"]), tmp_path / "other", device="cpu")
    assert course(whole[0]) != course(tmp_path / "other")


CHILD = """\
import sys
from pathlib import Path
from dr_plugin.experiments.recipe import load_recipe
from dr_plugin.experiments.run import run_experiment
import torch
torch.set_num_threads(int(sys.argv[4]))
run_experiment(load_recipe(sys.argv[1]), Path(sys.argv[2]), device="cpu", resume=sys.argv[3] == "resume")
"""


def start(recipe_file, folder, mode):
    arguments = [
        sys.executable,
        "-c",
        CHILD,
        str(recipe_file),
        str(folder),
        mode,
        str(torch.get_num_threads()),
    ]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE)


def killed_when(process, condition):
    """SIGKILL the process as soon as the condition holds; False if it ended by itself before."""
    deadline = time.monotonic() + 300
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode != 0


def test_killed_process_resumes_to_the_same_bits(whole, recipe_file, tmp_path):
    """SIGKILL a real process in the first epoch, between the stages, in the second one and in the evaluation."""
    folder = tmp_path / "run"

    def lines():
        path = folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    assert killed_when(start(recipe_file, folder, "new"), lambda: lines() >= 3)
    assert killed_when(start(recipe_file, folder, "resume"), lambda: lines() >= 11)
    assert killed_when(start(recipe_file, folder, "resume"), lambda: lines() >= 17)
    # The evaluation is short: on a busy machine it may be over before the signal comes.
    killed_when(start(recipe_file, folder, "resume"), lambda: lines() >= len(course(whole[0])))
    last = start(recipe_file, folder, "resume")
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors.decode()
    assert_same_run(whole[0], folder)


@pytest.mark.parametrize("step", [1, 2, 5, 9, 10, 11, 14, 15, 21, 25])
def test_stop_after_any_step_resumes_to_the_same_bits(whole, recipe_file, tmp_path, monkeypatch, step):
    """The same inside one process, at more points: step counts run over both stages (10 and 15 steps)."""
    count = 0
    after_step = stage.StageRun._after_step

    def stop(self, trainer):
        nonlocal count
        after_step(self, trainer)
        count += 1
        if count == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stage.StageRun, "_after_step", stop)
        run_experiment(load_recipe(recipe_file), tmp_path / "run", device="cpu")
    run_experiment(load_recipe(tmp_path / "run" / "recipe.yaml"), tmp_path / "run", device="cpu", resume=True)
    assert_same_run(whole[0], tmp_path / "run")


def test_resume_at_the_step_that_a_limit_cuts_loses_nothing(recipe_file, tmp_path, monkeypatch):
    """The budget's last step is also one to save at; a kill right after it must not skip the evaluation."""
    recipe = load_recipe(recipe_file, ["limits.steps=8", "evaluation.baselines=[]"])
    run_experiment(recipe, tmp_path / "whole", device="cpu")
    after_step = stage.StageRun._after_step

    def stop(self, trainer):
        after_step(self, trainer)
        if trainer.steps_done == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stage.StageRun, "_after_step", stop)
        run_experiment(recipe, tmp_path / "run", device="cpu")
    run_experiment(recipe, tmp_path / "run", device="cpu", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_compile_compiles_what_each_stage_trains(recipe_file, tmp_path, monkeypatch):
    """With the eager backend, which needs no compiler; averaged copies and checkpoints are as without."""
    compiled = []
    compile_module = torch.nn.Module.compile

    def watch(module):
        compiled.append(type(module).__name__)
        compile_module(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", watch)
    recipe = load_recipe(recipe_file, ["compile=true", "limits.steps=2", "evaluation.baselines=[]"])
    result = run_experiment(recipe, tmp_path / "run", device="cpu")
    assert compiled == ["SmallConvNet", "DeepRankingTrunk"]
    assert [item["steps"] for item in result.metrics["stages"]] == [2, 2]
    torch.compiler.reset()


def test_resume_on_other_data_is_refused(recipe_file, tmp_path, make_tiny_imagenet):
    run_experiment(
        load_recipe(recipe_file, ["limits.steps=1", "evaluation.baselines=[]"]),
        tmp_path / "run",
        device="cpu",
    )
    other = make_tiny_imagenet(tmp_path / "other", classes=4, train=13, val=3, size=20)
    saved = load_recipe(tmp_path / "run" / "recipe.yaml", [f"data.dataset.root={other}"])
    with pytest.raises(RecipeError, match="--resume: the data set is not the one"):
        run_experiment(saved, tmp_path / "run", device="cpu", resume=True)


def test_finished_run_resumes_to_its_report_alone(whole, recipe_file, tmp_path, monkeypatch):
    """A kill in the evaluation costs no training."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "conclude", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_experiment(load_recipe(recipe_file), tmp_path / "run", device="cpu")
    monkeypatch.setattr(run, "StageRun", None)
    run_experiment(load_recipe(recipe_file), tmp_path / "run", device="cpu", resume=True)
    assert_same_run(whole[0], tmp_path / "run")


def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(recipe_file, tmp_path, monkeypatch):
    after_step = stage.StageRun._after_step

    def poison(self, trainer):
        after_step(self, trainer)
        if trainer.steps_done == 7:
            with torch.no_grad():
                trainer.models["trunk"].convnet[0].weight.fill_(float("nan"))

    with monkeypatch.context() as patched, pytest.raises(TrainingError, match="loss became nan"):
        patched.setattr(stage.StageRun, "_after_step", poison)
        run_experiment(load_recipe(recipe_file), tmp_path / "run", device="cpu")
    state = checkpoint.load(tmp_path / "run" / "checkpoint" / "last.pt")
    assert state["position"]["steps_done"] == 6
    assert all(
        torch.isfinite(value).all()
        for value in state["models"]["trunk"].values()
        if value.is_floating_point()
    )


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["limits.steps=3"], [3, 3]),
        (["limits.images=17"], [3, 3]),
        (["limits.steps=7", "limits.images=16"], [2, 2]),
    ],
)
def test_limits_cut_each_stage_short(recipe_file, tmp_path, overrides, steps):
    result = run_experiment(
        load_recipe(recipe_file, [*overrides, "evaluation.baselines=[]"]), tmp_path / "run", device="cpu"
    )
    assert [item["steps"] for item in result.metrics["stages"]] == steps


def test_selection_zero_evaluates_nothing_and_hands_on_the_last_weights(recipe_file, tmp_path):
    quiet = ["stages.0.evaluate_every=0", "stages.1.evaluate_every=0", "evaluation.baselines=[]"]
    recipe = load_recipe(recipe_file, ["data.selection=0", "limits.steps=2", *quiet])
    result = run_experiment(recipe, tmp_path / "run", device="cpu")
    assert result.metrics["selection"] is None
    assert not [record for record in course(tmp_path / "run") if record["event"] == "evaluate"]
    best, last = (
        checkpoint.load(tmp_path / "run" / "checkpoint" / f"{name}.pt") for name in ("best", "last")
    )
    assert all(
        torch.equal(best["models"]["trunk"][k], last["models"]["trunk"][k]) for k in best["models"]["trunk"]
    )


def test_classes_keep_the_first_labels_or_those_named(recipe_file, tmp_path):
    two = load_recipe(
        recipe_file, ["data.classes=2", "limits.steps=1", "evaluation.baselines=[]", "stages.1.batch_size=4"]
    )
    run_experiment(two, tmp_path / "two", device="cpu")
    named = load_recipe(
        recipe_file,
        [
            "data.classes=[n10000137, n10000000]",
            "limits.steps=1",
            "evaluation.baselines=[]",
            "stages.1.batch_size=4",
        ],
    )
    run_experiment(named, tmp_path / "named", device="cpu")
    assert figures(tmp_path / "two") == figures(tmp_path / "named")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.classes=9"], "data.classes: got 9, expected at most 4"),
        (
            ["data.classes=[n10000137, dog]", "stages.1.batch_size=4"],
            "data.classes: got 'dog', expected class ids",
        ),
        (["data.selection=11"], "data.selection: got 11 images a class"),
        (["data.dataset.root=nowhere"], "nowhere"),
    ],
)
def test_data_that_does_not_fit_is_one_clear_error(recipe_file, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        run_experiment(load_recipe(recipe_file, overrides), tmp_path / "run", device="cpu")


def test_folder_in_use_is_refused_and_left_alone(recipe_file, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RecipeError, match="is not empty; choose another folder"):
        run_experiment(load_recipe(recipe_file), tmp_path, device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_resume_without_a_run_is_refused(recipe_file, tmp_path):
    with pytest.raises(RecipeError, match=r"--resume: .* holds no recipe\.yaml"):
        run_experiment(load_recipe(recipe_file), tmp_path, device="cpu", resume=True)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "tpu", "meta"])
def test_unknown_device_is_refused_before_a_folder_is_made(recipe_file, tmp_path, device):
    with pytest.raises(RecipeError, match=f"--device: got '{device}', expected auto, cpu"):
        run_experiment(load_recipe(recipe_file), tmp_path / "run", device=device)
    assert not (tmp_path / "run").exists()
