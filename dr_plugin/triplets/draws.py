"""What every relevance-weighted draw takes and gives, whole classes or a stream: parameters and triplets."""

import math
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from dr_plugin.checks import as_number, check_choice, check_whole, shown

Weighting = Literal["relevance", "uniform"]


class NoTripletError(ValueError):
    """What is at hand gives no triplet of a wanted kind, or hardly ever one."""


class TripletDraw(NamedTuple):
    """Triplets, and what it took to draw them.

    Attributes:
        query, positive, negative: (T,) long. The triplets are independent and in no order.
        counters: `accepted` triplets (= T), those of them `in_class` and `out_of_class`; `rejected` in-class
            negatives that failed (8), and triplets `discarded` after `max_trials` of these.
    """

    query: Tensor
    positive: Tensor
    negative: Tensor
    counters: dict[str, int]


def check_draw(
    *,
    out_of_class_ratio: float,
    relevance_threshold: float | None,
    relevance_margin: float,
    weighting: str,
    max_trials: int,
) -> dict[str, Any]:
    """These parameters of a draw by name, as plain numbers; ValueError unless they can be such."""
    if not 0 <= as_number(out_of_class_ratio) <= 1:
        raise ValueError(
            f"out_of_class_ratio: got {shown(out_of_class_ratio)}, expected a number from 0 to 1"
        )
    if relevance_threshold is not None and not 0 < as_number(relevance_threshold) < math.inf:
        raise ValueError(
            f"relevance_threshold: got {shown(relevance_threshold)}, expected a finite number above 0, "
            "or None for no threshold"
        )
    if not 0 <= as_number(relevance_margin) < math.inf:
        raise ValueError(
            f"relevance_margin: got {shown(relevance_margin)}, expected a finite number, at least 0"
        )
    check_choice("weighting", weighting, get_args(Weighting))
    return {
        "out_of_class_ratio": float(out_of_class_ratio),
        "relevance_threshold": None if relevance_threshold is None else float(relevance_threshold),
        "relevance_margin": float(relevance_margin),
        "weighting": weighting,
        "max_trials": check_whole("max_trials", max_trials, minimum=1),
    }
