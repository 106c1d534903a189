"""What a sweep has found: one row a point, from the figures of its runs (the content of ``sweep.json``)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .run import is_finished, run_folder
from .schema import Recipe
from .spread import difference, metrics_of, speeds, spread, values
from .sweep_plan import Point, figures_of


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
        runs = {seed: run_folder(folder, point.name, seed) for seed in seeds}
        finished = {seed: metrics_of(run) for seed, run in runs.items() if is_finished(run)}
        found = {figure: values(finished, figure) for figure in figures}
        first = first if rows else found
        measured: dict[str, Any] = {figure: spread(found[figure]) for figure in figures}
        for figure, item in measured.items():
            item["values"] = {str(seed): value for seed, value in found[figure].items()}
            item["difference"] = difference(found[figure], first[figure]) if rows else None
        rows.append(
            {
                "name": point.name,
                "label": point.label,
                "series": point.series,
                "settings": point.settings,
                "along": point.along,
                "figures": measured,
                "images_per_s": spread(speeds(finished, shared)),
                "wall_time_s": spread(values(finished, "wall_time_s")),
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
