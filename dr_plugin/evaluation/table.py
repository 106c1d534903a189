"""A table's recipe made to run: every row's features, distances and figures, and the report."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dr_plugin.atomic import write_json, write_text
from dr_plugin.experiments.claim import claimed
from dr_plugin.experiments.environment import environment, pick_device
from dr_plugin.experiments.journal import Reporter, SilentReporter
from dr_plugin.experiments.recipe import RecipeError
from dr_plugin.metrics import paired_test

from .data import RatedData
from .human import Judged, judge, plain
from .ingredients import Ingredient
from .table_examples import write_examples
from .table_recipe import load_table
from .table_report import write_table_report
from .table_rows import TableRows
from .table_schema import Row, TableRecipe


@dataclass(frozen=True)
class TableResult:
    """Where a finished table's report lies, and its figures (the content of ``table.json``)."""

    report: Path
    metrics: dict[str, Any]


def run_table(
    recipe: TableRecipe,
    folder: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    reporter: Reporter | None = None,
) -> TableResult:
    """Measure the table's rows one after another and write ``table.json``, ``table.md`` and ``table.html``.

    Models that a row's recipe trains lie in ``folder/models`` and are trained once; features lie in the cache. So a
    table that was cut off goes on where it was.

    Args:
        recipe: A validated recipe.
        folder: The table's folder; must not hold one yet, unless ``resume``.
        device: "auto" (a GPU where there is one) or a torch device.
        resume: Go on in a folder of the same recipe.
        reporter: Shows progress; None shows nothing.
    Raises:
        ValueError: if the folder, device or data do not fit.
        TrainingError: if a model that is trained diverges.
    """
    chosen, reporter = pick_device(device), reporter or SilentReporter()
    with claimed(folder, resume, what="table", note=reporter.note):
        return _run(recipe, folder, chosen, device, resume, reporter)


def _run(
    recipe: TableRecipe, folder: Path, chosen: torch.device, device: str, resume: bool, reporter: Reporter
) -> TableResult:
    """The table, in a folder that is this process's alone."""
    if resume and load_table(folder / "recipe.yaml") != recipe:
        raise RecipeError(f"--resume: {folder} was not made by this recipe; start in another folder")
    maker = TableRows(recipe, folder, device, reporter)
    # Only now: data that are not there leave no folder behind.
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    rows: list[dict[str, Any]] = []
    judged: dict[str, Judged] = {}
    for number, row in enumerate(recipe.rows):
        reporter.update("table", number, len(recipe.rows))
        start = time.perf_counter()
        made = maker.make(row)
        figures, judged[row.name] = _measure(row, made, maker.data, recipe)
        rows.append({**figures, "seconds": round(time.perf_counter() - start, 1)})
        reporter.note(f"{row.name}: similarity precision {figures['similarity_precision']['value']:.1%}")
    _compare(rows, judged, recipe, maker.data)
    about = {"name": recipe.name, "k": recipe.k, "compare_with": recipe.compare_with}
    metrics = {**about, "rated": maker.data.counts, "rows": rows}
    write_json(folder / "environment.json", environment(chosen, seed=recipe.seed))
    report = write_table_report(folder, metrics)
    if recipe.examples is not None:
        file = folder / "examples.png"
        write_examples(file, recipe.examples, maker.source, maker.data, maker.done, seed=recipe.seed)
    reporter.update("table", len(rows), len(rows))
    return TableResult(report, metrics)


def _measure(
    row: Row, made: Ingredient, data: RatedData, recipe: TableRecipe
) -> tuple[dict[str, Any], Judged]:
    """A row's figures, and which triplets it ranks right."""
    judged = judge(made.distances, data, k=recipe.k, resamples=recipe.resamples, seed=recipe.seed)
    figures = {
        "name": row.name,
        "seen": made.seen,
        "distance": made.distance,
        **judged.figures,
        "paper": None if row.paper is None else row.paper.model_dump(),
    }
    return figures, judged


def _compare(
    rows: list[dict[str, Any]], judged: dict[str, Judged], recipe: TableRecipe, data: RatedData
) -> None:
    """Give each row its paired test against the one to compare with."""
    reference = recipe.compare_with
    for row in rows:
        if reference is not None and row["name"] != reference:
            pair = judged[row["name"]].right, judged[reference].right
            test = paired_test(*pair, groups=data.groups, resamples=recipe.resamples, seed=recipe.seed)
            row["against"] = plain(test)
