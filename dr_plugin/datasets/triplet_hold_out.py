"""A hold-out of triplets that tears apart neither text queries nor images."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


def held_out(
    groups: Numbers, text_queries: Sequence[str], fraction: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Whether each triplet is held out: whole groups, up to a share of the text queries.

    Groups are taken in an order that depends on the seed and their text queries' names alone, unless they would
    go beyond ``round(fraction x text queries)`` (at least 1); where none fits, a smallest one is taken.

    Shape:
        groups (T,), text_queries T -> (T,) bool.
    Raises:
        ValueError: if there is only one group.
    """
    names: dict[int, set[str]] = {}
    for group, text in zip(groups.tolist(), text_queries, strict=True):
        names.setdefault(group, set()).add(text)
    if len(names) < 2:
        raise ValueError(
            "split: got triplets that all share text queries or images, expected at least two groups that share "
            'nothing: use split="all"'
        )
    order = sorted(names, key=lambda group: _rank(seed, min(names[group])))
    left = max(1, round(fraction * len(set(text_queries))))
    chosen: list[int] = []
    for group in order:
        if len(names[group]) <= left and len(chosen) < len(names) - 1:
            chosen.append(group)
            left -= len(names[group])
    return np.isin(groups, chosen or [min(order, key=lambda group: len(names[group]))])


def _rank(seed: int, text_query: str) -> bytes:
    return hashlib.sha256(f"{seed}/{text_query}".encode()).digest()
