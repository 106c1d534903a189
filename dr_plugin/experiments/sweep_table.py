"""What a sweep has found: one row a point, from the figures of its runs (the content of ``sweep.json``)."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from .schema import Recipe
from .sweep_plan import Point, figures_of, is_finished, run_folder

CONFIDENCE = 0.95


def summarise(
    recipe: Recipe, points: Sequence[Point], folder: Path, failures: Mapping[str, str]
) -> dict[str, Any]:
    """The table of the sweep in ``folder``, as far as its runs are finished.

    Of each figure: mean, standard deviation (n - 1) and n over the seeds, and the mean difference to the first point
    with its 95% interval (Student's t), paired over the seeds that both have. What cannot be told is None: a figure
    that no run measured, the deviation or interval of a single seed.

    Args:
        recipe: The sweep's recipe.
        points: Its points, in order.
        folder: The sweep's folder.
        failures: Of runs that failed, by their folders' names, why.
    """
    sweep = recipe.sweep
    seeds, shared = (sweep.seeds, sweep.shared_stages) if sweep is not None else ([], 0)
    figures = figures_of(recipe)
    rows: list[dict[str, Any]] = []
    first: dict[str, dict[int, float]] = {}
    for point in points:
        runs = {seed: run_folder(folder, point, seed) for seed in seeds}
        finished = {seed: _metrics(run) for seed, run in runs.items() if is_finished(run)}
        values = {figure: _values(finished, figure) for figure in figures}
        first = first if rows else values
        measured: dict[str, Any] = {figure: _spread(values[figure]) for figure in figures}
        for figure, item in measured.items():
            item["values"] = {str(seed): value for seed, value in values[figure].items()}
            item["difference"] = _difference(values[figure], first[figure]) if rows else None
        rows.append(
            {
                "name": point.name,
                "label": point.label,
                "series": point.series,
                "settings": point.settings,
                "along": point.along,
                "figures": measured,
                "images_per_s": _spread(_speeds(finished, shared)),
                "wall_time_s": _spread(_values(finished, "wall_time_s")),
                "runs": {str(seed): runs[seed].relative_to(folder).as_posix() for seed in finished},
            }
        )
    return {
        "name": recipe.name,
        "seeds": seeds,
        "x": next((axis for point in points for axis in point.along), None),
        "figures": figures,
        "shared_stages": shared,
        "points": rows,
        "failed": dict(failures),
    }


def _metrics(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def _values(runs: Mapping[int, Mapping[str, Any]], key: str) -> dict[int, float]:
    """The figure of each seed's run that has it as a finite number."""
    found = {seed: _number(_at(metrics, key)) for seed, metrics in runs.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _speeds(runs: Mapping[int, Mapping[str, Any]], shared_stages: int) -> dict[int, float]:
    """Training images a second of each run, in the stages that are its own."""
    speeds = {}
    for seed, metrics in runs.items():
        own = [stage for stage in metrics["stages"][shared_stages:] if stage["images_per_s"]]
        seconds = sum(stage["images_seen"] / stage["images_per_s"] for stage in own)
        if seconds:
            speeds[seed] = sum(stage["images_seen"] for stage in own) / seconds
    return speeds


def _at(metrics: Any, key: str) -> Any:
    """What stands at a dotted key; None where nothing does."""
    for part in key.split("."):
        if isinstance(metrics, list):
            metrics = dict(zip(map(str, range(len(metrics))), metrics, strict=True))
        if not isinstance(metrics, dict):
            return None
        metrics = metrics.get(part)
    return metrics


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _spread(values: Mapping[int, float]) -> dict[str, float | int | None]:
    numbers = list(values.values())
    return {
        "n": len(numbers),
        "mean": statistics.fmean(numbers) if numbers else None,
        "std": statistics.stdev(numbers) if len(numbers) > 1 else None,
    }


def _difference(values: Mapping[int, float], first: Mapping[int, float]) -> dict[str, float | int | None]:
    """values - first, paired over the seeds that both have."""
    pairs = {seed: value - first[seed] for seed, value in values.items() if seed in first}
    spread = _spread(pairs)
    low = high = None
    if spread["mean"] is not None and spread["std"] is not None:
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1))
        reach *= spread["std"] / math.sqrt(len(pairs))
        low, high = spread["mean"] - reach, spread["mean"] + reach
    return {"n": spread["n"], "mean": spread["mean"], "low": low, "high": high}
