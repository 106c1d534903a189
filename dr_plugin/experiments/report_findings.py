"""Where to improve: what a run's figures say about it, and nothing that they do not say."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .report_text import percent

# Smaller differences of precision are not read as anything: a few hundred queries vary by as much.
NOTABLE = 0.03


def findings(metrics: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[str]:
    """A remark each on the gap of train to val, the baselines and the course of the selection figure."""
    key = f"precision_at_{metrics['k']}"
    remarks = [_gap(metrics, key), _against_baselines(metrics, key), _course(history, key)]
    return [remark for remark in remarks if remark is not None]


def weakest(class_precision: NDArray[np.floating[Any]], count: int) -> list[int]:
    """The labels of lowest precision, ties by label; classes without a query (NaN) are left out."""
    order = np.argsort(class_precision, kind="stable")
    return [int(label) for label in order if np.isfinite(class_precision[label])][:count]


def confusions(
    confusion: NDArray[np.floating[Any]], labels: Iterable[int], count: int
) -> list[tuple[int, int, float]]:
    """(query's class, other class, share): the largest off the diagonal in the rows `labels`, above zero."""
    if not confusion.size:
        return []
    pairs = [
        (label, other, float(share))
        for label in labels
        for other, share in enumerate(confusion[label])
        if other != label and share > 0
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:count]


def _gap(metrics: Mapping[str, Any], key: str) -> str | None:
    val, train = ((metrics.get(part) or {}).get(key) for part in ("val", "train"))
    if val is None or train is None:
        return None
    gap = train - val
    figures = f"Precision is {percent(train)} on train and {percent(val)} on val"
    if metrics.get("gallery") == "val":
        return (
            f"{figures}. The two are of different classes in galleries of different sizes: their difference tells what "
            "training on a class is worth together with how hard the classes are, and not over-fitting alone."
        )
    if gap > NOTABLE:
        return (
            f"{figures}, a gap of {100 * gap:.1f} points. The network ranks the images it was trained on "
            "better than new ones (over-fitting): more augmentation, stronger regularisation or more images "
            "are likely to help more than a larger network."
        )
    return (
        f"{figures}. New images are ranked about as well as those it was trained on: a larger network, "
        "longer training or harder triplets are likely to help more than regularisation."
    )


def _against_baselines(metrics: Mapping[str, Any], key: str) -> str | None:
    val = (metrics.get("val") or {}).get(key)
    baselines = metrics.get("baselines") or {}
    measured = {name: figures[key] for name, figures in baselines.items() if figures.get(key) is not None}
    if val is None or not measured:
        return None
    best = max(measured, key=lambda name: measured[name])
    if val - measured[best] > NOTABLE:
        return None  # nothing to improve here; the table shows by how much
    return (
        f"The baseline {best!r} reaches {percent(measured[best])}, the trained network {percent(val)}: "
        "training adds little or nothing to it. Check the learning rate, the length of training and whether "
        "the loss falls."
    )


def _course(history: Sequence[Mapping[str, Any]], key: str) -> str | None:
    """Whether the last stage's selection figure was still rising, or had fallen from its best."""
    evaluated = [item for item in history if item.get("event") == "evaluate" and item.get(key) is not None]
    course = [item for item in evaluated if item["stage"] == evaluated[-1]["stage"]]
    if len(course) < 2:
        return None
    best, last = max(course, key=lambda item: item[key]), course[-1]
    where = f"Selection precision in stage {last['stage']!r}"
    if best is last:
        return (
            f"{where} was best at its last evaluation ({percent(last[key])}, epoch {last['epoch']}): longer "
            "training may help."
        )
    if best[key] - last[key] > NOTABLE:
        return (
            f"{where} fell from {percent(best[key])} (epoch {best['epoch']}) to {percent(last[key])} (epoch "
            f"{last['epoch']}): shorter training or a lower learning rate may do as well."
        )
    return None
