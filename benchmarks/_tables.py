"""Rows as Markdown, and the command line of a script that runs alone."""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from _cases import FULL, QUICK, Case, Row, measured
from _harness import machine_line, table

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_COUNTED = ("image", "item", "draw", "triplet")  # so many a second, where other units take so long each
_HEADER = ("ours", "sizes", "time or rate", "instead of", "time or rate", "times as fast", "quartiles")
_MEMORY = ("MiB", "MiB instead")


def number(value: float) -> str:
    """Two figures or more."""
    if abs(value) < 0.1:
        return f"{value:.2g}"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def cost(seconds: float, unit: str) -> str:
    """The time of a unit, in the largest unit of time that leaves a figure before the point; or how many a second."""
    if unit in _COUNTED:
        return f"{number(1 / seconds)} {unit}s/s"
    scale, name = next((pair for pair in _TIMES if seconds >= pair[0]), _TIMES[-1])
    of = "" if unit == "call" else f" per {unit}"
    return f"{number(seconds / scale)} {name}{of}"


def size_text(sizes: Mapping[str, int], threads: int | None = None) -> str:
    """Names and numbers, and how many threads where it is said."""
    shown = sizes if threads is None else {**sizes, "threads": threads}
    return ", ".join(f"{name} {value:,}" for name, value in shown.items())


def cells(row: Mapping[str, Any]) -> list[str]:
    """One line of the table, from a row's JSON."""
    start = [row["what"], size_text(row["sizes"], row["threads"])]
    if row["error"] is not None:
        reason = " ".join(row["error"].split()).replace("|", "/")
        return [*start, "-", row["against"], "-", f"failed: {reason}", "-", "-", "-"]
    first, third = row["quartiles"]
    mebibytes = [
        "-" if peak is None else number(peak / 2**20) for peak in (row["peak_bytes"], row["their_peak_bytes"])
    ]
    times = [cost(row[name], row["unit"]) for name in ("seconds", "their_seconds")]
    spread = f"{number(first)} to {number(third)}"
    return [*start, times[0], row["against"], times[1], number(row["ratio"]), spread, *mebibytes]


def rows_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows of one group as a Markdown table."""
    return table([cells(row) for row in rows], [*_HEADER, *_MEMORY])


def tell(row: Row) -> None:
    """One line on standard error, so that a long run can be watched."""
    outcome = f"failed: {row.error}" if row.ratio is None else f"{number(row.ratio)} times as fast"
    print(f"{row.what} ({size_text(row.sizes)}) / {row.against}: {outcome}", file=sys.stderr, flush=True)


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that the suite and every script have."""
    parser.add_argument("--only", metavar="PATTERN", help="a regular expression, found in a row's name")
    parser.add_argument("--no-peak", dest="peak", action="store_false", help="measure no peak memory")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only to see that it runs")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where what can run on a GPU runs (default: %(default)s)",
    )


def chosen(cases: Iterable[Case], options: argparse.Namespace) -> list[Case]:
    """Those that the device is for and --only asks for, as --no-peak says.

    Raises:
        SystemExit: with status 2, if there are none.
    """
    kind, pattern = torch.device(options.device).type, re.compile(options.only or "", re.IGNORECASE)
    found = [case for case in cases if case.on in (None, kind) and pattern.search(case.name)]
    if not found:
        print(f"--only: got {options.only!r}, which no row's name matches on {kind}", file=sys.stderr)
        raise SystemExit(2)
    return [replace(case, peak=case.peak and options.peak) for case in found]


def alone(
    doc: str | None,
    cases: Callable[..., list[Case]],
    full: Mapping[str, Any],
    quick: Mapping[str, Any],
    arguments: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure a script's cases and print their table; every size is an option. Gives the sizes.

    Raises:
        SystemExit: with status 1, if a row failed, and with 2, if there is none.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    for name, value in full.items():
        many = isinstance(value, list)
        kind = type(value[0] if many else value)
        nargs = {"nargs": "*"} if many else {}
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, dest=name, type=kind, help=f"default: {value}", **nargs)
    parser.add_argument("--repeats", type=int, help="at most so many pairs of calls for a row")
    options = parser.parse_args(arguments)
    effort = QUICK if options.quick else FULL
    effort = effort if options.repeats is None else replace(effort, repeats=options.repeats)
    given = {name: getattr(options, name) for name in full if getattr(options, name) is not None}
    sizes = {**(quick if options.quick else full), **given}
    rows = []
    for row in measured(chosen(cases(**sizes), options), torch.device(options.device), effort):
        tell(row)
        rows.append(row)
    print(machine_line())
    print(f"\nOn {options.device}. Above 1, ours is the faster.\n")
    print(rows_table(vars(row) for row in rows))
    if any(row.error for row in rows):
        raise SystemExit(1)
    return sizes
