"""The table of a comparison as `comparison.json`, `.md`, `.png` and a `comparison.html` that stands alone."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_plugin.atomic import replacing, write_json, write_text

from .compare_figures import comparison_png, in_order
from .compare_pairs import between
from .compare_slots import NONE
from .report import page_templates
from .report_text import DASH, NOT_MEASURED, deviation, duration, fence, flatten, interval, level, number
from .schema_base import plain_yaml
from .spread import CONFIDENCE

PAGES = ("md", "html")
_SIGNS = {"better": "▲", "worse": "▼", "tie": "=", None: "?"}
_MEMORY = {
    "process": "of the whole process, its libraries included",
    "gpu": "of the tensors on the GPU",
}


def write_comparison(folder: Path, table: dict[str, Any]) -> Path:
    """Write the four files, each whole or not at all, and give back the path of ``comparison.html``.

    Args:
        folder: The comparison's folder.
        table: As `compare_table.summarise` gives it.
    """
    picture = comparison_png(table)
    templates = page_templates()
    templates.filters |= {"level": level, "deviation": deviation, "interval": interval}
    context = _context(table)
    context["picture"] = "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
    pages = {page: templates.get_template(f"compare.{page}.jinja").render(context) for page in PAGES}
    write_json(folder / "comparison.json", table)
    with replacing(folder / "comparison.png") as file:
        file.write(picture)
    for page, text in pages.items():
        write_text(folder / f"comparison.{page}", text)
    return folder / "comparison.html"


def _context(table: dict[str, Any]) -> dict[str, Any]:
    """What the pages show beside the table itself."""
    first = table["figures"][0]
    rows = in_order(table["variants"], first)
    equal = plain_yaml(table["equal"]).rstrip("\n")
    settings = [_settings(row) for row in rows]
    return {
        **table,
        "first": first,
        "size": _size(first, table),
        "rows": [_row(row, table) for row in rows],
        "matrices": [_matrix(figure, table) for figure in table["figures"]],
        "common": _common(table),
        "equal_text": equal,
        "settings": settings,
        "fence": fence("\n".join([equal, *(text for _, text in settings)])),
        "failures": [(row["label"], seed, text) for row in rows for seed, text in row["failed"].items()],
        "machines": [(item["runs"], list(flatten(item["environment"]))) for item in table["environments"]],
        "memory": [
            _MEMORY[kind] for kind in sorted({kind for row in rows for kind in row["peak_memory_of"]})
        ],
        "not_measured": NOT_MEASURED,
        "dash": DASH,
    }


def _row(row: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """A variant as the pages show it."""
    first = table["figures"][0]
    best = table["winners"][first]["best"]
    pair = None if best is None else between(row["name"], best, table["pairs"][first])
    place = row["figures"][first]["rank"]
    memory = _rate(row["peak_memory_mib"])
    return {
        **row,
        "rank": DASH if place is None else place,
        "differs": _differs(row["changes"]),
        "done": _done(row, len(table["seeds"])),
        "pair": pair,
        "verdict": "best" if row["name"] == best else (pair or {}).get("verdict") or DASH,
        "speed": _rate(row["images_per_s"]),
        "peak": memory if memory == NOT_MEASURED else f"{memory} MiB",
        "training": _time(row["training_time_s"]),
        "time": _time(row["wall_time_s"]),
        "seen": _rate(row["images_seen"]),
    }


def _differs(changes: Mapping[str, str]) -> str:
    """What stands in the slots that differ; an empty one needs no words."""
    return "; ".join(f"{slot} {words}" for slot, words in changes.items() if words != NONE) or DASH


def _done(row: Mapping[str, Any], seeds: int) -> str:
    failed = f", {len(row['failed'])} failed" if row["failed"] else ""
    return f"{len(row['runs'])} of {seeds}{failed}"


def _time(item: Mapping[str, Any]) -> str:
    """The mean and, where the seeds differ, the standard deviation."""
    return f"{duration(item['mean'])} ± {duration(item['std'])}" if item["std"] else duration(item["mean"])


def _rate(item: Mapping[str, Any]) -> str:
    """The same with as many digits behind the point in both."""
    if item["mean"] is None or not item["std"]:
        return number(item["mean"])
    digits = 0 if item["mean"] >= 100 else 2
    return f"{item['mean']:,.{digits}f} ± {item['std']:,.{digits}f}"


def _matrix(figure: str, table: dict[str, Any]) -> dict[str, Any]:
    """All paired differences of one figure, row less column, the best on top, and how many of them count."""
    rows, pairs, size = in_order(table["variants"], figure), table["pairs"][figure], _size(figure, table)
    told = [pair for pair in pairs if pair["verdict"] is not None]
    return {
        "figure": figure,
        "size": size,
        "labels": [row["label"] for row in rows],
        "lines": [
            (row["label"], [_cell(between(row["name"], other["name"], pairs), size) for other in rows])
            for row in rows
        ],
        "pairs": [
            _pair(found, one, other)
            for i, one in enumerate(rows)
            for other in rows[i + 1 :]
            if (found := between(one["name"], other["name"], pairs)) is not None
        ],
        "told": len(told),
        "differ": sum(pair["verdict"] != "tie" for pair in told),
        "holm": sum(map(_survives, told)),
    }


def _size(figure: str, table: dict[str, Any]) -> float | None:
    """The largest mean: all differences of the figure have the digits that it has."""
    means = [row["figures"][figure]["mean"] for row in table["variants"]]
    return max((abs(mean) for mean in means if mean is not None), default=None)


def _survives(pair: Mapping[str, Any]) -> bool:
    """Whether the pair differs after the correction for all pairs, too."""
    return pair["p_holm"] is not None and pair["p_holm"] < 1 - CONFIDENCE


def _cell(pair: Mapping[str, Any] | None, size: float | None) -> dict[str, str]:
    if pair is None or pair["mean"] is None:
        return {"text": DASH, "kind": "none", "interval": DASH}
    star = "*" if _survives(pair) else ""
    text = f"{deviation(pair, size)} {_SIGNS[pair['verdict']]}{star}"
    return {"text": text, "kind": pair["verdict"] or "none", "interval": interval(pair, size)}


def _pair(pair: dict[str, Any], one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: DASH if pair[key] is None else f"{pair[key]:.2g}" for key in ("p_value", "p_holm")}
    return {**pair, **shown, "one": one["label"], "other": other["label"], "verdict": pair["verdict"] or DASH}


def _settings(row: Mapping[str, Any]) -> tuple[str, str]:
    """A variant's label and what it sets, as YAML."""
    own = plain_yaml(row["settings"]) if row["settings"] else "# the recipe as it is"
    return row["label"], own.rstrip("\n")


def _common(table: dict[str, Any]) -> list[tuple[str, str]]:
    """In a few words, what all variants have in common; the whole of it stands below as YAML."""
    equal = table["equal"]
    data, trunk = equal.get("data", {}), equal.get("trunk", {})
    classes = data.get("classes")
    count = "all" if classes is None else len(classes) if isinstance(classes, list) else classes
    lines = [
        ("Data", f"{_type(data.get('dataset'))}, {count} classes, {data.get('image_size', '?')} px"),
        ("Trunk", ", ".join(filter(None, [_type(trunk), _type(trunk.get("convnet"))]))),
    ]
    for stage in equal.get("stages", []):
        epochs = stage.get("epochs")
        parts = [] if epochs is None else [f"{epochs} epoch{'s' if epochs > 1 else ''}"]
        parts += [f"batches of {stage['batch_size']}"] if "batch_size" in stage else []
        parts += [_type(stage[slot]) for slot in ("optimizer", "scheduler") if stage.get(slot)]
        lines.append((f"Stage {stage.get('name', '?')}", ", ".join(parts)))
    limits = {key: value for key, value in equal.get("limits", {}).items() if value is not None}
    if limits:
        lines.append(("Limits of each stage", ", ".join(f"{value:,} {key}" for key, value in limits.items())))
    return [*lines, ("Images seen", _images(table["variants"]))]


def _type(slot: Any) -> str:
    return str(slot["type"]) if isinstance(slot, Mapping) and "type" in slot else str(slot or "")


def _images(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many images the variants trained on in the compared stages, and whether they are equally many."""
    seen = [row["images_seen"]["mean"] for row in rows if row["images_seen"]["mean"] is not None]
    if not seen:
        return NOT_MEASURED
    low, high = (f"{round(end):,}" for end in (min(seen), max(seen)))
    return f"{low} by each" if low == high else f"{low} to {high}: not the same for all"
