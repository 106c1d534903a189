"""The report's drawings: each function turns plain values into the bytes of one PNG.

Figures are built through matplotlib's object API on the Agg canvas, so that no global state, window or date
is involved and the same values always give the same bytes.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image as PILImage

THUMBNAIL_SIZE = 72
MAX_FILTERS = 128

BLUE, ORANGE, GREEN, RED, GREY = "#2563eb", "#c2570c", "#15803d", "#c81e1e", "#6b7280"
STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so that every machine draws the same
    "font.size": 9,
    "text.parse_math": False,  # a class or stage may be named "$x"
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
}
_TILES_A_ROW = 10


@dataclass(frozen=True, eq=False)
class Tile:
    """One ranked image with what stands below it; `right` is None for the query itself."""

    image: NDArray[np.uint8]  # (H, W, 3)
    name: str
    title: str
    right: bool | None = None
    distance: float | None = None

    @property
    def symbol(self) -> str:
        """The mark that carries right or wrong without colour."""
        return {True: "✓", False: "✗", None: ""}[self.right]


def image_png(image: NDArray[np.uint8], *, size: int | None = None) -> bytes:
    """The image (H, W, 3) as PNG, shrunk so that no side passes `size`; a smaller one stays as it is."""
    picture = PILImage.fromarray(np.ascontiguousarray(image))
    if size is not None:
        picture.thumbnail((size, size), PILImage.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def filters_png(filters: NDArray[np.floating[Any]]) -> bytes:
    """First-layer filters (n, 3, h, w) as a grid of at most `MAX_FILTERS`, about 640 pixels wide.

    Each filter is scaled by its own largest magnitude, so that 0 is middle grey in all of them.
    """
    shown = np.asarray(filters[:MAX_FILTERS], dtype=np.float64)
    magnitude = np.abs(shown).max(axis=(1, 2, 3), keepdims=True)
    scaled = 0.5 + 0.5 * shown / np.where(magnitude > 0, magnitude, 1.0)
    pixels = np.rint(scaled.transpose(0, 2, 3, 1) * 255).astype(np.uint8)  # (n, h, w, 3)
    n, h, w, _ = pixels.shape
    columns = min(n, 16 if n > 32 else 8)
    rows = -(-n // columns)
    zoom = max(1, 640 // (columns * (w + 1)))
    cell_h, cell_w, gap = h * zoom, w * zoom, 2
    grid = np.full((rows * (cell_h + gap) + gap, columns * (cell_w + gap) + gap, 3), 255, dtype=np.uint8)
    for i, picture in enumerate(pixels):
        top, left = (i // columns) * (cell_h + gap) + gap, (i % columns) * (cell_w + gap) + gap
        grid[top : top + cell_h, left : left + cell_w] = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return image_png(grid)


@matplotlib.rc_context(STYLE)
def curves_png(records: Sequence[Mapping[str, Any]], k: int) -> bytes:
    """One stage's loss above its selection precision at k, both over the images seen in that stage.

    Args:
        records: The stage's records of metrics.jsonl, in order; one without the figure is left out.
        k: Names the evaluation figure, precision_at_k.
    """
    figure = Figure(figsize=(5.4, 4.4), dpi=160, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    _curve(above, records, "train", "loss", BLUE)
    x, y = _curve(below, records, "evaluate", f"precision_at_{k}", ORANGE)
    above.set_ylabel("training loss")
    below.set_ylabel(f"selection precision at {k}")
    below.set_xlabel("images seen")
    below.xaxis.set_major_formatter(EngFormatter(sep=""))
    below.yaxis.set_major_formatter(PercentFormatter(1.0))
    if y:
        best = int(np.argmax(y))
        below.plot(x[best], y[best], "o", color=ORANGE, markersize=6, label=f"best: {y[best]:.2%}")
        below.legend(loc="lower right", frameon=False)
    return to_png(figure)


@matplotlib.rc_context(STYLE)
def class_precision_png(precision: NDArray[np.floating[Any]], k: int) -> bytes:
    """Precision at k of every class, sorted, with the mean; classes without a query (NaN) are left out."""
    ordered = np.sort(precision[np.isfinite(precision)])
    mean = float(ordered.mean())
    figure = Figure(figsize=(7.6, 2.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.bar(np.arange(1, len(ordered) + 1), ordered, width=0.8 if len(ordered) <= 50 else 1.0, color=BLUE)
    axes.axhline(mean, color=ORANGE, linestyle="--", linewidth=1.2, label=f"mean of classes {mean:.1%}")
    axes.set_ylim(0, 1)
    axes.set_xlim(0.3, len(ordered) + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("classes, from the weakest to the strongest")
    axes.set_ylabel(f"precision at {k}")
    axes.grid(visible=False, axis="x")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, borderaxespad=0)
    return to_png(figure)


@matplotlib.rc_context(STYLE)
def sheet_png(query: Tile, nearest: Sequence[Tile], farthest: Sequence[Tile]) -> bytes:
    """A query on the left, rows of its nearest and farthest images on the right, marked right or wrong."""
    blocks = [("nearest", nearest), ("farthest", farthest)]
    heights = [max(1, -(-len(tiles) // _TILES_A_ROW)) for _, tiles in blocks]
    width, height = 1.5 + _TILES_A_ROW, sum(1.5 * rows + 0.25 for rows in heights)
    figure = Figure(figsize=(width * 0.85, height * 0.85), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    _tile(axes, query, 0.15, 0.25)
    top = 0.0
    for (title, tiles), rows in zip(blocks, heights, strict=True):
        axes.text(1.5, top + 0.13, title, color=GREY, va="center", fontsize=8)
        for i, tile in enumerate(tiles):
            _tile(axes, tile, 1.5 + i % _TILES_A_ROW, top + 0.25 + 1.5 * (i // _TILES_A_ROW))
        top += 1.5 * rows + 0.25
    return to_png(figure)


def _tile(axes: Axes, tile: Tile, left: float, top: float) -> None:
    """Draw a 0.9 x 0.9 image at (left, top) with its mark and, below, its class and distance."""
    color = {True: GREEN, False: RED, None: GREY}[tile.right]
    height, width = tile.image.shape[:2]
    interpolation = "antialiased" if max(height, width) >= THUMBNAIL_SIZE // 2 else "nearest"
    half = np.array([width, height]) / max(height, width) * 0.45
    x, y = left + 0.45, top + 0.45
    extent = (x - half[0], x + half[0], y + half[1], y - half[1])
    axes.imshow(tile.image, extent=extent, interpolation=interpolation, aspect="auto", zorder=1)
    style = "--" if tile.right is False else "-"
    axes.add_patch(
        Rectangle((left, top), 0.9, 0.9, fill=False, edgecolor=color, linewidth=2, linestyle=style)
    )
    if tile.symbol:
        box = {"boxstyle": "square,pad=0.15", "facecolor": color, "edgecolor": "none"}
        axes.text(
            left + 0.81, top + 0.1, tile.symbol, color="white", ha="center", va="center", fontsize=8, bbox=box
        )
    below = "query" if tile.distance is None else f"{tile.distance:.3f}"
    name = tile.name if len(tile.name) <= 13 else tile.name[:12] + "…"
    axes.text(x, top + 1.02, drawable(name), ha="center", va="center", fontsize=6.5)
    axes.text(x, top + 1.17, below, ha="center", va="center", fontsize=6.5, color=GREY)


def _curve(
    axes: Axes, records: Sequence[Mapping[str, Any]], event: str, key: str, color: str
) -> tuple[list[float], list[float]]:
    """Draw one figure over the records of one event and return what was drawn; or say that none was."""
    chosen = [record for record in records if record.get("event") == event and record.get(key) is not None]
    x, y = [record["images_seen"] for record in chosen], [record[key] for record in chosen]
    if chosen:
        axes.plot(x, y, color=color, linewidth=1.4, marker="." if len(x) <= 25 else None)
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY)
    return x, y


def drawable(text: str) -> str:
    """The text with what the drawing font lacks replaced, so that no name can fail or warn."""
    return "".join(c if ord(c) in _glyphs() else "\N{REPLACEMENT CHARACTER}" for c in text)


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def to_png(figure: Figure) -> bytes:
    """The figure's file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    # Without "Software" the bytes do not name matplotlib's version.
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi="figure", metadata={"Software": None})
    return buffer.getvalue()
