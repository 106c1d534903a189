"""The benchmark suite: everything against what a user would pick instead, in one run, as one table.

    python benchmarks/suite.py                          # all of it; about 15 minutes on 2 quiet cores
    python benchmarks/suite.py --quick                  # tiny sizes, to see that it runs; the figures mean nothing
    python benchmarks/suite.py --only "miners|LRML"     # rows whose "group: ours / instead of" matches
    python benchmarks/suite.py --device cuda            # what can run on a GPU runs there

Writes table.md and table.json (the same figures, with the machine and versions) and growth.png into --output. Ratios
are theirs over ours, medians over interleaved repeats: above 1, ours is faster, or needs less memory. A row that
fails says so, the others are measured all the same, and the status is 1. Each part runs alone too: python
benchmarks/NAME.py --help.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Nothing heavier is imported here: the process that measures peak memory imports this file too.

SCRIPTS = (
    "data_pipeline",
    "stream",
    "trainer",
    "synthetic_step",
    "uniform_miner",
    "reservoir_miner",
    "pddm",
    "lrml",
    "samplers",
    "deep_ranking_loss",
    "evaluation",
    "reservoirs",
    "reservoir_triplets",
)
ABOVE_ONE = "Times as fast is theirs over ours: above 1, ours is faster; below 1, it is slower."


def all_cases(quick: bool) -> list[Any]:
    """The cases of all scripts at their usual or their tiny sizes, group by group."""
    found = []
    for name in SCRIPTS:
        script = importlib.import_module(name)
        found += script.cases(**(script.QUICK if quick else script.FULL))
    groups = list(dict.fromkeys(case.group for case in found))
    return sorted(found, key=lambda case: groups.index(case.group))


def markdown(content: Mapping[str, Any]) -> str:
    """The table, from what table.json holds."""
    from _growth import growth_table
    from _tables import rows_table

    environment = content["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    parts = [
        "# Benchmarks",
        f"{content['machine']}; {versions}. On {content['device']}, {content['size']} sizes, "
        f"{content['wall_time_s']:.0f} s in all.",
        f"{ABOVE_ONE} Quartiles are of the ratios of interleaved pairs of calls; MiB, peak memory beyond the inputs.",
    ]
    loads = (" ".join(f"{load:.2f}" for load in content["load_average"][when]) for when in ("start", "end"))
    parts.append("Load averages of 1, 5 and 15 minutes: {} at the start, {} at the end.".format(*loads))
    ratios = [row for row in content["rows"] if row["along"] is None]
    for group in dict.fromkeys(row["group"] for row in ratios):
        rows = [row for row in ratios if row["group"] == group]
        parts += [f"## {group[0].upper()}{group[1:]}", rows_table(rows)]
    if content["growth"]:
        parts += ["## Growth", "Seconds as a power of a size, with the standard error of the fit."]
        parts.append(growth_table(content["growth"]))
    if failed := [row for row in content["rows"] if row["error"] is not None]:
        names = "\n".join(f"- {row['what']} {row['sizes']}: {row['error'].splitlines()[0]}" for row in failed)
        parts += ["## Failed", names]
    return "\n\n".join(parts) + "\n"


def write(rows: Sequence[Any], options: argparse.Namespace, started: float, load: Sequence[float]) -> None:
    """table.json, table.md and growth.png of what was measured since then, under such a load at the start."""
    import torch
    from _growth import growths, plot
    from _harness import machine_line

    from dr_plugin.atomic import write_json, write_text
    from dr_plugin.experiments.environment import environment

    measured = [asdict(row) for row in rows]
    content = {
        "machine": machine_line(),
        "environment": environment(torch.device(options.device)),
        "device": options.device,
        "size": "quick" if options.quick else "full",
        "wall_time_s": round(time.perf_counter() - started, 1),
        "load_average": {"start": list(load), "end": list(os.getloadavg())},  # a busy machine is seen by it
        "rows": measured,
        "growth": growths(measured),
    }
    write_json(options.output / "table.json", content)
    write_text(options.output / "table.md", markdown(content))
    plot(content["growth"], options.output / "growth.png")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    from _tables import add_common

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"), help="default: %(default)s")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, and give the status: 1 if a row failed."""
    started, load = time.perf_counter(), os.getloadavg()
    options = parsed(arguments)
    import torch
    from _cases import FULL, QUICK, measured
    from _tables import chosen, tell

    cases = chosen(all_cases(options.quick), options)
    rows: list[Any] = []
    try:
        for row in measured(cases, torch.device(options.device), QUICK if options.quick else FULL):
            tell(row)
            rows.append(row)
    finally:  # what was measured before an interrupt is kept
        write(rows, options, started, load)
    print((options.output / "table.md").read_text())
    return int(any(row.error is not None for row in rows))


if __name__ == "__main__":
    sys.exit(main())
