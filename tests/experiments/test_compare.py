"""Comparisons on small data: the runs they make, on one device and on several, and what is refused before training."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dr_plugin.cli import main
from dr_plugin.experiments import checkpoint, report_figures, series, series_run, stage
from dr_plugin.experiments.compare import run_comparison
from dr_plugin.experiments.recipe import RecipeError, load_recipe
from dr_plugin.experiments.report_figures import image_png
from dr_plugin.experiments.run import is_finished, run_experiment
from dr_plugin.experiments.trainer import TrainingError

from .fault_cases import flip, largest_file

RECIPE = """\
data:
  dataset:
    type: TinyImageNet
    root: {root}
  selection: 2
  image_size: 16
  cache: {cache}
trunk:
  type: DeepRankingTrunk
  convnet:
    type: SmallConvNet
    channels:
      - 8
  embedding_size: 8
stages:
  - name: softmax
    epochs: 1
    batch_size: 8
    optimizer:
      type: SGD
      lr: 0.1
  - name: ranking
    epochs: 2
    batch_size: 8
    sampler:
      type: MPerClassSampler
      m: 2
    loss:
      type: ContrastiveLoss
    optimizer:
      type: SGD
      lr: 0.05
evaluation:
  k: 3
report:
  queries: 0
compare:
  seeds:
    - 4
    - 7
  variants:
    contrastive: {{}}
    proxies:
      stages.ranking.sampler: null
      stages.ranking.loss:
        type: ProxyAnchorLoss
      stages.ranking.loss_optimizer:
        type: SGD
        lr: 1.0
"""
PAGES = {"comparison.json", "comparison.md", "comparison.html", "comparison.png"}
RUNS = {f"{name}-seed{seed}" for name in ("contrastive", "proxies") for seed in (4, 7)}


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory, make_tiny_imagenet):
    folder = tmp_path_factory.mktemp("data")
    root = make_tiny_imagenet(folder / "data", classes=4, train=10, val=3, size=20)
    path = folder / "small.yaml"
    path.write_text(RECIPE.format(root=root, cache=folder / "cache"))
    return path


@pytest.fixture(scope="module", autouse=True)
def _undrawn():
    """The runs' pictures, which take most of the time here, are looked at elsewhere."""
    pixel = image_png(np.zeros((1, 1, 3), dtype=np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_figures, "to_png", lambda figure: pixel)
        yield


class Notes:
    def __init__(self):
        self.notes = []

    def update(self, *_, **__):
        pass

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def compared(recipe_path, tmp_path_factory):
    """A comparison that nothing interrupted, what it said, and its result."""
    folder, reporter = tmp_path_factory.mktemp("compared") / "comparison", Notes()
    result = run_comparison(load_recipe(recipe_path), folder, device="cpu", reporter=reporter)
    return folder, reporter.notes, result


def outcome(folder):
    """The figures of a run, and the weights that it ended with."""
    metrics = json.loads((folder / "metrics.json").read_text())
    weights = checkpoint.load(folder / "checkpoint" / "best.pt")["models"]["trunk"]
    return metrics["val"], metrics["selection"], {name: value.tolist() for name, value in weights.items()}


def test_folder_holds_the_runs_of_all_variants_and_seeds(compared):
    folder, notes, result = compared
    assert {path.name for path in folder.iterdir()} == {"recipe.yaml", "runs", "shared", *PAGES}
    assert {path.name for path in (folder / "runs").iterdir()} == RUNS
    assert all(is_finished(path) for path in (folder / "runs").iterdir())
    assert result.metrics == json.loads((folder / "comparison.json").read_text())
    assert [note for note in notes if note.startswith(("run ", "shared"))] == [
        "shared stages, seed 4",
        "run 1/4: contrastive, seed 4",
        "run 2/4: proxies, seed 4",
        "shared stages, seed 7",
        "run 3/4: contrastive, seed 7",
        "run 4/4: proxies, seed 7",
    ]


def test_table_holds_the_figures_of_the_runs(compared):
    folder, _, result = compared
    row = result.metrics["variants"][1]
    assert row["name"] == "proxies"
    values = {
        str(seed): outcome(folder / "runs" / f"proxies-seed{seed}")[0]["precision_at_3"] for seed in (4, 7)
    }
    assert row["figures"]["val.precision_at_3"]["values"] == values
    assert row["images_seen"]["mean"] == 64


def test_run_of_a_variant_is_the_recipe_run_whole(compared, recipe_path, tmp_path):
    """To the bit, although its first stage was trained for all variants."""
    settings = ["stages.1.sampler=null", "stages.1.loss={type: ProxyAnchorLoss}", "seed=7", "compare=null"]
    settings.append("stages.1.loss_optimizer={type: SGD, lr: 1.0}")
    run_experiment(load_recipe(recipe_path, settings), tmp_path / "whole", device="cpu")
    assert outcome(compared[0] / "runs" / "proxies-seed7") == outcome(tmp_path / "whole")


def test_several_devices_give_the_same_runs(compared, recipe_path, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    folder, reporter = tmp_path / "comparison", Notes()
    recipe = load_recipe(recipe_path, ["compare.seeds=[4]"])
    result = run_comparison(recipe, folder, device=["cpu", "cpu"], reporter=reporter)
    assert result.metrics["finished"] == result.metrics["total"] == 2
    told = [note for note in reporter.notes if note.startswith("run")]
    assert told == ["run 1/2: contrastive, seed 4 (on cpu)", "run 2/2: proxies, seed 4 (on cpu)"]
    for name in ("contrastive-seed4", "proxies-seed4"):
        ours, theirs = (outcome(place / "runs" / name) for place in (folder, compared[0]))
        assert ours[0] == pytest.approx(theirs[0])
        assert ours[1] == pytest.approx(theirs[1])


def test_interrupted_comparison_resumes_to_the_same_bits(compared, recipe_path, tmp_path, monkeypatch):
    original, steps = stage.StageRun._after_step, 0

    def stop(self, trainer):
        nonlocal steps
        original(self, trainer)
        steps += 1
        if steps == 4 + 8 + 3:  # shared stage, first variant, and into the second
            raise KeyboardInterrupt

    folder = tmp_path / "comparison"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stage.StageRun, "_after_step", stop)
        run_comparison(load_recipe(recipe_path), folder, device="cpu")
    begun = {path.name for path in (folder / "runs").iterdir()}
    assert begun == {"contrastive-seed4", "proxies-seed4"}
    run_comparison(load_recipe(folder / "recipe.yaml"), folder, device="cpu", resume=True)
    for name in RUNS:
        assert outcome(folder / "runs" / name) == outcome(compared[0] / "runs" / name)


def test_resume_runs_nothing_that_is_finished(compared, monkeypatch):
    monkeypatch.setattr(series_run, "run_experiment", None)
    monkeypatch.setattr(series, "load_data", None)
    result = run_comparison(load_recipe(compared[0] / "recipe.yaml"), compared[0], device="cpu", resume=True)
    assert result.metrics == compared[2].metrics


def test_variant_that_diverges_keeps_no_other_from_running(recipe_path, tmp_path, monkeypatch):
    original = stage.StageRun._after_step

    def poison(self, trainer):
        original(self, trainer)
        if "proxies" in self.context.recipe.name:
            next(trainer.models["trunk"].parameters()).data.fill_(torch.nan)

    monkeypatch.setattr(stage.StageRun, "_after_step", poison)
    folder = tmp_path / "comparison"
    recipe = load_recipe(recipe_path, ["compare.seeds=[4]"])
    wanted = r"1 of 2 runs failed, the others are in .*; proxies-seed4: the loss became nan"
    with pytest.raises(TrainingError, match=wanted):
        run_comparison(recipe, folder, device="cpu")
    rows = {row["name"]: row for row in json.loads((folder / "comparison.json").read_text())["variants"]}
    assert "the loss became nan" in rows["proxies"]["failed"]["4"]
    assert rows["contrastive"]["figures"]["val.precision_at_3"]["n"] == 1


def broken(self, *_):
    raise RuntimeError("shapes do not fit\nat all")


def test_out_of_memory_names_what_to_turn(recipe_path, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(stage.StageRun, "_after_step", fail)
    wanted = (
        r"seed4: .*out of memory \(CUDA out of .* GiB\.\): start anew with a smaller batch_size or evaluation"
    )
    with pytest.raises(TrainingError, match=wanted):
        run_comparison(load_recipe(recipe_path, ["compare.seeds=[4]"]), tmp_path / "c", device="cpu")


def test_error_of_any_kind_ends_its_run_alone(recipe_path, tmp_path, monkeypatch):
    original = stage.StageRun._after_step
    monkeypatch.setattr(
        stage.StageRun,
        "_after_step",
        lambda self, trainer: (broken if "contrastive" in self.context.recipe.name else original)(
            self, trainer
        ),
    )
    folder = tmp_path / "comparison"
    with pytest.raises(TrainingError, match="contrastive-seed4: RuntimeError: shapes do not fit "):
        run_comparison(load_recipe(recipe_path, ["compare.seeds=[4]"]), folder, device="cpu")
    report = folder / "runs" / "contrastive-seed4" / "failure.txt"
    assert "Traceback" in report.read_text()
    monkeypatch.setattr(stage.StageRun, "_after_step", original)
    result = run_comparison(load_recipe(folder / "recipe.yaml"), folder, device="cpu", resume=True)
    assert result.metrics["finished"] == 2
    assert not report.exists()


def test_shared_stage_that_fails_ends_the_runs_of_its_seed_alone(recipe_path, tmp_path, monkeypatch):
    original = stage.StageRun._after_step
    monkeypatch.setattr(
        stage.StageRun,
        "_after_step",
        lambda self, trainer: (broken if self.context.recipe.name.endswith("shared-seed4") else original)(
            self, trainer
        ),
    )
    folder = tmp_path / "comparison"
    with pytest.raises(TrainingError, match="2 of 4 runs failed"):
        run_comparison(load_recipe(recipe_path), folder, device="cpu")
    table = json.loads((folder / "comparison.json").read_text())
    assert [list(row["failed"]) for row in table["variants"]] == [["4"], ["4"]]
    assert [list(row["runs"]) for row in table["variants"]] == [["7"], ["7"]]
    assert table["variants"][0]["failed"]["4"].startswith(
        "shared stages, seed 4: RuntimeError: shapes do not fit"
    )


def test_full_disk_ends_a_comparison_on_several_devices(compared, recipe_path, tmp_path):
    """The processes have the limit on a file's size, too; a checkpoint alone is larger."""
    folder = tmp_path / "comparison"
    arguments = [recipe_path, "--set", "compare.seeds=[4]", "--output", folder, *["--device", "cpu"] * 2]
    with largest_file(8_000):
        result = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "last.pt: cannot be written (file too large)" in line
    assert line.endswith(f"; go on with: dr compare --resume {folder}")
    assert not (folder / "runs").exists()
    assert not list(folder.rglob("failure.txt"))


def test_damaged_shared_checkpoint_is_copied_into_no_run(recipe_path, tmp_path, monkeypatch):
    def stop(run):
        raise KeyboardInterrupt

    folder, recipe = tmp_path / "comparison", load_recipe(recipe_path, ["compare.seeds=[4]"])
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(series_run, "_begin", stop)
        run_comparison(recipe, folder, device="cpu")
    last = folder / "shared" / "seed4" / "checkpoint" / "last.pt"
    flip(last)
    wanted = r"last\.pt: not a readable checkpoint .*; remove .*shared/seed4 to train the shared stages anew"
    with pytest.raises(TrainingError, match=wanted):
        run_comparison(recipe, folder, device="cpu", resume=True)
    assert not list((folder / "runs").glob("*"))
    shutil.rmtree(last.parents[1])
    assert run_comparison(recipe, folder, device="cpu", resume=True).metrics["finished"] == 2


CHILD = """
import sys
from dr_plugin.cli import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
"""


def test_ctrl_c_ends_all_processes_in_one_line(recipe_path, tmp_path):
    """As from a terminal: every process of the group is told."""
    script, folder = tmp_path / "child.py", tmp_path / "comparison"
    script.write_text(CHILD)
    arguments = [recipe_path, "--set", "stages.1.epochs=1000", "--output", folder, *["--device", "cpu"] * 2]
    process = subprocess.Popen(
        [sys.executable, script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        journal = folder / "runs" / "contrastive-seed4" / "metrics.jsonl"
        deadline = time.monotonic() + 600
        while not (journal.exists() and b"ranking" in journal.read_bytes()):
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=300)[1].decode()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130
    assert errors.split() == f"interrupted; go on with: dr compare --resume {folder}".split()
    for run in (
        folder / "runs"
    ).iterdir():  # each worker has finished its step and saved it, or was between epochs
        state, records = checkpoint.load(run / "checkpoint" / "last.pt"), run / "metrics.jsonl"
        step = json.loads(records.read_text().splitlines()[-1])["step"]
        assert step % 4 == 0 or state["journal_size"] == records.stat().st_size
    while group_is_alive(process.pid):  # multiprocessing's resource tracker ends a moment later
        assert time.monotonic() < deadline
        time.sleep(0.05)


def group_is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_variants_that_see_other_numbers_of_images_are_refused(recipe_path, tmp_path):
    sampler = "compare.variants.proxies={stages.1.sampler: {type: MPerClassSampler, m: 2, length_before_new_iter: 16}}"
    with pytest.raises(RecipeError, match="proxies: sees 64 images, expected 96 as contrastive does"):
        run_comparison(load_recipe(recipe_path, [sampler]), tmp_path / "comparison", device="cpu")
    assert not (tmp_path / "comparison").exists()


def test_folder_of_something_else_is_refused(compared, recipe_path, tmp_path):
    with pytest.raises(RecipeError, match=r"--output: .* is not empty"):
        run_comparison(load_recipe(recipe_path), compared[0], device="cpu")
    with pytest.raises(
        RecipeError, match=r"holds no recipe\.yaml, expected the folder of an earlier comparison"
    ):
        run_comparison(load_recipe(recipe_path), tmp_path, device="cpu", resume=True)
    other = load_recipe(recipe_path, ["stages.1.epochs=5"])
    with pytest.raises(RecipeError, match="was made by another recipe than the comparison's"):
        run_comparison(other, compared[0], device="cpu", resume=True)


def test_single_experiment_refuses_a_comparison_and_the_other_way_round(recipe_path, tmp_path):
    with pytest.raises(RecipeError, match="expected one experiment; run_comparison runs comparisons"):
        run_experiment(load_recipe(recipe_path), tmp_path / "run", device="cpu")
    with pytest.raises(RecipeError, match="expected a recipe with a comparison"):
        run_comparison(load_recipe(recipe_path, ["compare=null"]), tmp_path / "run", device="cpu")
