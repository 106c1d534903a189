"""Made-up comparisons: variants of the quickstart, and what their finished runs leave."""

import json
from pathlib import Path
from typing import Any

from dr_plugin.experiments.compare_plan import Variant
from dr_plugin.experiments.compare_table import summarise
from dr_plugin.experiments.recipe import Recipe, Slot, load_recipe
from dr_plugin.experiments.run import run_folder

FIGURE = "val.precision_at_30"
LOSSES: dict[str, dict[str, Any]] = {
    "gap_small": {"type": "DeepRankingLoss", "gap": 0.1},
    "contrastive": {"type": "ContrastiveLoss"},
    "memory": {"type": "CrossBatchMemory", "loss": {"type": "NTXentLoss"}, "embedding_size": 32},
    "arcface": {"type": "ArcFaceLoss", "num_classes": 10, "embedding_size": 32},
}


def variant(name: str, loss: dict[str, Any], **slots: dict[str, Any] | None) -> Variant:
    """The quickstart with this loss and these other slots in its ranking stage."""
    changed = {"loss": loss, **slots}
    recipe = load_recipe("quickstart")
    own: dict[str, Any] = {slot: value and Slot(**value) for slot, value in changed.items()}
    stage = recipe.stages[0].model_copy(update=own)
    settings = {f"stages.ranking.{slot}": value for slot, value in changed.items()}
    return Variant(name, settings, recipe.model_copy(update={"stages": [stage]}))


def with_softmax(one: Variant) -> Variant:
    """The variant with a stage before the one that is compared."""
    first = one.recipe.stages[0].model_copy(update={"name": "before"})
    recipe: Recipe = one.recipe.model_copy(update={"stages": [first, *one.recipe.stages]})
    return Variant(one.name, one.settings, recipe)


VARIANTS = [variant(name, loss) for name, loss in LOSSES.items()]


def finish(folder: Path, name: str, seed: int, value: Any, **metrics: Any) -> Path:
    """Write what a finished run leaves."""
    run = run_folder(folder, name, seed)
    (run / "report").mkdir(parents=True)
    (run / "report" / "report.html").write_text("done")
    stages = [stage("ranking", 600, 300.0, 2.0, 700.0 + seed)]
    content = {"val": {"precision_at_30": value}, "stages": stages, "wall_time_s": 60.0 + seed}
    content |= {"peak_memory_mib": 700.0 + seed, "peak_memory_of": "process", **metrics}
    (run / "metrics.json").write_text(json.dumps(content))
    environment = {"packages": {"torch": "2.6"}, "device": "a processor", "seed": seed}
    (run / "environment.json").write_text(json.dumps(environment))
    return run


def stage(name: str, images: int, speed: float, seconds: float, peak: float | None) -> dict[str, Any]:
    summary = {"name": name, "images_seen": images, "images_per_s": speed, "wall_time_s": seconds}
    return summary if peak is None else {**summary, "peak_memory_mib": peak}


def evaluations(run: Path, *records: tuple[str, int, int, float | None]) -> None:
    """A journal with an evaluation for each stage, epoch, images seen and figure, and other records between."""
    lines: list[dict[str, Any]] = []
    for name, epoch, images, value in records:
        place = {"stage": name, "epoch": epoch, "images_seen": images}
        lines += [{"event": "train", **place, "loss": 1.0}]
        lines += [{"event": "evaluate", **place, "precision_at_30": value, "recall_at_1": 0.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def table(folder: Path, variants: list[Variant], **changes: Any) -> dict[str, Any]:
    """Summarised with three seeds and one figure, unless something else is said."""
    settings: dict[str, Any] = {"seeds": [0, 1, 2], "figures": [FIGURE], "shared_stages": 0, "failures": {}}
    return summarise("trial", variants, folder, **{**settings, **changes})


VALUES = {"gap_small": [0.5, 0.55, 0.525], "contrastive": [0.7, 0.74, 0.73], "memory": [0.695, 0.75, 0.71]}
COURSE = {"gap_small": 0.5, "contrastive": 0.72, "memory": 0.721}


def finish_three(folder: Path) -> Path:
    """Three variants with three seeds and their courses; the fourth has no run."""
    for name, values in VALUES.items():
        for seed, value in enumerate(values):
            run = finish(folder, name, seed, value)
            evaluations(run, ("ranking", 1, 300, 0.3), ("ranking", 2, 600, COURSE[name]))
    return folder
