"""A comparison from recipe to table: each variant with each seed, in a folder from which it can go on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dr_plugin.atomic import write_text

from . import recipe_file
from .budget import images_planned
from .compare_plan import Variant, comparison_of, plan_variants, shared_stages
from .compare_report import write_comparison
from .compare_table import summarise
from .data import RunData
from .environment import pick_device
from .journal import Reporter, SilentReporter
from .recipe import Recipe, RecipeError
from .run import run_folder
from .series import Series
from .series_run import PlannedRun, shared_recipe


@dataclass(frozen=True)
class ComparisonResult:
    """Where a finished comparison's page lies, and its table (the content of ``comparison.json``)."""

    report: Path
    metrics: dict[str, Any]


def run_comparison(
    recipe: Recipe,
    folder: Path,
    *,
    device: str | Sequence[str] = "auto",
    resume: bool = False,
    reporter: Reporter | None = None,
) -> ComparisonResult:
    """Train all variants of the recipe's comparison with all its seeds; the table is written anew after each run.

    The seeds come one after another, each with all variants, so that what is there at any time compares all of
    them. Stages that no variant changes are trained once a seed. A resumed comparison skips what is finished and
    goes on with what is not. A run that diverges does not keep the others from running.

    Args:
        recipe: A validated recipe that has a comparison.
        folder: The comparison's folder; must be empty, unless ``resume``.
        device: One device, or several: then as many runs at once, each in a process of its own. A device may be
            named more than once; the CPU's threads are divided among those that name it.
        resume: Go on in ``folder``.
        reporter: Shows progress; None shows nothing.
    Raises:
        ValueError: if the recipe, the folder, the devices or the data do not fit, or the variants would not see the
            same number of images; before anything is trained.
        TrainingError: at the end, if a run failed.
    """
    asked = [device] if isinstance(device, str) else device
    devices = [str(pick_device(one)) for one in asked]
    reporter = reporter or SilentReporter()
    comparison = comparison_of(recipe)
    variants = plan_variants(recipe, recipe_file.parse(recipe.to_yaml(), str(folder / "recipe.yaml")))
    shared = shared_stages(recipe, variants)
    series = Series(
        folder, _runs(recipe, variants, shared, folder), devices, reporter, what="comparison", each="run"
    )
    figures = comparison.figures or [f"val.precision_at_{recipe.evaluation.k}"]

    def write() -> ComparisonResult:
        table = summarise(
            recipe.name,
            variants,
            folder,
            seeds=comparison.seeds,
            figures=figures,
            shared_stages=shared,
            failures=series.failures,
        )
        return ComparisonResult(write_comparison(folder, table), table)

    with series.claimed(resume):
        _check_images(series)
        if not resume:
            write_text(folder / "recipe.yaml", recipe.to_yaml())
        series.run(write)
        result = write()
    series.check_failures(result.report)
    return result


def _runs(recipe: Recipe, variants: Sequence[Variant], shared: int, folder: Path) -> list[PlannedRun]:
    """Each variant with each seed, seed by seed."""
    return [
        PlannedRun(
            f"{variant.label}, seed {seed}",
            variant.seeded(seed),
            run_folder(folder, variant.name, seed),
            shared_recipe(recipe, shared, seed),
        )
        for seed in comparison_of(recipe).seeds
        for variant in variants
    ]


def _check_images(series: Series) -> None:
    """See that the variants fit their data and will see the same number of images.

    Raises:
        RecipeError: if they do not.
    """
    planned: dict[str, int] = {}

    def count(run: PlannedRun, data: RunData) -> Iterable[str]:
        planned[run.kind] = images_planned(run.recipe, data)
        return ()

    series.check_data(count)
    (first, wanted), *others = planned.items() if planned else [("", 0)]
    lines = [
        f"{name}: sees {images:,} images, expected {wanted:,} as {first} does: let batch_size divide the images "
        "trained on, give its sampler batches_per_epoch, or set limits.images"
        for name, images in others
        if images != wanted
    ]
    if lines:
        raise RecipeError(*lines)
