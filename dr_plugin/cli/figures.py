"""The figures that a finished command shows, as tables in the terminal."""

import math
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from .reporters import console


def print_figures(metrics: dict[str, Any]) -> None:
    """The figures, as suits an experiment, a sweep, a comparison or a table."""
    printers = {"points": _print_points, "variants": _print_variants, "rows": _print_table}
    show = next((printers[key] for key in printers if key in metrics), _print_run)
    show(metrics)


def _print_table(metrics: dict[str, Any]) -> None:
    from dr_plugin.evaluation.table_report import interval

    k = metrics["k"]
    table = Table(title=f"{metrics['name']}: similarity precision")
    table.add_column("model")
    for title in ("precision", "95% interval", "paper", f"score at top {k}, own pool", f"top {k} of all"):
        table.add_column(title, justify="right")
    table.add_column("learned from")
    for row in metrics["rows"]:
        found, paper = row["similarity_precision"], row["paper"] or {}
        table.add_row(
            escape(row["name"]),
            f"{found['value']:.1%}",
            interval(found),
            f"{paper['similarity_precision']:.1%}" if paper else "",
            f"{row[f'score_at_top_{k}']['score']:,}",
            f"{row[f'score_at_top_{k}_of_all']['score']:,}",
            escape(row["seen"]),
        )
    console.print(table)


def _print_run(metrics: dict[str, Any]) -> None:
    k = metrics["k"]
    title = f"{metrics['name']}: precision at {k}"
    if metrics.get("gallery") == "val":
        title += ", val images among themselves, of classes not trained on"
    columns = {key: _short(key) for key in metrics["val"]}
    table = Table(title=title)
    table.add_column("what")
    for column in columns.values():
        table.add_column(column, justify="right")
    rows = {"val": metrics["val"]}
    if "val_reranked" in metrics:
        rows[f"val, {metrics['rerank']} nearest re-ranked"] = metrics["val_reranked"]
    rows["train (without itself)"] = metrics.get("train")
    rows |= {f"val, {name}": figures for name, figures in metrics["baselines"].items()}
    for name, figures in rows.items():
        if figures is not None:
            table.add_row(name, *(f"{figures[key]:.4f}" for key in columns))
    console.print(table)


def _short(figure: str) -> str:
    """precision_at_30 -> P@30, recall_at_1 -> R@1."""
    kind, _, at = figure.partition("_at_")
    return f"{kind[0].upper()}@{at}"


def _print_points(metrics: dict[str, Any]) -> None:
    from dr_plugin.experiments.report_text import level

    table = Table(title=f"{metrics['name']}: mean ± standard deviation over the seeds")
    table.add_column("point")
    for figure in metrics["figures"]:
        table.add_column(escape(figure), justify="right")
    for row in metrics["points"]:
        figures = (level(row["figures"][figure]) for figure in metrics["figures"])
        table.add_row(escape(row["label"]), *figures)
    console.print(table)


def _print_variants(metrics: dict[str, Any]) -> None:
    from dr_plugin.experiments.report_text import level

    figures = metrics["figures"]
    table = Table(title=f"{metrics['name']}: mean ± standard deviation over the seeds")
    table.add_column("variant")
    for figure in [*figures, "images/s"]:
        table.add_column(escape(figure), justify="right")
    for row in sorted(metrics["variants"], key=lambda row: row["figures"][figures[0]]["rank"] or math.inf):
        cells = [level(row["figures"][figure]) for figure in figures]
        speed = row["images_per_s"]["mean"]
        table.add_row(escape(row["label"]), *cells, "" if speed is None else f"{speed:,.0f}")
    console.print(table)
    click.echo(metrics["winners"][figures[0]]["sentence"])
