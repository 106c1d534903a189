"""The report of a run: a `report.html` that stands alone, a `report.md`, and the PNGs that both show."""

import base64
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from dr_plugin.atomic import replacing, settle

from . import report_text as text
from .report_data import Neighbor, RankedExample, ReportData
from .report_figures import (
    MAX_FILTERS,
    THUMBNAIL_SIZE,
    Tile,
    class_precision_png,
    curves_png,
    filters_png,
    image_png,
    sheet_png,
)
from .report_findings import confusions, findings, weakest

__all__ = ["Neighbor", "RankedExample", "ReportData", "write_report"]

BASELINES = {"untrained": "Untrained trunk", "pixels": "Raw pixels", "hog": "HOG descriptor"}
GALLERIES = {  # by evaluation.gallery: what val ranks, in a sentence, in a remark, and as images
    "train": ("", "queries from val, gallery train", "training images"),
    "val": (
        "No class of val was trained on; each val image ranks all the others. ",
        "each val image against the others, no class of which was trained on",
        "other val images",
    ),
}
ROWS = 10  # of the weakest classes and of the confusions


def write_report(folder: Path, data: ReportData) -> Path:
    """Write the report's files into `folder` and give back the path of its report.html.

    All is drawn before anything is written, and the folder is then exchanged as a whole: a failure leaves
    the report of an earlier run as it was. The same data gives the same bytes.

    Raises:
        ValueError: if `folder` holds something that is not a report.
    """
    target = Path(folder).absolute()
    if target.exists() and not (target / "report.html").is_file() and any(target.iterdir()):
        raise ValueError(
            f"got {folder}, which holds other files, expected a new, an empty or a report's folder"
        )
    files: dict[str, bytes] = {}
    context = _context(data, files)
    templates = page_templates()
    templates.globals["embed"] = lambda name: _data_uri(files[name])
    for page in ("report.html", "report.md"):
        rendered = templates.get_template(f"{page}.jinja").render(context)
        # A class may be named by a file name that is not valid unicode: it is shown escaped.
        files[page] = rendered.encode("utf-8", errors="backslashreplace")
    _replace_folder(target, files)
    return Path(folder) / "report.html"


def page_templates(package: str = "dr_plugin.experiments") -> jinja2.Environment:
    """The templates of a package, and how they write values."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.jinja",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"percent": text.percent, "duration": text.duration, "number": text.number}
    templates.filters["md"] = text.markdown
    return templates


def _context(data: ReportData, files: dict[str, bytes]) -> dict[str, Any]:
    """What the templates show; every drawing goes into `files` under its name in the context."""
    names, k = text.display_names(data.class_names), data.metrics["k"]
    protocol, _, gallery = GALLERIES[data.metrics.get("gallery", "train")]
    return {
        "name": data.name,
        "k": k,
        "protocol": protocol,
        "gallery": gallery,
        "rerank": data.metrics.get("rerank"),
        "not_measured": text.NOT_MEASURED,
        "headline": _headline(data.metrics),
        "precision": _precision_table(data.metrics),
        "in_class": _in_class_table(data.metrics),
        "stages": data.metrics.get("stages") or [],
        "triplets": _triplet_counts(data.metrics.get("stages") or []),
        "wall_time": data.metrics.get("wall_time_s"),
        "curves": _curves(data.history, k, files),
        "examples": _examples(data, names, files),
        "filters": _filters(data.filters, files),
        "findings": findings(data.metrics, data.history),
        "class_chart": _class_chart(data.class_precision, k, files),
        "weakest": _weakest(data, names),
        "confusions": _confusions(data, names),
        "no_confusion": "none" if data.confusion.size else text.NOT_MEASURED,
        "recipe": data.recipe_text.rstrip("\n"),
        "fence": text.fence(data.recipe_text),
        "environment": list(text.flatten(data.environment)),
    }


def _headline(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The figures on top: what, value, and a remark."""
    key, label = f"precision_at_{metrics['k']}", f"precision at {metrics['k']}"
    val, train, selection = (metrics.get(part) or {} for part in ("val", "train", "selection"))
    baselines = metrics.get("baselines") or {}
    measured = {name: figures[key] for name, figures in baselines.items() if figures.get(key) is not None}
    best = max(measured, key=lambda name: measured[name], default="")
    stages = metrics.get("stages") or []
    seen, seconds = (sum(stage.get(part) or 0 for stage in stages) for part in ("images_seen", "wall_time_s"))
    chosen = f"stage {selection['stage']}, epoch {selection['epoch']}" if "epoch" in selection else ""
    remark = GALLERIES[metrics.get("gallery", "train")][1]
    return [
        (f"Val {label}", text.percent(val.get(key)), remark),
        (f"Train {label}", text.percent(train.get(key)), "train against train, without itself"),
        (f"Selection {label}", text.percent(selection.get(key)), chosen),
        ("Best baseline", text.percent(measured.get(best)), BASELINES.get(best, best)),
        ("Images per second", text.number(seen / seconds if seconds else None), "training, all stages"),
        ("Wall time", text.duration(metrics.get("wall_time_s")), "whole run"),
    ]


def _precision_table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of (system, queries, figures), the model's and the usual baselines' even when not measured."""
    baselines = metrics.get("baselines") or {}
    rows = [("This model", part, metrics.get(part) or {}) for part in ("val", "train")]
    if "val_reranked" in metrics:
        system = f"This model, {metrics['rerank']} nearest re-ranked"
        rows.insert(1, (system, "val", metrics["val_reranked"]))
    for name in dict.fromkeys([*BASELINES, *baselines]):
        rows.append((BASELINES.get(name, name), "val", baselines.get(name) or {}))
    first = f"precision_at_{metrics['k']}"
    others = [key for key in dict.fromkeys(key for *_, figures in rows for key in figures) if key != first]

    def cells(figures: Mapping[str, float | None]) -> list[str]:
        more = (text.DASH if figures.get(key) is None else text.percent(figures[key]) for key in others)
        return [text.percent(figures.get(first)), *more]

    table = [(system, part, cells(figures)) for system, part, figures in rows]
    return {
        "columns": [key.replace("_", " ").capitalize() for key in (first, *others)],
        "rows": table,
        "dashes": any(text.DASH in row for *_, row in table),
    }


def _in_class_table(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of (system, concordance, score), or none where the recipe has no relevance."""
    measured = metrics.get("in_class") or {}
    if not measured:
        return []
    score = f"score_at_top_{metrics['k']}"
    rows = {"This model": measured}
    rows |= {BASELINES.get(name, name): figures for name, figures in measured.get("baselines", {}).items()}
    return [
        (system, text.percent(figures.get("concordance")), text.number(figures.get(score)))
        for system, figures in rows.items()
    ]


def _triplet_counts(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of each stage that counted its triplets: the stage, and what was counted in words and figures."""
    return [
        (
            stage["name"],
            [(name.replace("_", " "), text.number(count)) for name, count in stage["triplets"].items()],
        )
        for stage in stages
        if stage.get("triplets")
    ]


def _curves(history: Sequence[Mapping[str, Any]], k: int, files: dict[str, bytes]) -> list[dict[str, str]]:
    curves = []
    stages = dict.fromkeys(record["stage"] for record in history if "stage" in record)
    for number, stage in enumerate(stages, start=1):
        file = f"curves-{number}.png"
        files[file] = curves_png([record for record in history if record.get("stage") == stage], k)
        curves.append({"stage": stage, "file": file})
    return curves


def _examples(data: ReportData, names: Sequence[str], files: dict[str, bytes]) -> list[dict[str, Any]]:
    def tile(
        item: RankedExample | Neighbor, right: bool | None = None, distance: float | None = None
    ) -> Tile:
        return Tile(item.image, names[item.label], data.class_names[item.label], right, distance)

    shown = []
    for number, example in enumerate(data.examples, start=1):
        file, query = f"query-{number}.png", tile(example)
        nearest = [tile(item, item.label == example.label, item.distance) for item in example.nearest]
        farthest = [tile(item, item.label != example.label, item.distance) for item in example.farthest]
        files[file] = sheet_png(query, nearest, farthest)
        groups = [
            _group(title, wanted, tiles)
            for title, wanted, tiles in (
                ("Nearest", "of the same class", nearest),
                ("Farthest", "of another class", farthest),
            )
            if tiles
        ]
        shown.append({"query": _shown(query), "file": file, "groups": groups})
    return shown


def _group(title: str, wanted: str, tiles: Sequence[Tile]) -> dict[str, Any]:
    right = sum(tile.right is True for tile in tiles)
    return {"title": title, "wanted": wanted, "right": right, "tiles": [_shown(tile) for tile in tiles]}


def _shown(tile: Tile) -> dict[str, Any]:
    """A tile as the page shows it; a tiny image is enlarged with hard edges, blurring would hide it."""
    tiny = max(tile.image.shape[:2]) < THUMBNAIL_SIZE // 2
    return {"tile": tile, "uri": _data_uri(image_png(tile.image, size=THUMBNAIL_SIZE)), "tiny": tiny}


def _filters(
    filters: Mapping[str, NDArray[np.floating[Any]]], files: dict[str, bytes]
) -> list[dict[str, Any]]:
    grids = []
    for number, (path, weight) in enumerate(filters.items(), start=1):
        file, (n, _, h, w) = f"filters-{number}.png", weight.shape
        files[file] = filters_png(weight)
        grids.append(
            {"path": path, "file": file, "count": n, "shown": min(n, MAX_FILTERS), "size": f"{h} x {w}"}
        )
    return grids


def _class_chart(precision: NDArray[np.floating[Any]], k: int, files: dict[str, bytes]) -> str | None:
    if not np.isfinite(precision).any():
        return None
    files["classes.png"] = class_precision_png(precision, k)
    return "classes.png"


def _weakest(data: ReportData, names: Sequence[str]) -> list[dict[str, Any]]:
    """The weaker half of the classes, at most `ROWS`, each with the class that it is most often taken for."""
    rows: list[dict[str, Any]] = []
    for label in weakest(data.class_precision, min(ROWS, (len(names) + 1) // 2)):
        row = {
            "name": names[label],
            "title": data.class_names[label],
            "precision": data.class_precision[label],
        }
        pairs = confusions(data.confusion, [label], 1)
        rows.append({**row, "other": {"name": names[pairs[0][1]], "share": pairs[0][2]} if pairs else None})
    return rows


def _confusions(data: ReportData, names: Sequence[str]) -> list[dict[str, Any]]:
    pairs = confusions(data.confusion, range(len(data.confusion)), ROWS)
    return [
        {"query": names[i], "other": names[j], "share": share, "back": float(data.confusion[j, i])}
        for i, j, share in pairs
    ]


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files into a hidden sibling, then let it take the folder's place."""
    new, old = (folder.with_name(f".{folder.name}.{part}") for part in ("new", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)  # a run was killed between the two renames below
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    new.mkdir(parents=True)
    try:
        for name, content in files.items():
            with replacing(new / name) as file:
                file.write(content)
    except BaseException:
        shutil.rmtree(new)
        raise
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    settle(folder.parent)
    if old.exists():
        shutil.rmtree(old)
