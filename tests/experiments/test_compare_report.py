"""A comparison's pages and picture, written and read back."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dr_plugin.experiments import compare_report
from dr_plugin.experiments.compare_report import write_comparison

from .compare_cases import FIGURE, VARIANTS, finish, finish_three, table, variant

DASH = "\N{EN DASH}"


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    return finish_three(tmp_path)


def written(folder: Path, **changes: Any) -> tuple[str, str]:
    """The two pages."""
    path = write_comparison(folder, table(folder, VARIANTS, **changes))
    assert path == folder / "comparison.html"
    return (folder / "comparison.md").read_text(), path.read_text()


def cells(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


# -- pages -----------------------------------------------------------------------------------------------------------


def test_files_are_the_table_two_pages_and_a_picture(comparison: Path) -> None:
    failures = {"arcface-seed1": "the loss became nan"}
    found = table(comparison, VARIANTS, failures=failures)
    write_comparison(comparison, found)
    assert json.loads((comparison / "comparison.json").read_text()) == found
    assert Image.open(io.BytesIO((comparison / "comparison.png").read_bytes())).width > 1000
    markdown, page = ((comparison / f"comparison.{kind}").read_text() for kind in ("md", "html"))
    rows = cells(markdown)
    assert rows[0][:8] == [
        "Rank", "Variant", "Differs in", "Runs", r"val.precision\_at\_30", "Difference to the best", "95% interval",
        "Verdict",
    ]  # fmt: skip
    costs = ["300", "701 ± 1 MiB", "2.0 s", "1 min 1 s ± 1.0 s", "600"]
    assert rows[2:6] == [
        ["1", "contrastive", "loss ContrastiveLoss", "3 of 3", "0.7233 ± 0.0208 (n = 3)", DASH, DASH, "best", *costs],
        ["2", "memory", "loss CrossBatchMemory (NTXentLoss)", "3 of 3", "0.7183 ± 0.0284 (n = 3)", "-0.0050",
         "-0.0423 to +0.0323", "tie", *costs],
        ["3", "gap small", "loss DeepRankingLoss", "3 of 3", "0.5250 ± 0.0250 (n = 3)", "-0.1983",
         "-0.2173 to -0.1794", "worse", *costs],
        [DASH, "arcface", "loss ArcFaceLoss", "0 of 3, 1 failed", *["not measured"] * 2, DASH, DASH,
         *["not measured"] * 5],
    ]  # fmt: skip
    for row in rows[2:6]:
        assert all(cell in page for cell in row)
    said = [
        "No single variant wins so far: contrastive has",
        "9 of 12 runs are finished",
        "the loss became nan",
    ]
    said += [
        "Digits, all classes, 16 px",
        "600 by each",
        "a processor",
        "speaks of other seeds",
        "whole process",
    ]
    said += ["2 of 3 pairs differ so", "type: ContrastiveLoss", "momentum: 0.9"]
    for text in said:
        assert text in markdown
        assert text in page


def test_matrix_is_row_less_column_with_its_verdict(comparison: Path) -> None:
    markdown, page = written(comparison)
    rows = cells(markdown.split("## All differences")[1])
    assert rows[0] == ["", "contrastive", "memory", "gap small", "arcface"]
    assert rows[2:6] == [
        ["contrastive", DASH, "+0.0050 =", r"+0.1983 ▲\*", DASH],
        ["memory", "-0.0050 =", DASH, r"+0.1933 ▲\*", DASH],
        ["gap small", r"-0.1983 ▼\*", r"-0.1933 ▼\*", DASH, DASH],
        ["arcface", DASH, DASH, DASH, DASH],
    ]
    assert '<td class="n worse" title="-0.2173 to -0.1794">-0.1983 ▼*</td>' in page
    pairs = cells(markdown.split("Intervals of all pairs")[1])
    assert pairs[2][:4] == ["contrastive", "memory", "+0.0050", "-0.0323 to +0.0423"]
    assert [row[6] for row in pairs[2:]] == ["tie", "better", DASH, "better", DASH, DASH]


def test_star_is_for_pairs_that_outlast_the_correction(comparison: Path) -> None:
    found = table(comparison, VARIANTS)
    told = {(pair["first"], pair["second"]): pair["p_holm"] for pair in found["pairs"][FIGURE]}
    assert told["gap_small", "contrastive"] < 0.05
    for pair in found["pairs"][FIGURE]:
        pair["p_holm"] = 0.2
    page = write_comparison(comparison, found).read_text()
    assert "▲" in page
    assert "▲*" not in page
    assert "0 of them still do" in page


def test_small_differences_have_the_digits_of_the_figure(comparison: Path) -> None:
    for seed, value in enumerate((0.7001, 0.7402, 0.7302)):
        finish(comparison, "arcface", seed, value)
    markdown, _ = written(comparison)
    assert "+0.0002" in markdown
    assert "e-04" not in re.sub(r"\| [^|]*\| [^|]*\| \w* \|\n", "", markdown)  # but for p-values


def test_html_has_every_figure_and_markdown_says_where_they_are(comparison: Path) -> None:
    markdown, page = written(comparison, figures=[FIGURE, "wall_time_s"])
    assert page.count('<table class="matrix">') == 2
    assert "Those of the other figures are in comparison.html" in markdown
    assert page.count("variant wins") == 2
    assert "Those of the other figures" not in written(comparison)[0]


def test_html_stands_alone_and_links_the_reports_of_the_runs(comparison: Path) -> None:
    page = written(comparison)[1]
    links = re.findall(r'<a href="([^"]+)"', page)
    assert len(links) == 9
    assert all((comparison / link).is_file() for link in links)
    assert re.findall(r'(?:src|link[^>]+href)="(?!data:)', page) == []
    assert not re.search(r"<script|url\(|@import|\bon\w+=", page)
    assert "default-src 'none'" in page


def test_nothing_finished_makes_pages_too(tmp_path: Path) -> None:
    markdown, page = written(tmp_path)
    assert f"{FIGURE} is not measured yet." in page
    assert "0 of 12 runs are finished" in markdown
    assert {row[4] for row in cells(markdown)[2:6]} == {"not measured"}


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    finish(tmp_path, "gap_small", 0, 0.5)
    finish(tmp_path, "memory", 0, 0.75)
    markdown, page = written(tmp_path, seeds=[0])
    assert cells(markdown)[3][4:8] == ["0.5000 (n = 1)", "-0.2500", DASH, DASH]
    assert "+0.2500 ?" in page
    assert "called better or worse by chance" not in page


def test_what_is_not_equal_is_said(comparison: Path) -> None:
    metrics = comparison / "runs" / "memory-seed0" / "metrics.json"
    content = json.loads(metrics.read_text())
    content["stages"][0]["images_seen"] = 900
    metrics.write_text(json.dumps(content))
    (comparison / "runs" / "memory-seed0" / "environment.json").write_text('{"device": "another"}')
    page = written(comparison)[1]
    assert "600 to 700: not the same for all" in page
    assert "The runs had different environments" in page


def test_labels_and_reasons_are_escaped(tmp_path: Path) -> None:
    hostile = variant("a|b <script>x</script> $x$ \U0001f600", {"type": "NTXentLoss"})
    found = table(tmp_path, [hostile, VARIANTS[0]], failures={"gap_small-seed0": "<i>|"}, figures=["<b>x|y"])
    page = write_comparison(tmp_path, found).read_text()
    assert not re.search("<script|<b>|<i>", page)
    rows = cells((tmp_path / "comparison.md").read_text())
    assert len(rows[0]) == len(rows[2]) == 13


def test_failure_leaves_the_files_as_they_were(comparison: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(comparison)
    before = {path: path.read_bytes() for path in comparison.glob("comparison.*")}
    finish(comparison, "arcface", 1, 0.9)

    def fail(*_: object) -> bytes:
        raise RuntimeError("no picture")

    monkeypatch.setattr(compare_report, "comparison_png", fail)
    with pytest.raises(RuntimeError, match="no picture"):
        written(comparison)
    assert {path: path.read_bytes() for path in comparison.glob("comparison.*")} == before
    assert len(before) == 4


def test_same_table_gives_the_same_bytes(comparison: Path, tmp_path: Path) -> None:
    found = table(comparison, VARIANTS)
    for name in ("one", "two"):
        write_comparison(tmp_path / name, found)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")
    )
    assert one == two
