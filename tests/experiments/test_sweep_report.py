"""A sweep's table against figures worked out otherwise, and its pages and picture read back."""

import io
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dr_plugin.experiments import sweep_figures, sweep_report
from dr_plugin.experiments.recipe import Recipe, load_recipe
from dr_plugin.experiments.report_text import level
from dr_plugin.experiments.run import run_folder
from dr_plugin.experiments.sweep_plan import Point
from dr_plugin.experiments.sweep_report import write_sweep_report
from dr_plugin.experiments.sweep_table import summarise

DASH = "\N{EN DASH}"
X = "stages.ranking.sampler.out_of_class_ratio"
# Student's t at 97.5% for one and two degrees of freedom, from a printed table.
T = {2: 12.706, 3: 4.303}


def point(
    label: str, settings: dict[str, Any], series: str = "", along: dict[str, Any] | None = None
) -> Point:
    return Point(re.sub(r"\W+", "-", label), label, settings, series, along or {}, load_recipe("quickstart"))


RATIOS = [point(f"ratio={x}", {X: x}, "", {X: x}) for x in (0.0, 0.5, 1.0)]
UNIFORM = point("weighting=uniform", {"w": "uniform", X: 0.0}, "weighting=uniform", {X: 0.0})


def recipe(*figures: str, seeds: tuple[int, ...] = (0, 1, 2), shared: int = 0) -> Recipe:
    sweep = {"seeds": list(seeds), "shared_stages": 0, "figures": list(figures) or None}
    loaded = load_recipe("quickstart", [f"sweep={json.dumps(sweep)}", "evaluation.k=5"])
    assert loaded.sweep is not None
    return loaded.model_copy(update={"sweep": loaded.sweep.model_copy(update={"shared_stages": shared})})


def finish(folder: Path, point: Point, seed: int, value: Any, **metrics: Any) -> None:
    """Write what a finished run leaves."""
    run = run_folder(folder, point.name, seed)
    (run / "report").mkdir(parents=True)
    (run / "report" / "report.html").write_text("done")
    stages = [
        {"name": "softmax", "images_seen": 1000, "images_per_s": 10.0},
        {"name": "ranking", "images_seen": 600, "images_per_s": 300.0},
        {"name": "again", "images_seen": 600, "images_per_s": 150.0},
    ]
    content = {"val": {"precision_at_5": value}, "stages": stages, "wall_time_s": 60.0 + seed, **metrics}
    (run / "metrics.json").write_text(json.dumps(content))


VALUES = {
    (0, 0): 0.5, (0, 1): 0.6, (0, 2): 0.55,
    (1, 0): 0.7, (1, 1): 0.65, (1, 2): 0.75,
    (2, 1): 0.9, (2, 2): 0.6,
    (3, 0): 0.4,
}  # fmt: skip
POINTS = [*RATIOS, UNIFORM]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three seeds of the first two points, two of the third, one of the fourth."""
    for (index, seed), value in VALUES.items():
        finish(tmp_path, POINTS[index], seed, value)
    return tmp_path


def test_table_has_mean_deviation_and_number(sweep: Path) -> None:
    rows = summarise(recipe("val.precision_at_5"), POINTS, sweep, {})["points"]
    for index, row in enumerate(rows):
        own = [value for (other, _), value in VALUES.items() if other == index]
        item = row["figures"]["val.precision_at_5"]
        assert item["n"] == len(own)
        assert item["mean"] == pytest.approx(np.mean(own))
        assert item["std"] == (pytest.approx(np.std(own, ddof=1)) if len(own) > 1 else None)
        assert row["wall_time_s"]["n"] == len(row["runs"]) == len(own)
    assert [list(row["runs"]) for row in rows] == [["0", "1", "2"], ["0", "1", "2"], ["1", "2"], ["0"]]
    assert rows[3]["runs"] == {"0": f"runs/{UNIFORM.name}-seed0"}


def test_differences_are_paired_over_the_seeds_that_both_have(sweep: Path) -> None:
    rows = summarise(recipe("val.precision_at_5"), POINTS, sweep, {})["points"]
    found = [row["figures"]["val.precision_at_5"]["difference"] for row in rows]
    assert found[0] is None
    for difference, own in ((found[1], [0.2, 0.05, 0.2]), (found[2], [0.3, 0.05])):
        reach = T[len(own)] * statistics.stdev(own) / math.sqrt(len(own))
        assert difference["n"] == len(own)
        assert difference["mean"] == pytest.approx(statistics.mean(own))
        assert difference["low"] == pytest.approx(statistics.mean(own) - reach, rel=1e-3)
        assert difference["high"] == pytest.approx(statistics.mean(own) + reach, rel=1e-3)
    assert found[3] == {"n": 1, "mean": pytest.approx(-0.1), "low": None, "high": None}


def test_difference_of_points_without_a_common_seed_is_not_there(tmp_path: Path) -> None:
    finish(tmp_path, RATIOS[0], 0, 0.5)
    finish(tmp_path, RATIOS[1], 1, 0.7)
    rows = summarise(recipe("val.precision_at_5"), RATIOS, tmp_path, {})["points"]
    nothing = {"n": 0, "mean": None, "low": None, "high": None}
    assert [row["figures"]["val.precision_at_5"]["difference"] for row in rows] == [None, nothing, nothing]


@pytest.mark.parametrize(("shared", "speed"), [(0, 2200 / (100 + 2 + 4)), (1, 200.0), (2, 150.0)])
def test_speed_is_that_of_the_stages_after_the_shared_ones(sweep: Path, shared: int, speed: float) -> None:
    table = summarise(recipe(shared=shared), POINTS, sweep, {})
    assert [row["images_per_s"]["mean"] for row in table["points"]] == pytest.approx([speed] * 4)
    assert table["points"][0]["wall_time_s"] == {"n": 3, "mean": 61.0, "std": 1.0}


@pytest.mark.parametrize("value", [None, "0.5", True, float("nan"), float("inf"), [0.5], {"x": 0.5}])
def test_value_that_is_no_number_is_not_measured(tmp_path: Path, value: Any) -> None:
    finish(tmp_path, RATIOS[0], 0, value)
    finish(tmp_path, RATIOS[0], 1, 0.25)
    item = summarise(recipe(), RATIOS[:1], tmp_path, {})["points"][0]["figures"]["val.precision_at_5"]
    assert (item["n"], item["mean"], item["values"]) == (1, 0.25, {"1": 0.25})


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("baselines.pixels.precision_at_5", 0.125),
        ("stages.1.images_per_s", 300.0),
        ("wall_time_s", 60.0),
        ("stages.9.images_per_s", None),
        ("val.precision_at_5.more", None),
        ("selection.precision_at_5", None),
        ("nothing", None),
    ],
)
def test_figure_is_any_key_of_the_metrics(tmp_path: Path, figure: str, value: float | None) -> None:
    baselines = {"pixels": {"precision_at_5": 0.125}}
    finish(tmp_path, RATIOS[0], 0, 0.5, baselines=baselines, selection=None)
    item = summarise(recipe(figure), RATIOS[:1], tmp_path, {})["points"][0]["figures"][figure]
    assert item["mean"] == value


def test_run_without_its_report_is_not_finished(sweep: Path) -> None:
    (run_folder(sweep, UNIFORM.name, 0) / "report" / "report.html").unlink()
    row = summarise(recipe(), POINTS, sweep, {})["points"][3]
    assert (row["runs"], row["figures"]["val.precision_at_5"]["n"]) == ({}, 0)


# -- pages -----------------------------------------------------------------------------------------------------------


def cells(folder: Path) -> list[list[str]]:
    lines = [line for line in (folder / "sweep.md").read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_files_are_the_table_two_pages_and_a_picture(sweep: Path) -> None:
    table = summarise(recipe(shared=1), POINTS, sweep, {"run": "why"})
    assert write_sweep_report(sweep, table) == sweep / "sweep.html"
    assert json.loads((sweep / "sweep.json").read_text()) == table
    assert cells(sweep)[0][:5] == [
        "Point",
        "Runs",
        r"val.precision\_at\_5",
        "Difference to the first",
        "95% interval",
    ]
    assert cells(sweep)[2:] == [
        ["ratio=0.0", "3 of 3", "0.5500 ± 0.0500 (n = 3)", DASH, DASH, "200", "1 min 1 s"],
        [
            "ratio=0.5",
            "3 of 3",
            "0.7000 ± 0.0500 (n = 3)",
            "+0.1500",
            "-0.0651 to +0.3651",
            "200",
            "1 min 1 s",
        ],
        [
            "ratio=1.0",
            "2 of 3",
            "0.7500 ± 0.2121 (n = 2)",
            "+0.1750",
            "-1.4133 to +1.7633",
            "200",
            "1 min 2 s",
        ],
        ["weighting=uniform", "1 of 3", "0.4000 (n = 1)", "-0.1000", DASH, "200", "1 min 0 s"],
    ]
    markdown, page = (sweep / "sweep.md").read_text(), (sweep / "sweep.html").read_text()
    for text in ("9 of 12 runs are finished", "The first stage was trained once", "why"):
        assert text in markdown
        assert text in page
    for row in cells(sweep)[2:]:
        assert all(cell in page for cell in row)


def test_html_stands_alone_and_links_the_reports_of_the_runs(sweep: Path) -> None:
    page = write_sweep_report(sweep, summarise(recipe(), POINTS, sweep, {})).read_text()
    links = re.findall(r'<a href="([^"]+)"', page)
    assert len(links) == len(VALUES)
    assert all((sweep / link).is_file() for link in links)
    assert re.findall(r'(?:src|link[^>]+href)="(?!data:)', page) == []
    assert not re.search(r"<script|url\(|@import|\bon\w+=", page)
    assert "default-src 'none'" in page


def test_not_measured_is_said(tmp_path: Path) -> None:
    page = write_sweep_report(tmp_path, summarise(recipe(), RATIOS, tmp_path, {})).read_text()
    assert [row[2] for row in cells(tmp_path)[2:]] == ["not measured"] * 3
    assert (
        page.count('<span class="missing">not measured</span>') == 3 + 2 + 3 + 3
    )  # level, difference, speed, time
    assert "0 of 9 runs are finished" in page


def test_labels_are_escaped(tmp_path: Path) -> None:
    hostile = point("a|b <script>x</script> [l](u) \U0001f600 $x$", {"a": 1})
    page = write_sweep_report(tmp_path, summarise(recipe(), [hostile], tmp_path, {"<b>": "<i>"})).read_text()
    assert not re.search("<script|<b>|<i>", page)
    assert len(cells(tmp_path)[2]) == len(cells(tmp_path)[0]) + 1  # split at the escaped bar
    assert r"a\|b &lt;script&gt;" in (tmp_path / "sweep.md").read_text()


@pytest.mark.parametrize(
    ("mean", "std", "shown"),
    [
        (0.5, 0.0125, "0.5000 ± 0.0125 (n = 2)"),
        (-0.25, 0.0, "-0.2500 ± 0.0000 (n = 2)"),
        (7155.04, 20.3, "7,155.0 ± 20.3 (n = 2)"),
        (61.25, 0.5, "61.25 ± 0.50 (n = 2)"),
        (2.5e-6, 1e-7, "2.50e-06 ± 1.00e-07 (n = 2)"),
        (0.0, 0.0, "0.0000 ± 0.0000 (n = 2)"),
    ],
)
def test_figures_of_any_size_are_readable(mean: float, std: float, shown: str) -> None:
    assert level({"n": 2, "mean": mean, "std": std}) == shown


def test_failure_leaves_the_files_as_they_were(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sweep_report(sweep, summarise(recipe(), POINTS, sweep, {}))
    before = {path: path.read_bytes() for path in sweep.glob("sweep.*")}
    finish(sweep, UNIFORM, 1, 0.9)

    def fail(*_: object) -> bytes:
        raise RuntimeError("no picture")

    monkeypatch.setattr(sweep_report, "sweep_png", fail)
    with pytest.raises(RuntimeError, match="no picture"):
        write_sweep_report(sweep, summarise(recipe(), POINTS, sweep, {}))
    assert {path: path.read_bytes() for path in sweep.glob("sweep.*")} == before
    assert len(before) == 4


def test_same_table_gives_the_same_bytes(sweep: Path, tmp_path: Path) -> None:
    table = summarise(recipe(), POINTS, sweep, {})
    for name in ("one", "two"):
        write_sweep_report(tmp_path / name, table)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")
    )
    assert one == two


# -- picture ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, kept for a look."""
    drawn: list[Figure] = []
    to_png = sweep_figures.to_png

    def keep(figure: Figure) -> bytes:
        drawn.append(figure)
        return to_png(figure)

    monkeypatch.setattr(sweep_figures, "to_png", keep)
    return drawn


def draw(folder: Path, points: list[Point], *figures: str) -> Image.Image:
    png = sweep_figures.sweep_png(summarise(recipe(*figures), points, folder, {}))
    return Image.open(io.BytesIO(png))


def test_picture_has_a_line_along_the_axis_and_the_other_point_beside_it(
    sweep: Path, panels: list[Figure]
) -> None:
    draw(sweep, POINTS, "val.precision_at_5")
    (panel,) = panels[0].axes
    line, single = panel.containers
    assert line.lines[0].get_xdata().tolist() == [0.0, 0.5, 1.0]
    assert line.lines[0].get_ydata() == pytest.approx([0.55, 0.7, 0.75])
    assert line.lines[0].get_linestyle() == "-"
    bars = line.lines[2][0].get_segments()
    reaches = [0.05, 0.05, statistics.stdev([0.9, 0.6])]
    expected = [(mean - reach, mean + reach) for mean, reach in zip([0.55, 0.7, 0.75], reaches, strict=True)]
    assert np.array([(low[1], high[1]) for low, high in bars]) == pytest.approx(np.array(expected))
    assert single.lines[0].get_ydata().tolist() == [0.4]
    assert single.lines[0].get_linestyle() == "None"
    assert 0 < single.lines[0].get_xdata()[0] < 0.05  # beside the line's first point
    assert [text.get_text() for text in panel.get_legend().get_texts()] == [
        "the recipe's own settings",
        "weighting=uniform",
    ]
    assert (panel.get_xlabel(), panel.get_ylabel()) == (X, "val.precision_at_5")
    low, high = panel.get_ylim()
    assert low < 0.4 < 0.96 < high


def test_point_without_a_place_on_the_axis_is_a_level(sweep: Path, panels: list[Figure]) -> None:
    other = point("sampler=null", {"stages.ranking.sampler": None})
    finish(sweep, other, 0, 0.625)
    draw(sweep, [*RATIOS, other])
    (panel,) = panels[0].axes
    levels = [line for line in panel.get_lines() if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in levels] == [[0.625, 0.625]]
    assert levels[0].get_label() == "sampler=null"


def test_picture_without_an_axis_names_the_points(sweep: Path, panels: list[Figure]) -> None:
    plain = [point(item.label, item.settings) for item in POINTS]
    draw(sweep, plain)
    (panel,) = panels[0].axes
    assert [tick.get_text() for tick in panel.get_yticklabels()] == [item.label for item in plain]
    assert [bar.lines[0].get_xdata()[0] for bar in panel.containers] == pytest.approx([0.55, 0.7, 0.75, 0.4])


@pytest.mark.parametrize(
    ("values", "texts", "scale"),
    [
        (["a", None, [1, 2]], ["a", "null", "[1, 2]"], "linear"),
        ([False, True], ["false", "true"], "linear"),
        ([3, "x"], ["3", "x"], "linear"),
        ([2, 0.5], ["2", "0.5"], "linear"),
        ([1e-4, 1e-1], None, "log"),
        ([0, 100], ["0", "100"], "linear"),
        ([5], ["5"], "linear"),
    ],
)
def test_axis_takes_numbers_and_anything_else(
    tmp_path: Path, panels: list[Figure], values: list[Any], texts: list[str] | None, scale: str
) -> None:
    points = [point(f"p{i}", {X: value}, "", {X: value}) for i, value in enumerate(values)]
    for each in points:
        finish(tmp_path, each, 0, 0.5)
    draw(tmp_path, points)
    (panel,) = panels[0].axes
    assert panel.get_xscale() == scale
    if texts is not None:
        assert [tick.get_text() for tick in panel.get_xticklabels()] == texts


def test_each_figure_has_a_panel_that_says_where_nothing_was_measured(
    sweep: Path, panels: list[Figure]
) -> None:
    picture = draw(sweep, POINTS, "val.precision_at_5", "wall_time_s", "nothing")
    shown = [panel for panel in panels[0].axes if panel.axison]
    assert [panel.get_ylabel() for panel in shown] == ["val.precision_at_5", "wall_time_s", "nothing"]
    assert [text.get_text() for text in shown[2].texts] == ["not measured"]
    assert picture.width > picture.height > 500
