"""A comparison's picture: what is drawn, and where its labels stand."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dr_plugin.experiments import compare_figures
from dr_plugin.experiments.compare_figures import apart, comparison_png

from .compare_cases import VARIANTS, finish, finish_three, table


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    return finish_three(tmp_path)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, kept for a look."""
    kept: list[Figure] = []
    to_png = compare_figures.to_png

    def keep(figure: Figure) -> bytes:
        kept.append(figure)
        return to_png(figure)

    monkeypatch.setattr(compare_figures, "to_png", keep)
    return kept


def test_courses_have_their_names_at_their_ends(comparison: Path, drawn: list[Figure]) -> None:
    comparison_png(table(comparison, VARIANTS))
    panel = drawn[0].axes[0]
    ends = {text.get_text(): text.xy for text in panel.texts}
    assert list(ends) == ["contrastive", "memory", "gap small"]
    wanted = [[300, 600], [0.3, 0.72], [300, 600], [0.3, 0.721], [300, 600], [0.3, 0.5]]
    drawn_lines = [np.asarray(axis) for line in panel.get_lines() for axis in line.get_data()]
    assert np.array(drawn_lines) == pytest.approx(np.array(wanted))
    assert np.array(list(ends.values())) == pytest.approx(np.array([(600, 0.72), (600, 0.721), (600, 0.5)]))
    boxes = sorted((text.get_window_extent() for text in panel.texts), key=lambda box: box.y0)
    assert all(above.y0 - below.y0 > 0.9 * below.height for below, above in itertools.pairwise(boxes))
    assert [line.get_color() for line in panel.get_lines()][:2] == list(compare_figures._GREYS[:2])
    assert panel.get_lines()[2].get_color() == compare_figures._COLORS[0]  # ours


def test_looks_tell_fifteen_variants_apart() -> None:
    rows = [{"name": str(i), "ours": i < 6} for i in range(18)]
    looks = compare_figures._looks(rows)
    assert len({(look["color"], look["linestyle"]) for look in looks.values()}) == 18


def test_differences_to_the_best_have_the_interval_of_the_verdict(
    comparison: Path, drawn: list[Figure]
) -> None:
    comparison_png(table(comparison, VARIANTS))
    levels, panel = drawn[0].axes[1:]
    assert [tick.get_text() for tick in levels.get_yticklabels()] == [
        "contrastive",
        "memory",
        "gap small",
        "arcface",
    ]
    assert [bar.lines[0].get_xdata()[0] for bar in levels.containers] == pytest.approx(
        [0.7233, 0.7183, 0.525], abs=1e-4
    )
    assert [text.get_text() for text in levels.texts] == ["not measured"]
    memory, small = panel.containers
    for bar, mean, low, high in ((memory, -0.005, -0.04226, 0.03226), (small, -0.1983, -0.2173, -0.1794)):
        assert bar.lines[0].get_xdata()[0] == pytest.approx(mean, abs=1e-4)
        ends = bar.lines[2][0].get_segments()[0][:, 0]
        assert list(ends) == pytest.approx([low, high], abs=1e-4)
    assert memory.lines[0].get_markerfacecolor() == "white"  # a tie
    assert small.lines[0].get_markerfacecolor() != "white"


def test_huge_intervals_do_not_hide_the_differences(tmp_path: Path, drawn: list[Figure]) -> None:
    for name, values in (("gap_small", (0.9, 0.5)), ("memory", (0.4, 0.9)), ("contrastive", (0.62, 0.6))):
        for seed, value in enumerate(values):
            finish(tmp_path, name, seed, value)
    comparison_png(table(tmp_path, VARIANTS))
    low, high = drawn[0].axes[2].get_xlim()
    assert high - low < 0.4


def test_failed_variants_are_said_to_have_failed(comparison: Path, drawn: list[Figure]) -> None:
    comparison_png(table(comparison, VARIANTS, failures={"arcface-seed0": "why"}))
    assert [text.get_text() for text in drawn[0].axes[1].texts] == ["failed"]


def test_picture_of_nothing_says_so(tmp_path: Path, drawn: list[Figure]) -> None:
    picture = Image.open(io.BytesIO(comparison_png(table(tmp_path, VARIANTS))))
    assert picture.height > 500
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["not measured"]


@pytest.mark.parametrize(
    ("values", "gap", "wanted"),
    [
        ([], 1.0, []),
        ([5.0], 1.0, [5.0]),
        ([0.0, 10.0], 1.0, [0.0, 10.0]),
        ([3.0, 3.0], 1.0, [2.5, 3.5]),
        ([4.0, 3.9, 9.0], 1.0, [4.45, 3.45, 9.0]),
        ([0.0, 0.0, 1.1], 1.0, [-1.9 / 3, 1.1 / 3, 4.1 / 3]),
    ],
)
def test_labels_move_apart_by_as_little_as_it_takes(
    values: list[float], gap: float, wanted: list[float]
) -> None:
    assert apart(values, gap) == pytest.approx(wanted)


def test_labels_keep_their_order_and_their_gap() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        values = draw.uniform(0, 5, 15).tolist()
        found = apart(values, 0.4)
        assert np.argsort(found).tolist() == np.argsort(values).tolist()
        assert np.diff(np.sort(found)).min() > 0.4 - 1e-9
        assert np.mean(found) == pytest.approx(np.mean(values))
