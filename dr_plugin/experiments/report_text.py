"""How the report writes its values: figures, names and Markdown."""

import html
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NOT_MEASURED = "not measured"
DASH = "\N{EN DASH}"  # the same, short, in a table's further columns


def _missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as percent, 0.4103 -> 41.03%."""
    return NOT_MEASURED if value is None or _missing(value) else f"{value:.{digits}%}"


def number(value: float | None) -> str:
    """A count or a rate in at least three digits, with thousands separated: 98,000 or 3.14."""
    if value is None or _missing(value):
        return NOT_MEASURED
    digits = 0 if isinstance(value, int) or abs(value) >= 100 else 2
    return f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """Seconds in the two units that matter: 9.5 s, 13 min 32 s, 2 h 5 min."""
    if seconds is None or _missing(seconds):
        return NOT_MEASURED
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def level(item: Mapping[str, Any]) -> str:
    """The mean and, from two seeds on, the standard deviation."""
    if item["mean"] is None:
        return NOT_MEASURED
    spread = "" if item["std"] is None else f" ± {_decimal(item['std'], item['mean'])}"
    return f"{_decimal(item['mean'], item['mean'])}{spread} (n = {item['n']})"


def deviation(difference: Mapping[str, Any] | None, size: float | None = None) -> str:
    """A mean difference, with its sign and the digits of ``size`` or its own; a dash where there is none."""
    if difference is None:
        return DASH
    if difference["mean"] is None:
        return NOT_MEASURED
    return _decimal(difference["mean"], size or difference["mean"], sign="+")


def interval(difference: Mapping[str, Any] | None, size: float | None = None) -> str:
    """The interval of a difference, with the digits of ``size`` or its own; a dash where there is none."""
    if difference is None or difference["low"] is None:
        return DASH
    size = size or max(abs(difference["low"]), abs(difference["high"]))
    low, high = (_decimal(difference[end], size, sign="+") for end in ("low", "high"))
    return f"{low} to {high}"


def _decimal(value: float, size: float, sign: str = "") -> str:
    """Four decimals for shares and the like, fewer for larger figures, few digits for tiny ones."""
    if 0 < abs(size) < 1e-3:
        return f"{value:{sign}.2e}"
    digits = 4 if abs(size) < 10 else 2 if abs(size) < 1000 else 1
    return f"{value:{sign},.{digits}f}"


def markdown(text: object) -> str:
    """The text as it must stand in Markdown, also in a table's cell, to be read unchanged."""
    return re.sub(r"([\\`*_~|\[\]])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def fence(text: str) -> str:
    """A row of backticks longer than any in the text, to put it between."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def display_names(class_names: Sequence[str]) -> list[str]:
    """Each name up to its first comma; whole where that would be empty or not unique.

    Example:
        >>> display_names(["goldfish, Carassius auratus", "crane", "crane, a bird"])
        ['goldfish', 'crane', 'crane, a bird']
    """
    short = [name.split(",")[0].strip() for name in class_names]
    count = Counter(short)
    return [
        brief if brief and count[brief] == 1 else name for brief, name in zip(short, class_names, strict=True)
    ]


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every leaf, nested keys joined by dots and lists by commas."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", NOT_MEASURED if value is None else str(value)
