"""The table of a sweep as `sweep.json`, `sweep.md`, `sweep.png` and a `sweep.html` that stands alone."""

import base64
from pathlib import Path
from typing import Any

from dr_plugin.atomic import replacing, write_json, write_text

from .report import page_templates
from .report_text import NOT_MEASURED, deviation, duration, interval, level, number
from .sweep_figures import sweep_png


def write_sweep_report(folder: Path, table: dict[str, Any]) -> Path:
    """Write the four files, each whole or not at all, and give back the path of ``sweep.html``.

    Args:
        folder: The sweep's folder.
        table: As `summarise` gives it.
    """
    picture = sweep_png(table)
    templates = page_templates()
    templates.filters |= {"level": level, "deviation": deviation, "interval": interval}
    context = {
        **table,
        "finished": sum(len(row["runs"]) for row in table["points"]),
        "total": len(table["points"]) * len(table["seeds"]),
        "not_measured": NOT_MEASURED,
        "picture": "data:image/png;base64," + base64.b64encode(picture).decode("ascii"),
        "rows": [_row(row, table) for row in table["points"]],
    }
    pages = {name: templates.get_template(f"{name}.jinja").render(context) for name in _PAGES}
    write_json(folder / "sweep.json", table)
    with replacing(folder / "sweep.png") as file:
        file.write(picture)
    for name, text in pages.items():
        write_text(folder / name, text)
    return folder / "sweep.html"


_PAGES = ("sweep.md", "sweep.html")


def _row(row: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """A point as the pages show it."""
    runs = f"{len(row['runs'])} of {len(table['seeds'])}"
    speed, time = number(row["images_per_s"]["mean"]), duration(row["wall_time_s"]["mean"])
    return {**row, "done": runs, "speed": speed, "time": time}
