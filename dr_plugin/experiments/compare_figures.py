"""The picture of a comparison: the course of every variant, the final figures, and the differences to the best."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from .compare_pairs import between
from .report_figures import GREY, STYLE, drawable, to_png

# Okabe and Ito's colours, which the colour-blind can tell apart, without the black and the yellow.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GREYS = ("#374151", "#868e9c", "#5b6472")
_DASHES = ("-", "--", ":", "-.")
_LINE_HEIGHT = 0.165  # inches of a label
_SHOWN_RANGE = (
    1.5  # of an interval, as a multiple of the largest difference: with two seeds intervals are huge
)
_LONGEST_LABEL = 40
_MARKS = {"better": "o", "worse": "o", "tie": "o", None: "x"}

Row = dict[str, Any]


@matplotlib.rc_context(STYLE)
def comparison_png(table: dict[str, Any]) -> bytes:
    """Above: the selection figure against images seen. Below: the first figure, best on top, and what divides it.

    Variants with a part of dr_plugin are drawn in colour, those of built-in parts in grey.

    Args:
        table: As `compare_table.summarise` gives it.
    """
    figure = table["figures"][0]
    rows = in_order(table["variants"], figure)
    looks = _looks(table["variants"])
    course = max(4.0, _LINE_HEIGHT * len(rows) + 0.6)
    below = 1.0 + 0.26 * len(rows)
    drawing = Figure(figsize=(11.5, course + below + 0.6), dpi=150, layout="constrained")
    grid = drawing.add_gridspec(2, 2, height_ratios=[course, below], width_ratios=[1.1, 1])
    _courses(drawing.add_subplot(grid[0, :]), rows, looks, course - 0.5)
    left = drawing.add_subplot(grid[1, 0])
    _levels(left, rows, looks, figure)
    _differences(drawing.add_subplot(grid[1, 1], sharey=left), rows, looks, table)
    seeds = len(table["seeds"])
    of = f"{seeds} seeds" if seeds > 1 else "one seed"
    open_runs = f", {table['finished']} of {table['total']} runs finished"
    drawing.suptitle(
        drawable(f"{table['name']}: {of}{open_runs if table['finished'] < table['total'] else ''}"),
        fontsize=11,
    )
    return to_png(drawing)


def in_order(rows: Sequence[Row], figure: str) -> list[Row]:
    """The best on top; variants without the figure at the end."""
    return sorted(rows, key=lambda row: row["figures"][figure]["rank"] or math.inf)


def _looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Each variant's line, by its name: colours and full lines for ours first, greys and dashes for the others."""
    colored = itertools.cycle((color, dash) for dash in _DASHES for color in _COLORS)
    grey = itertools.cycle((color, dash) for dash in _DASHES for color in _GREYS)
    looks = {}
    for row in rows:
        color, dash = next(colored if row["ours"] else grey)
        looks[row["name"]] = {"color": color, "linestyle": dash, "linewidth": 1.9 if row["ours"] else 1.1}
    return looks


def _courses(panel: Axes, rows: Sequence[Row], looks: dict[str, dict[str, Any]], height: float) -> None:
    """A line a variant, with its name at its end; the names are moved apart where the lines end close together."""
    drawn = [row for row in rows if row["course"]["points"]]
    if not drawn:
        _say_nothing(panel)
        return
    ends = []
    for row in drawn:
        x, y = ([point[key] for point in row["course"]["points"]] for key in ("images_seen", "mean"))
        marker = "o" if row["ours"] or len(x) == 1 else None
        panel.plot(x, y, **looks[row["name"]], marker=marker, markersize=3, zorder=3 if row["ours"] else 2)
        ends.append((x[-1], y[-1]))
    low, high = panel.get_ylim()
    panel.set_ylim(low, high)
    places = apart([y for _, y in ends], (high - low) * _LINE_HEIGHT / height)
    for row, end, place in zip(drawn, ends, places, strict=True):
        color = looks[row["name"]]["color"]
        panel.annotate(
            _cut(row["label"]),
            end,
            (1.03, (place - low) / (high - low)),
            textcoords="axes fraction",
            color=color,
            fontsize=8,
            fontweight="bold" if row["ours"] else "normal",
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3},
        )
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set_xlabel("images seen, in the stages that are compared")
    if len({row["ours"] for row in drawn}) > 1:
        text = "in colour: with a part of dr_plugin; grey: built-in parts alone"
        panel.set_title(text, loc="left", fontsize=8, color=GREY)
    panel.set_ylabel(drawable(f"{drawn[0]['course']['figure']} on the selection images"))


def apart(values: Sequence[float], gap: float) -> list[float]:
    """The values moved as little as it takes for neighbours to lie ``gap`` apart, in the same order."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[tuple[float, int]] = []  # (centre, how many) of neighbours that push each other
    for i in order:
        centre, size = values[i], 1
        while groups and groups[-1][0] + gap * (groups[-1][1] - 1) / 2 + gap > centre - gap * (size - 1) / 2:
            other, number = groups.pop()
            centre, size = (other * number + centre * size) / (number + size), number + size
        groups.append((centre, size))
    placed = (centre + gap * (i - (size - 1) / 2) for centre, size in groups for i in range(size))
    return [place for _, place in sorted(zip(order, placed, strict=True))]


def _levels(panel: Axes, rows: Sequence[Row], looks: dict[str, dict[str, Any]], figure: str) -> None:
    """Mean and standard deviation, and the seeds as small dots."""
    for position, row in enumerate(rows):
        item, color = row["figures"][figure], looks[row["name"]]["color"]
        if item["n"]:
            seeds = list(item["values"].values())
            panel.plot(seeds, [position + 0.22] * len(seeds), ".", color=color, alpha=0.6, markersize=4)
            panel.errorbar(
                item["mean"], position, xerr=item["std"] or 0, fmt="o", color=color, capsize=2.5, markersize=5
            )
        else:
            text = "failed" if row["failed"] else "not measured"
            panel.text(0.02, position, text, transform=panel.get_yaxis_transform(), va="center", color=GREY)
    panel.set_yticks(range(len(rows)), [_cut(row["label"]) for row in rows])
    for label, row in zip(panel.get_yticklabels(), rows, strict=True):
        label.set(color=looks[row["name"]]["color"], fontweight="bold" if row["ours"] else "normal")
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlabel(f"{drawable(figure)}\nmean, standard deviation, and the seeds")


def _differences(
    panel: Axes, rows: Sequence[Row], looks: dict[str, dict[str, Any]], table: dict[str, Any]
) -> None:
    """Each variant less the best one, with the interval that the verdict is made by."""
    figure = table["figures"][0]
    best = table["winners"][figure]["best"]
    pairs = [None if best is None else between(row["name"], best, table["pairs"][figure]) for row in rows]
    panel.axvline(0, color=GREY, linewidth=1)
    panel.tick_params(labelleft=False)
    panel.set_xlabel("difference to the best, 95% interval\n(open: a tie; cross: too few seeds)")
    shown = [pair for pair in pairs if pair is not None and pair["mean"] is not None]
    for position, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
        if pair is None or pair["mean"] is None:
            continue
        color, mean = looks[row["name"]]["color"], pair["mean"]
        reach = 0 if pair["high"] is None else pair["high"] - mean
        look: dict[str, Any] = {
            "fmt": _MARKS[pair["verdict"]],
            "color": color,
            "capsize": 2.5,
            "markersize": 5,
        }
        look["markerfacecolor"] = "white" if pair["verdict"] == "tie" else color
        panel.errorbar(mean, position, xerr=reach, **look)
    largest = max((abs(pair["mean"]) for pair in shown), default=0)
    if largest:
        low, high = panel.get_xlim()
        reach = _SHOWN_RANGE * largest
        panel.set_xlim(max(low, -reach), min(high, reach))


def _say_nothing(panel: Axes) -> None:
    panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", va="center", color=GREY)
    panel.set(xticks=[], yticks=[])


def _cut(text: str) -> str:
    return drawable(text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…")
