"""Every recipe on disk runs to its report, cut short, on small data in its data set's layout."""

import json

import numpy as np
import pytest

from dr_plugin.evaluation.table import run_table
from dr_plugin.evaluation.table_recipe import is_table, load_table
from dr_plugin.experiments import compare_figures, report_figures, shipped
from dr_plugin.experiments.compare import run_comparison
from dr_plugin.experiments.recipe import load_recipe
from dr_plugin.experiments.report_figures import image_png
from dr_plugin.experiments.run import is_finished, run_experiment
from dr_plugin.experiments.sweep import run_sweep

ALL = sorted(shipped.recipes_folder().rglob("*.yaml"))
TABLES = [file for file in ALL if is_table(file)]
FILES = [file for file in ALL if file not in TABLES]
COMPARISONS = [file for file in FILES if "\ncompare:" in file.read_text()]
SINGLE = [file for file in FILES if file not in COMPARISONS]  # sweeps among them

# What makes a recipe fit the small data, 12 classes of 14 images.
SMALLER = [
    "limits.steps=2",
    "data.selection=2",
    "evaluation.k=5",
    "evaluation.recall_at=[1]",
    "precision=float32",
]


# Data sets that are read from a folder.
ROOTS = {"TinyImageNet", "CUB", "Cars196", "StanfordOnlineProducts"}


def write_images(recipe, root, make_tiny_imagenet, make_unpacked):
    """The recipe's data set in small: 12 classes to train on and, where it evaluates others, 8 of these."""
    name, unseen = recipe.data.dataset.type, 8 * (recipe.evaluation.gallery == "val")
    if name == "TinyImageNet":
        make_tiny_imagenet(root, classes=12 + unseen, train=14, val=3)
    elif name in ROOTS:
        make_unpacked(name, root, classes=12, unseen=unseen, images=14)


def smaller(recipe, root):
    """Overrides that leave the recipe's parts in place."""
    overrides = list(SMALLER)
    if recipe.data.dataset.type in ROOTS:
        overrides.append(f"data.dataset.root={root}")
    if recipe.data.selection == 0:
        overrides.append("data.selection=0")
    if isinstance(recipe.data.unseen_classes, int):
        overrides.append("data.unseen_classes=8")
    if recipe.evaluation.rerank is not None:
        overrides.append("evaluation.rerank=20")
    if recipe.trunk.arguments.get("convnet") == "googlenet":  # no download, and few pixels
        overrides += ["trunk.weights=null", "data.packed_size=40", "data.image_size=40"]
    if isinstance(recipe.data.classes, int):
        overrides.append("data.classes=12")
    for index, stage in enumerate(recipe.stages):
        overrides.append(f"stages.{index}.batch_size=24")
        if getattr(stage, "sampler", None) is not None and stage.sampler.type == "MPerClassSampler":
            overrides.append(f"stages.{index}.sampler.m=3")
    if recipe.trunk.arguments.get("convnet_stem") == "small":  # full resolution costs too much on a CPU
        overrides.append("data.image_size=32")
    if (
        recipe.trunk.arguments.get("convnet") == "alexnet"
    ):  # 57 million parameters are not what is tested here
        overrides += ["data.image_size=64", "trunk.input_size=64", "trunk.embedding_size=32"]
    if recipe.sweep is not None:  # one seed, the grid's first point and the first of the further ones
        sweep = recipe.sweep.model_dump()
        sweep["grid"] = {key: values[:1] for key, values in sweep["grid"].items()}
        sweep |= {"seeds": sweep["seeds"][:1], "points": sweep["points"][:1], "figures": None}
        overrides.append(f"sweep={json.dumps(sweep)}")
    return overrides


def test_recipes_are_found():
    assert {"quickstart", "tiny_uniform", "tiny_uniform_paper", "tiny_uniform_cpu"} <= {
        file.stem for file in FILES
    }


@pytest.mark.parametrize("file", SINGLE, ids=lambda file: file.stem)
def test_recipe_runs_to_its_report(file, tmp_path, make_tiny_imagenet, make_unpacked):
    recipe = load_recipe(file)
    apart = recipe.evaluation.gallery == "val"
    write_images(recipe, tmp_path / "data", make_tiny_imagenet, make_unpacked)
    overrides = [*smaller(recipe, tmp_path / "data"), f"data.cache={tmp_path / 'cache'}"]
    run = run_experiment if recipe.sweep is None else run_sweep
    result = run(load_recipe(file, overrides), tmp_path / "run", device="cpu")
    files = [tmp_path / "run" / "metrics.json"]
    if recipe.sweep is not None:
        files = list((tmp_path / "run" / "runs").glob("*/metrics.json"))
        assert len(files) == bool(recipe.sweep.grid) + bool(recipe.sweep.points)
    for metrics in (json.loads(path.read_text()) for path in files):
        assert [item["steps"] for item in metrics["stages"]] == [2] * len(recipe.stages)
        assert set(metrics["baselines"]) == set(recipe.evaluation.baselines)
        assert 0 <= metrics["val"]["precision_at_5"] <= 1
        assert metrics.get("classes") == ({"train": 12, "val": 8} if apart else None)
        assert ("val_reranked" in metrics) == (recipe.evaluation.rerank is not None)
    assert result.report.stat().st_size > 10_000


# PML formats the loss with %, which newer torch warns of, and warns of the ranked list loss's own temperature.
@pytest.mark.filterwarnings("ignore:Converting a tensor:UserWarning", "ignore:Values of Tp or Tn:UserWarning")
@pytest.mark.parametrize("file", COMPARISONS, ids=lambda file: file.stem)
def test_comparison_trains_all_its_variants(file, tmp_path, monkeypatch, make_tiny_imagenet):
    recipe = load_recipe(file)
    make_tiny_imagenet(tmp_path / "data", classes=12, train=14, val=3, size=32)
    # Drawing takes most of the time, and is tested elsewhere.
    pixel = image_png(np.zeros((1, 1, 3), dtype=np.uint8))
    for module in (report_figures, compare_figures):
        monkeypatch.setattr(module, "to_png", lambda figure: pixel)
    overrides = [*smaller(recipe, tmp_path / "data"), f"data.cache={tmp_path / 'cache'}"]
    overrides += ["compare.seeds=[0]", "compare.figures=[val.precision_at_5]"]
    result = run_comparison(load_recipe(file, overrides), tmp_path / "run", device="cpu")
    rows = {row["name"]: row for row in result.metrics["variants"]}
    assert list(rows) == list(recipe.compare.variants)
    for name, row in rows.items():
        folder = tmp_path / "run" / "runs" / f"{name}-seed0"
        assert is_finished(folder)
        metrics = json.loads((folder / "metrics.json").read_text())
        assert [item["steps"] for item in metrics["stages"]] == [2] * len(recipe.stages)
        assert row["figures"]["val.precision_at_5"]["n"] == 1
    assert result.metrics["finished"] == result.metrics["total"] == len(rows)


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_table_runs_to_its_report(file, tmp_path, make_tiny_imagenet, make_rated_triplets):
    make_tiny_imagenet(tmp_path / "data", classes=12, train=14, val=3)
    make_rated_triplets(tmp_path / "rated", queries=12, triplets=3)
    overrides = [
        f"rated.dataset.root={tmp_path / 'rated'}",
        f"learn_from.dataset.root={tmp_path / 'data'}",
        f"cache={tmp_path / 'cache'}",
        "learn_from.images=120",
        "rated.image_size=64",
        "learn_from.image_size=64",
        "resamples=100",
    ]
    short = {f"limits.{key}": value for key, value in (("steps", 2),)}
    short |= {"data.selection": 2, "evaluation.k": 5, "evaluation.recall_at": [1], "report.queries": 1}
    for row in load_table(file).rows:
        if row.model is not None:
            stage = load_recipe(row.model.recipe).stages[0].name
            settings = {**row.model.set, **short, f"stages.{stage}.batch_size": 24}
            overrides.append(f"rows.{row.name}.model.set={json.dumps(settings)}")
        if row.oasis is not None:
            overrides.append(f"rows.{row.name}.oasis.steps=200")
        if row.linear is not None:
            overrides.append(f"rows.{row.name}.linear.steps=3")
        if row.golden is not None:
            overrides.append(f"rows.{row.name}.golden.folds=3")
    result = run_table(load_table(file, overrides), tmp_path / "run", device="cpu")
    assert [row["name"] for row in result.metrics["rows"]] == [row.name for row in load_table(file).rows]
    assert all(row["paper"] is not None for row in result.metrics["rows"])
    assert result.report.stat().st_size > 3_000


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.stem)
def test_recipe_header_says_the_command(file):
    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any(f"dr-run recipes/{file.name}" in line for line in header)


@pytest.mark.parametrize(
    "name", ["cub_pddm", "cars_pddm", "cub_lrml", "sop_pddm", "tiny_zeroshot_pddm", "tiny_zeroshot_lrml"]
)
def test_recipes_of_classes_apart_are_evaluated_as_the_papers_are(name):
    evaluation = load_recipe(name).evaluation
    assert evaluation.gallery == "val"
    assert evaluation.recall_at == ([1, 10, 100, 1000] if name == "sop_pddm" else [1, 2, 4, 8, 16, 32])


@pytest.mark.parametrize("file", [file for file in FILES if "pddm" in file.stem], ids=lambda file: file.stem)
def test_unit_of_pddm_learns_at_10_times_the_trunks_rate(file):
    stage = load_recipe(file).stages[-1]
    assert stage.loss_optimizer.arguments["lr"] == pytest.approx(10 * stage.optimizer.arguments["lr"])


def test_quickstart_in_full_reaches_its_figure(tmp_path):
    result = run_experiment(
        load_recipe("quickstart", [f"data.cache={tmp_path / 'cache'}"]), tmp_path / "run", device="cpu"
    )
    assert result.metrics["val"]["precision_at_30"] >= 0.95
    baselines = result.metrics["baselines"].values()
    assert result.metrics["val"]["precision_at_30"] > max(figures["precision_at_30"] for figures in baselines)


@pytest.mark.real_data
def test_cpu_recipe_learns_on_real_images(tmp_path, tiny_imagenet_root):
    """A few epochs of the CPU recipe on 5 real classes beat the untrained trunk and the raw pixels clearly."""
    overrides = [
        f"data.dataset.root={tiny_imagenet_root}",
        f"data.cache={tmp_path / 'cache'}",
        "data.classes=5",
        "data.image_size=32",
        "stages.softmax.epochs=4",
        "stages.ranking.epochs=1",
        "stages.ranking.batch_size=25",
        "evaluation.train=false",
        "evaluation.baselines=[untrained, pixels]",
    ]
    result = run_experiment(load_recipe("tiny_uniform_cpu", overrides), tmp_path / "run", device="cpu")
    best = max(figures["precision_at_30"] for figures in result.metrics["baselines"].values())
    assert result.metrics["val"]["precision_at_30"] > best + 0.05
