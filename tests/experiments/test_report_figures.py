"""The report's drawings, decoded again."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dr_plugin.experiments import report_figures
from dr_plugin.experiments.report_figures import (
    Tile,
    class_precision_png,
    curves_png,
    filters_png,
    image_png,
    sheet_png,
)

GREEN, RED = (0x15, 0x80, 0x3D), (0xC8, 0x1E, 0x1E)


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def holds(pixels: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((pixels == np.array(color)).all(axis=-1).any())


def tile(right: bool | None, name: str = "bee") -> Tile:
    image = np.full((16, 16, 3), 90, dtype=np.uint8)
    return Tile(image, name, name, right, None if right is None else 0.5)


@pytest.mark.parametrize(("shape", "shown"), [((8, 8), (8, 8)), ((64, 48), (64, 48)), ((225, 100), (72, 32))])
def test_image_png_shrinks_but_never_enlarges(shape: tuple[int, int], shown: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    decoded = decode(image_png(image, size=72))
    assert decoded.shape == (*shown, 3)
    assert shape != shown or np.array_equal(decoded, image)


def test_image_png_takes_a_strided_view() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8).transpose(1, 2, 0)
    assert np.array_equal(decode(image_png(image)), image)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (5, 3, 3, 3), (40, 3, 5, 7), (130, 3, 8, 8)])
def test_filters_png_holds_every_weight_scaled_by_its_filter(shape: tuple[int, int, int, int]) -> None:
    filters = np.random.default_rng(0).normal(size=shape)
    filters[0] = 0.0  # a dead filter is grey, not an error
    grid = decode(filters_png(filters))
    n, _, h, w = shape
    columns = min(n, 16 if n > 32 else 8)
    rows = -(-min(n, 128) // columns)
    cell_h, cell_w = (grid.shape[0] - 2) // rows, (grid.shape[1] - 2) // columns
    zoom = (cell_w - 2) // w
    assert (cell_h, cell_w) == (h * zoom + 2, w * zoom + 2)
    for f in range(min(n, 128)):
        for y, x in np.ndindex(h, w):
            top, left = 2 + f // columns * cell_h + y * zoom, 2 + f % columns * cell_w + x * zoom
            largest = max(np.abs(filters[f]).max(), 1e-30)
            expected = [round(255 * (0.5 + weight / largest / 2)) for weight in filters[f, :, y, x]]
            block = grid[top : top + zoom, left : left + zoom].reshape(-1, 3)
            assert (np.abs(block.astype(int) - expected) <= 1).all()


def test_sheet_png_marks_by_color_and_by_symbol() -> None:
    right = decode(sheet_png(tile(None), [tile(True)], [tile(True)]))
    wrong = decode(sheet_png(tile(None), [tile(False)], [tile(False)]))
    assert (holds(right, GREEN), holds(right, RED)) == (True, False)
    assert (holds(wrong, GREEN), holds(wrong, RED)) == (False, True)
    # Also in grey the two differ: by the symbol and the dashed frame.
    masks = [(image == np.array(color)).all(axis=-1) for image, color in ((right, GREEN), (wrong, RED))]
    assert masks[0].sum() > 1.1 * masks[1].sum()
    assert [tile(right).symbol for right in (True, False, None)] == ["✓", "✗", ""]


@pytest.mark.parametrize("count", [0, 1, 10, 11])
def test_sheet_png_grows_by_rows_of_ten(count: int) -> None:
    rows = max(1, -(-count // 10)) + 1
    height = decode(sheet_png(tile(None), [tile(True)] * count, [tile(True)])).shape[0]
    assert height == pytest.approx((1.5 * rows + 0.5) * 0.85 * 110, abs=1)


@pytest.mark.parametrize("name", ["$x_1$", r"$\bad$", "日本語", "a\nb", "\udc80", "<&>"])
def test_sheet_png_draws_any_name(name: str) -> None:
    assert decode(sheet_png(tile(None, name), [tile(True, name)], [])).size


def test_curve_draws_the_records_as_they_are() -> None:
    records = [
        {"event": "train", "images_seen": 10, "loss": 0.5},
        {"event": "evaluate", "images_seen": 10, "precision_at_5": 0.2},
        {"event": "train", "images_seen": 20, "loss": None},
        {"event": "train", "images_seen": 30, "loss": 0.25},
    ]
    axes = Figure().subplots()
    drawn = report_figures._curve(axes, records, "train", "loss", "blue")
    assert drawn == ([10, 30], [0.5, 0.25])
    (line,) = axes.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == drawn


def test_curve_without_records_says_so() -> None:
    axes = Figure().subplots()
    assert report_figures._curve(axes, [], "evaluate", "precision_at_5", "blue") == ([], [])
    assert [text.get_text() for text in axes.texts] == ["not measured"]


@pytest.mark.parametrize("count", [0, 1, 40])
def test_curves_png_draws_any_number_of_records(count: int) -> None:
    records = [{"event": "train", "images_seen": i, "loss": 1 / (i + 1)} for i in range(count)]
    assert decode(curves_png(records, 5)).shape == (704, 864, 3)


@pytest.mark.parametrize("count", [1, 2, 200])
def test_class_precision_png_draws_any_number_of_classes(count: int) -> None:
    precision = np.linspace(0, 1, count)
    with_gap = np.append(precision, np.nan)
    assert class_precision_png(precision, 5) == class_precision_png(with_gap, 5)


def test_drawing_leaves_the_users_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    class_precision_png(np.array([0.5]), 5)
    assert dict(matplotlib.rcParams) == before
