"""The picture of a sweep: one panel a figure, with error bars over the seeds."""

import json
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .problems import got
from .report_figures import BLUE, GREEN, GREY, ORANGE, RED, STYLE, drawable, to_png

_COLORS = [BLUE, ORANGE, GREEN, "#7c3aed", RED, "#0e7490", "#a16207", "#be185d"]
_MARKERS = "os^Dvp*X"
_LONGEST_TICK, _LONGEST_LABEL = 24, 60
_MOST_TICKS = 8
_DODGE = 0.012  # of the axis
_LOGARITHMIC = 50  # largest to smallest value of an axis that is drawn by its logarithm

Row = dict[str, Any]


@matplotlib.rc_context(STYLE)
def sweep_png(table: dict[str, Any]) -> bytes:
    """Mean and standard deviation of each figure, and the single seeds as dots.

    Along the sweep's axis, points that differ in nothing else are one series: a line where the axis has numbers. A
    point without a value there is a dashed level. Without an axis, points stand below each other by name.
    """
    figures, rows, axis = table["figures"], table["points"], table["x"]
    columns = min(2, len(figures))
    lines = math.ceil(len(figures) / columns)
    height = 3.6 if axis is not None else 1.2 + 0.28 * len(rows)
    drawing = Figure(figsize=(5.6 * columns, height * lines + 0.4), dpi=150, layout="constrained")
    panels = drawing.subplots(lines, columns, squeeze=False).flatten()
    for panel, figure in zip(panels, figures, strict=False):
        measured = [row for row in rows if row["figures"][figure]["n"]]
        if not measured:
            panel.text(
                0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", va="center", color=GREY
            )
            panel.set(xticks=[], yticks=[], ylabel=drawable(figure))
        elif axis is None:
            _dots(panel, rows, figure)
        else:
            _along(panel, measured, figure, axis)
    for panel in panels[len(figures) :]:
        panel.axis("off")
    seeds = len(table["seeds"])
    spread = f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    drawing.suptitle(drawable(f"{table['name']}: {spread}"), fontsize=10)
    return to_png(drawing)


def _dots(panel: Axes, rows: Sequence[Row], figure: str) -> None:
    """One line a point, the first on top."""
    for position, row in enumerate(rows):
        item = row["figures"][figure]
        if item["n"]:
            seeds = list(item["values"].values())
            panel.plot(seeds, [position] * len(seeds), ".", color=GREY, alpha=0.5)
            panel.errorbar(item["mean"], position, xerr=item["std"] or 0, fmt="o", color=BLUE, capsize=3)
    panel.set_yticks(range(len(rows)), [_cut(row["label"], _LONGEST_LABEL) for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlabel(drawable(figure))


def _along(panel: Axes, rows: Sequence[Row], figure: str, axis: str) -> None:
    """One series for each setting of the other keys."""
    placed = [row for row in rows if axis in row["along"]]
    ticks, numeric = _ticks([row["along"][axis] for row in placed])
    if numeric and min(ticks.values()) > 0 and max(ticks.values()) / min(ticks.values()) >= _LOGARITHMIC:
        panel.set_xscale("log")
    series: dict[str, list[Row]] = {}
    for row in placed:
        others = {key: value for key, value in row["settings"].items() if key != axis}
        series.setdefault(json.dumps(others, sort_keys=True), []).append(row)
    for number, members in enumerate(series.values()):
        points = sorted(
            ((ticks[got(row["along"][axis])], row) for row in members), key=lambda point: point[0]
        )
        x = _dodged([position for position, _ in points], number, list(ticks.values()), panel.get_xscale())
        _series(
            panel, x, [row["figures"][figure] for _, row in points], members[0]["series"], number, numeric
        )
    for number, row in enumerate((row for row in rows if axis not in row["along"]), start=len(series)):
        color = _COLORS[number % len(_COLORS)]
        mean, deviation = row["figures"][figure]["mean"], row["figures"][figure]["std"] or 0
        panel.axhline(mean, linestyle="--", color=color, label=_cut(row["label"], _LONGEST_LABEL))
        panel.axhspan(mean - deviation, mean + deviation, color=color, alpha=0.1, linewidth=0)
    if not numeric or (len(ticks) <= _MOST_TICKS and panel.get_xscale() != "log"):
        panel.set_xticks(list(ticks.values()), [_cut(text.strip('"'), _LONGEST_TICK) for text in ticks])
    panel.set_xlabel(drawable(axis))
    panel.set_ylabel(drawable(figure))
    if len(panel.get_legend_handles_labels()[1]) > 1:
        panel.legend(frameon=False, fontsize=7)


def _series(
    panel: Axes, x: list[float], items: Sequence[Row], name: str, number: int, connected: bool
) -> None:
    """Means with their deviations, and the seeds behind them."""
    color, marker = _COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)]
    for position, item in zip(x, items, strict=True):
        seeds = list(item["values"].values())
        panel.plot([position] * len(seeds), seeds, ".", color=color, alpha=0.35)
    means, deviations = [item["mean"] for item in items], [item["std"] or 0 for item in items]
    label = _cut(name or "the recipe's own settings", _LONGEST_LABEL)
    line = "-" if connected and len(x) > 1 else "none"
    look: dict[str, Any] = {"color": color, "marker": marker, "linestyle": line}
    panel.errorbar(x, means, yerr=deviations, label=label, capsize=3, **look)


def _dodged(x: Sequence[float], number: int, ticks: Sequence[float], scale: str) -> list[float]:
    """A little to the right of the series before, which may have points at the same places."""
    low, high = min(ticks), max(ticks)
    if scale == "log":
        return [value * (high / low) ** (_DODGE * number) for value in x]
    return [value + (high - low) * _DODGE * number for value in x]


def _ticks(values: Sequence[Any]) -> tuple[dict[str, float], bool]:
    """Where each value stands on the axis, by its text, and whether it is a number everywhere.

    Else they stand in the order of appearance.
    """
    numeric = bool(values) and all(_is_number(value) for value in values)
    texts = dict.fromkeys(map(got, values))
    if numeric:
        return {got(value): float(value) for value in values}, True
    return {text: float(i) for i, text in enumerate(texts)}, False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _cut(text: str, longest: int) -> str:
    return drawable(text if len(text) <= longest else text[: longest - 1] + "…")
