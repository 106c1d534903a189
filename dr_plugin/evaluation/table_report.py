"""A table as `table.json`, `table.md` and a `table.html` that stands alone."""

from pathlib import Path
from typing import Any

from dr_plugin.atomic import write_json, write_text
from dr_plugin.experiments.report import page_templates
from dr_plugin.experiments.report_text import DASH

PAGES = ("table.md", "table.html")


def write_table_report(folder: Path, metrics: dict[str, Any]) -> Path:
    """Write the three files, each whole or not at all, and give back the path of ``table.html``.

    Args:
        folder: The table's folder.
        metrics: What ``table.json`` is to hold: ``name``, ``k``, ``compare_with``, ``rated`` and ``rows``, each with
            the figures of `judge`.
    """
    k = metrics["k"]
    context = {
        **metrics,
        "rows": [_shown(row, k) for row in metrics["rows"]],
        "has_paper": any(row["paper"] is not None for row in metrics["rows"]),
        "share": metrics["rows"][0]["score_at_top_share"],
        "pool": metrics["rows"][0][f"score_at_top_{k}"],
        "fewer": metrics["rows"][0].get("similarity_precision_without_degenerate"),
    }
    templates = page_templates("dr_plugin.evaluation")
    pages = {name: templates.get_template(f"{name}.jinja").render(context) for name in PAGES}
    write_json(folder / "table.json", metrics)
    for name, text in pages.items():
        write_text(folder / name, text)
    return folder / "table.html"


def _shown(row: dict[str, Any], k: int) -> dict[str, str]:
    """A row as the pages show it."""
    paper = row["paper"] or {}
    precision, score = paper.get("similarity_precision"), paper.get("score_at_top_30")
    whole = row.get("similarity_precision_without_degenerate")
    return {
        "name": row["name"],
        "precision": _level(row["similarity_precision"]),
        "interval": interval(row["similarity_precision"]),
        "whole": DASH if whole is None else _level(whole),
        "paper_precision": DASH if precision is None else f"{precision:.1%}",
        "verdict": _verdict(row["similarity_precision"], precision),
        "score": f"{row[f'score_at_top_{k}']['score']:,}",
        "score_share": f"{row['score_at_top_share']['score']:,}",
        "score_all": f"{row[f'score_at_top_{k}_of_all']['score']:,}",
        "paper_score": DASH if score is None else f"{score:,}",
        "against": _against(row.get("against")),
        "seen": row["seen"],
        "distance": row["distance"],
    }


def _level(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.1%}"


def interval(figure: dict[str, Any]) -> str:
    """The interval; a dash where one group of triplets allows none."""
    return DASH if figure["low"] is None else f"{figure['low']:.1%} to {figure['high']:.1%}"


def _verdict(figure: dict[str, Any], paper: float | None) -> str:
    """Whether the interval holds the paper's figure, or lies above or below it."""
    if paper is None or figure["low"] is None:
        return DASH
    if figure["high"] < paper:
        return "below"
    return "above" if figure["low"] > paper else "holds it"


def _against(test: dict[str, Any] | None) -> str:
    if test is None:
        return DASH
    between = "" if test["low"] is None else f" ({100 * test['low']:+.1f} to {100 * test['high']:+.1f})"
    return f"{100 * test['difference']:+.1f}{between}, p = {test['p_value']:.2g}"
