"""What a comparison has found, from the figures of its runs (the content of ``comparison.json``)."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .compare_pairs import paired, ranks, winner
from .compare_plan import Variant
from .compare_slots import changes, equal_part, ours
from .journal import read_journal
from .run import is_finished, run_folder
from .spread import metrics_of, number, speeds, spread, values

Runs = Mapping[int, Mapping[str, Any]]  # metrics.json of each finished seed


def summarise(
    name: str,
    variants: Sequence[Variant],
    folder: Path,
    seeds: Sequence[int],
    figures: Sequence[str],
    shared_stages: int,
    failures: Mapping[str, str],
) -> dict[str, Any]:
    """The table of the comparison in ``folder``, as far as its runs are finished.

    Of each variant and figure: mean, standard deviation (n - 1), n, the values by seed, and its rank. Of each two
    variants and figure the paired difference, as `compare_pairs.paired` gives it: the seeds are the units. What
    cannot be told is None.

    Args:
        name: The comparison's name.
        variants: In order.
        folder: The comparison's folder.
        seeds: Those that each variant runs with.
        figures: Dotted keys of ``metrics.json``; the first decides the order of the pages.
        shared_stages: How many stages are trained once a seed for all variants.
        failures: Of runs that failed, by their folders' names, why.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for variant in variants:
        runs = {seed: run_folder(folder, variant.name, seed) for seed in seeds}
        found[variant.name] = {seed: metrics_of(run) for seed, run in runs.items() if is_finished(run)}
    rows = [
        {
            **_row(variant, folder, found[variant.name], figures, shared_stages),
            "changes": changed,
            "ours": own,
            "failed": _failed(variant, seeds, failures),
        }
        for variant, changed, own in zip(variants, changes(variants), ours(variants), strict=True)
    ]
    finished = sum(map(len, found.values()))
    table: dict[str, Any] = {
        "name": name,
        "seeds": list(seeds),
        "figures": list(figures),
        "shared_stages": shared_stages,
        "finished": finished,
        "total": len(variants) * len(seeds),
        "variants": rows,
        "pairs": {},
        "winners": {},
        "equal": equal_part(variants),
        "environments": _environments(folder, rows),
    }
    open_runs = finished + sum(len(row["failed"]) for row in rows) < table["total"]
    for figure in figures:
        _judge(table, figure, {each: values(runs, figure) for each, runs in found.items()}, open_runs)
    return table


def _row(
    variant: Variant, folder: Path, runs: Runs, figures: Sequence[str], shared_stages: int
) -> dict[str, Any]:
    """What is known of one variant by itself."""
    folders = {str(seed): run_folder(folder, variant.name, seed) for seed in runs}
    return {
        "name": variant.name,
        "label": variant.label,
        "settings": variant.settings,
        "figures": {figure: _measured(runs, figure) for figure in figures},
        **_costs(runs, shared_stages),
        "course": _course(variant, folder, runs, shared_stages),
        "runs": {seed: run.relative_to(folder).as_posix() for seed, run in folders.items()},
    }


def _judge(table: dict[str, Any], figure: str, found: dict[str, dict[int, float]], open_runs: bool) -> None:
    """Add ranks, paired differences and the winner of one figure."""
    rows = table["variants"]
    places = ranks(figure, {row["name"]: row["figures"][figure]["mean"] for row in rows})
    for row in rows:
        row["figures"][figure]["rank"] = places[row["name"]]
    table["pairs"][figure] = paired(figure, found)
    table["winners"][figure] = winner(figure, rows, table["pairs"][figure], open_runs)


def _measured(runs: Runs, figure: str) -> dict[str, Any]:
    by_seed = values(runs, figure)
    return {**spread(by_seed), "values": {str(seed): value for seed, value in by_seed.items()}}


def _costs(runs: Runs, shared_stages: int) -> dict[str, Any]:
    """Speed, memory, training time and images in the stages of its own; the wall time is that of the whole run."""
    stages = {seed: metrics["stages"][shared_stages:] for seed, metrics in runs.items()}
    peaks = {
        seed: [peak for stage in own if (peak := number(stage.get("peak_memory_mib"))) is not None]
        for seed, own in stages.items()
    }
    memory_of = {metrics.get("peak_memory_of") for metrics in runs.values()} - {None}
    return {
        "images_per_s": spread(speeds(runs, shared_stages)),
        "peak_memory_mib": spread({seed: max(own) for seed, own in peaks.items() if own}),
        "peak_memory_of": sorted(memory_of),
        "training_time_s": _sums(stages, "wall_time_s"),
        "wall_time_s": spread(values(runs, "wall_time_s")),
        "images_seen": _sums(stages, "images_seen"),
    }


def _sums(stages: Mapping[int, Sequence[Mapping[str, Any]]], key: str) -> dict[str, Any]:
    """The spread of a figure that adds up over the stages; of seeds whose stages all have it."""
    known = {seed: [number(stage.get(key)) for stage in own] for seed, own in stages.items()}
    return spread({seed: sum(filter(None, parts)) for seed, parts in known.items() if None not in parts})


def _course(variant: Variant, folder: Path, runs: Runs, shared_stages: int) -> dict[str, Any]:
    """The selection figure along the stages of its own, as the mean over the seeds after the same epoch."""
    figure = f"precision_at_{variant.recipe.evaluation.k}"
    gathered: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for seed, metrics in runs.items():
        before, starts = 0, {}
        for index, stage in enumerate(metrics["stages"][shared_stages:]):
            starts[stage["name"]] = (index, before)
            before += stage["images_seen"]
        for record in _evaluations(run_folder(folder, variant.name, seed)):
            value = number(record.get(figure))
            if record["stage"] in starts and value is not None:
                index, start = starts[record["stage"]]
                seen = start + record["images_seen"]
                gathered.setdefault((index, record["epoch"]), []).append((seen, value))
    points = []
    for key in sorted(gathered):
        seen, reached = zip(*gathered[key], strict=True)
        points.append({"images_seen": statistics.fmean(seen), **spread(dict(enumerate(reached)))})
    return {"figure": figure, "points": points}


def _evaluations(run: Path) -> list[dict[str, Any]]:
    """The records of a run's evaluations; none where it kept no journal."""
    if not (run / "metrics.jsonl").is_file():
        return []
    return [record for record in read_journal(run) if record.get("event") == "evaluate"]


def _failed(variant: Variant, seeds: Sequence[int], failures: Mapping[str, str]) -> dict[str, str]:
    names = {str(seed): f"{variant.name}-seed{seed}" for seed in seeds}
    return {seed: failures[name] for seed, name in names.items() if name in failures}


def _environments(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each environment that runs had, without their seeds, and how many runs had it."""
    seen: dict[str, int] = {}
    for run in (run for row in rows for run in row["runs"].values()):
        file = folder / run / "environment.json"
        if file.is_file():
            environment = json.loads(file.read_text(encoding="utf-8"))
            environment.pop("seed", None)
            text = json.dumps(environment)
            seen[text] = seen.get(text, 0) + 1
    return [{"runs": count, "environment": json.loads(text)} for text, count in seen.items()]
