"""Figures of the same experiment under several seeds: read from its runs, their spread, and paired differences."""

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy import stats

CONFIDENCE = 0.95


def metrics_of(folder: Path) -> dict[str, Any]:
    """The content of a run's ``metrics.json``."""
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def values(runs: Mapping[int, Mapping[str, Any]], key: str) -> dict[int, float]:
    """The figure at a dotted key, of each seed's run that has it as a finite number."""
    found = {seed: number(at(metrics, key)) for seed, metrics in runs.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def speeds(runs: Mapping[int, Mapping[str, Any]], shared_stages: int) -> dict[int, float]:
    """Training images a second of each run, in the stages that are its own."""
    found = {}
    for seed, metrics in runs.items():
        own = [stage for stage in metrics["stages"][shared_stages:] if stage["images_per_s"]]
        seconds = sum(stage["images_seen"] / stage["images_per_s"] for stage in own)
        if seconds:
            found[seed] = sum(stage["images_seen"] for stage in own) / seconds
    return found


def at(metrics: Any, key: str) -> Any:
    """What stands at a dotted key; None where nothing does."""
    for part in key.split("."):
        if isinstance(metrics, list):
            metrics = dict(zip(map(str, range(len(metrics))), metrics, strict=True))
        if not isinstance(metrics, dict):
            return None
        metrics = metrics.get(part)
    return metrics


def number(value: Any) -> float | None:
    """The value as a float where it is a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def spread(values: Mapping[int, float]) -> dict[str, float | int | None]:
    """Number, mean and standard deviation (n - 1); None where there are too few."""
    numbers = list(values.values())
    return {
        "n": len(numbers),
        "mean": statistics.fmean(numbers) if numbers else None,
        "std": statistics.stdev(numbers) if len(numbers) > 1 else None,
    }


def difference(values: Mapping[int, float], first: Mapping[int, float]) -> dict[str, float | int | None]:
    """values - first, paired over the seeds that both have, with its 95% interval (Student's t)."""
    pairs = {seed: value - first[seed] for seed, value in values.items() if seed in first}
    found = spread(pairs)
    low = high = None
    if found["mean"] is not None and found["std"] is not None:
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1))
        reach *= found["std"] / math.sqrt(len(pairs))
        low, high = found["mean"] - reach, found["mean"] + reach
    return {"n": found["n"], "mean": found["mean"], "low": low, "high": high}
