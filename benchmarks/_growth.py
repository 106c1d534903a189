"""How the cost of a thing grows with a size: exponents fitted to the points of a curve, and their picture."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _harness import table
from _tables import number
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dr_plugin.atomic import replacing

_COLUMNS = 4
_TIMES = ("seconds", "their_seconds")
_HEADER = ("ours", "with", "from", "to", "exponent", "instead of", "exponent")
_DPI = 80


class TooFewPoints(ValueError):
    """A curve that nothing can be fitted to."""


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """The exponent b of seconds = a size^b and its standard error: least squares of the logarithms.

    The error tells how well a power law fits these points, not what another run would give.

    Raises:
        TooFewPoints: if there are fewer than 3 different sizes: no error could be told.
    """
    if len(set(sizes)) < 3:
        raise TooFewPoints(f"got {len(set(sizes))} different sizes, expected at least 3")
    x, y = np.log(sizes), np.log(seconds)
    x = x - x.mean()
    squares = float(x @ x)
    exponent = float(x @ y) / squares
    rest = y - y.mean() - exponent * x
    return exponent, math.sqrt(float(rest @ rest) / (len(x) - 2) / squares)


@dataclass(frozen=True)
class Growth:
    """One curve: the points of one thing and what a user would pick instead, along one size.

    `together` are the other sizes that change from point to point: the exponent is of all of them at once.
    """

    group: str
    what: str
    against: str
    along: str
    unit: str
    sizes: list[int]
    seconds: list[float]
    their_seconds: list[float]
    together: list[str]
    exponent: float | None = None
    exponent_error: float | None = None
    their_exponent: float | None = None
    their_exponent_error: float | None = None
    error: str | None = None


def growths(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The curves among the rows' JSON, fitted; one that cannot be has its error."""
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["along"] is not None:
            key = tuple(row[name] for name in ("group", "what", "against", "along", "unit"))
            found.setdefault(key, []).append(row)
    return [asdict(_fitted(key, points)) for key, points in found.items()]


def _fitted(key: tuple[str, ...], points: Sequence[Mapping[str, Any]]) -> Growth:
    along = key[3]
    good = sorted((p for p in points if p["error"] is None), key=lambda point: point["sizes"][along])
    sizes = [point["sizes"][along] for point in good]
    seconds = [[point[name] for point in good] for name in _TIMES]
    together = [
        name for name in points[0]["sizes"] if name != along and len({p["sizes"][name] for p in points}) > 1
    ]
    try:
        (exponent, error), (theirs, their_error) = (fit(sizes, taken) for taken in seconds)
    except TooFewPoints as few:
        return Growth(*key, sizes, *seconds, together, error=str(few))
    return Growth(*key, sizes, *seconds, together, exponent, error, theirs, their_error)


def growth_table(curves: Sequence[Mapping[str, Any]]) -> str:
    """Their exponents as a Markdown table."""
    lines = []
    for curve in curves:
        start = [f"{curve['what']}{_unit(curve)}", _along(curve)]
        if curve["error"] is not None:
            lines.append([*start, "-", "-", f"failed: {curve['error']}", curve["against"], "-"])
            continue
        ends = [f"{size:,}" for size in (curve["sizes"][0], curve["sizes"][-1])]
        lines.append(
            [*start, *ends, exponent_text(curve, ""), curve["against"], exponent_text(curve, "their_")]
        )
    return table(lines, _HEADER)


def exponent_text(curve: Mapping[str, Any], whose: str) -> str:
    """The exponent and its standard error."""
    value, error = curve[f"{whose}exponent"], curve[f"{whose}exponent_error"]
    return f"{value:.2f} ± {number(error)}"


def plot(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    """All curves that were fitted as one PNG, a panel each, both axes logarithmic."""
    fitted = [curve for curve in curves if curve["error"] is None]
    if not fitted:
        return
    lines = -(-len(fitted) // _COLUMNS)
    figure = Figure(figsize=(4.2 * _COLUMNS, 3.2 * lines), dpi=_DPI, layout="constrained")
    panels = figure.subplots(lines, _COLUMNS, squeeze=False).flatten()
    for panel, curve in zip(panels, fitted, strict=False):
        _draw(panel, curve)
    for panel in panels[len(fitted) :]:
        panel.remove()
    FigureCanvasAgg(figure)
    with replacing(path) as file:
        figure.savefig(file, format="png")


def _draw(panel: Axes, curve: Mapping[str, Any]) -> None:
    """The points of both sides, and the power law fitted to each."""
    sizes = np.array(curve["sizes"], float)
    middle = math.exp(np.log(sizes).mean())
    for name, whose, times, marker in (
        ("ours", "", _TIMES[0], "o"),
        (curve["against"], "their_", _TIMES[1], "s"),
    ):
        seconds = np.array(curve[times])
        label = f"{textwrap.fill(name, 34)}: {exponent_text(curve, whose)}"
        (points,) = panel.loglog(sizes, seconds, marker, markersize=4, label=label)
        line = math.exp(np.log(seconds).mean()) * (sizes / middle) ** curve[f"{whose}exponent"]
        panel.loglog(sizes, line, "-", linewidth=0.8, color=points.get_color())
    panel.set_title(textwrap.fill(f"{curve['what']}{_unit(curve)}", 50), fontsize=8)
    panel.set_xlabel(_along(curve), fontsize=7)
    panel.set_ylabel("seconds", fontsize=7)
    panel.set_xticks(curve["sizes"], [f"{size:,}" for size in curve["sizes"]])
    panel.set_xticks([], minor=True)
    panel.tick_params(labelsize=6, which="both")
    panel.legend(fontsize=6)


def _along(curve: Mapping[str, Any]) -> str:
    """The size that grows, and those that grow with it."""
    return ", ".join((curve["along"], *curve["together"]))


def _unit(curve: Mapping[str, Any]) -> str:
    return "" if curve["unit"] == "call" else f", one {curve['unit']}"
