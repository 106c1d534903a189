"""Which variants of a comparison differ: paired differences over the seeds, verdicts, and who wins."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from .report_text import level
from .spread import CONFIDENCE, difference, spread

_LESS_IS_BETTER = ("wall_time_s", "peak_memory_mib")
_MOST_NAMES = 6
_ROUNDING = 1e-7  # of the figures, which are float32 numbers

Values = Mapping[str, Mapping[int, float]]  # of one figure, each variant's value by seed


def paired(figure: str, values: Values) -> list[dict[str, Any]]:
    """Every two variants' difference, first less second, paired over the seeds that both have.

    Each has its 95% interval and p-value by Student's t, the p-value as Holm corrects it for all pairs of the table,
    and a verdict on the first: ``better`` or ``worse`` where the interval leaves out 0, ``tie`` where it holds 0,
    None where it cannot be told: with fewer than two common seeds, or where the seeds' differences are all the
    same and not 0, as few seeds of a coarse figure may be by chance. Intervals and verdicts are of the single pair.

    Args:
        figure: Its key in ``metrics.json``; tells whether more is better.
        values: Each variant's values by seed, in the order of the variants.
    """
    sign = -1 if figure.rpartition(".")[2] in _LESS_IS_BETTER else 1
    pairs = []
    for first, second in itertools.combinations(values, 2):
        found, p_value = _tested(values[first], values[second])
        ends = {"first": first, "second": second}
        pairs.append({**ends, **found, "p_value": p_value, "verdict": _verdict(found, sign)})
    for pair, p_value in zip(pairs, holm([pair["p_value"] for pair in pairs]), strict=True):
        pair["p_holm"] = p_value
    return pairs


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values corrected for their number, so that all together are wrong as seldom as one; None stays None.

    References:
        Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
    """
    known = sorted((p_value, i) for i, p_value in enumerate(p_values) if p_value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p_value, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p_value))
        corrected[i] = largest
    return corrected


def ranks(figure: str, means: Mapping[str, float | None]) -> dict[str, int | None]:
    """Each variant's place by its mean, 1 the best; equal means share a place, those without a mean have none."""
    sign = -1 if figure.rpartition(".")[2] in _LESS_IS_BETTER else 1
    known = [sign * mean for mean in means.values() if mean is not None]
    return {
        name: None if mean is None else 1 + sum(other > sign * mean for other in known)
        for name, mean in means.items()
    }


def winner(
    figure: str, rows: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]], so_far: bool = False
) -> dict[str, Any]:
    """The variant of the best mean, those tied with it, those that cannot be told from it, and a plain sentence.

    Only variants with as many seeds as any can be the best: a few lucky seeds must not win.

    Args:
        figure: Its key in ``metrics.json``.
        rows: The variants, each with ``name``, ``label`` and ``figures``.
        pairs: As `paired` gives them.
        so_far: Whether runs are still to come.
    """
    most = max((row["figures"][figure]["n"] for row in rows), default=0)
    if not most:
        return {"best": None, "tied": [], "untold": [], "sentence": f"{figure} is not measured yet."}
    full = [row for row in rows if row["figures"][figure]["n"] == most]
    best = min(full, key=lambda row: row["figures"][figure]["rank"])
    others = [row for row in rows if row is not best and row["figures"][figure]["n"]]
    verdicts = {row["name"]: verdict_on(best["name"], row["name"], pairs) for row in others}
    beaten, tied = ([name for name in verdicts if verdicts[name] == kind] for kind in ("better", "tie"))
    untold = [name for name in verdicts if name not in (*beaten, *tied)]
    labels = {row["name"]: row["label"] for row in rows}
    parts = []
    if beaten:
        parts.append(f"is better than {_listed(beaten, labels) if tied or untold else 'all others'}")
    if tied:
        parts.append(f"ties with {_listed(tied, labels)}")
    if untold:
        parts.append(f"cannot be told from {_listed(untold, labels)}")
    wins = "One variant wins" if beaten and not tied and not untold else "No single variant wins"
    sentence = f"{wins}{' so far' if so_far else ''}: {best['label']} has the best {figure}, "
    sentence += level(best["figures"][figure]) + (f"; it {_and(parts)}." if parts else ".")
    if beaten:
        sentence += f" {_corrected(best['name'], beaten, pairs)}"
    if absent := [row["name"] for row in rows if not row["figures"][figure]["n"]]:
        sentence += f" Not measured: {_listed(absent, labels)}."
    return {"best": best["name"], "tied": tied, "untold": untold, "sentence": sentence}


def _corrected(best: str, beaten: Sequence[str], pairs: Sequence[Mapping[str, Any]]) -> str:
    """How many of the verdicts still stand when all pairs of the table are corrected for."""
    found = (between(best, name, pairs) for name in beaten)
    stand = sum(pair is not None and (pair["p_holm"] or 0.0) < 1 - CONFIDENCE for pair in found)
    return f"That judges each pair by itself; corrected for all pairs, {stand} of {len(beaten)} still hold."


def verdict_on(first: str, second: str, pairs: Sequence[Mapping[str, Any]]) -> str | None:
    """The verdict on the first against the second, in whichever order the pair stands."""
    found = between(first, second, pairs)
    return None if found is None else found["verdict"]


def between(first: str, second: str, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The pair as first less second; None where it is one variant."""
    for pair in pairs:
        if (pair["first"], pair["second"]) == (first, second):
            return dict(pair)
        if (pair["first"], pair["second"]) == (second, first):
            turned = {"better": "worse", "worse": "better"}
            ends = {"mean": pair["mean"], "low": pair["high"], "high": pair["low"]}
            ends = {key: None if value is None else 0.0 - value for key, value in ends.items()}
            verdict = turned.get(pair["verdict"], pair["verdict"])
            return {**pair, **ends, "first": first, "second": second, "verdict": verdict}
    return None


def _verdict(found: Mapping[str, Any], sign: int) -> str | None:
    if found["low"] is None:
        return None
    if found["low"] <= 0 <= found["high"]:
        return "tie"
    return "better" if sign * found["mean"] > 0 else "worse"


def _tested(values: Mapping[int, float], others: Mapping[int, float]) -> tuple[dict[str, Any], float | None]:
    """The paired difference, and the two-sided p-value of the t that its interval is made with."""
    found: dict[str, Any] = difference(values, others)
    deviation = spread({seed: value - others[seed] for seed, value in values.items() if seed in others})[
        "std"
    ]
    if deviation is None:
        return found, None
    if deviation <= _ROUNDING:
        return (
            (found, 1.0) if abs(found["mean"]) <= _ROUNDING else ({**found, "low": None, "high": None}, None)
        )
    t = abs(found["mean"]) / (deviation / math.sqrt(found["n"]))
    return found, 2 * float(stats.t.sf(t, found["n"] - 1))


def _listed(names: Sequence[str], labels: Mapping[str, str]) -> str:
    """All of them where they are few, else how many."""
    return _and([labels[name] for name in names]) if len(names) <= _MOST_NAMES else f"{len(names)} others"


def _and(parts: Sequence[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
