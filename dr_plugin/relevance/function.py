"""Relevance from a user's function."""

from collections.abc import Callable
from typing import Any

from dr_plugin.checks import check_length, shown
from dr_plugin.relevance.base import BaseRelevance, Values, checked_values
from dr_plugin.relevance.classes import Labels
from dr_plugin.triplets.relevances import Indices


class FunctionRelevance(BaseRelevance):
    """What a function of two index arrays says, within a class; 0 across classes.

    The function is called with different images of one class, a million pairs at most at once, never with
    none. It need not be symmetric: r(i, j) is how relevant j is to the query i. Each result is checked.

    Args:
        function: (i (n,) int64, j (n,) int64) -> n numbers, finite and at least 0. For loader workers that
            are not forked it must be picklable: a function of a module, not a lambda.
        labels: Classes, any integers; None: all images are one class (graded relevance), then `count` is
            needed.
        count: N, the images; None: as many as labels.
    Shape:
        labels (N,).
    Raises:
        ValueError: if labels and count are both missing or differ; from any method, if the function's result
            is of another shape or not finite and at least 0.
    Example:
        >>> near = FunctionRelevance(lambda i, j: 1.0 / abs(i - j), labels=[0, 0, 0, 1])
        >>> near.pairs([0, 0, 0], [1, 2, 3])
        array([1. , 0.5, 0. ], dtype=float32)
        >>> near.total([1])
        array([2.])
    """

    def __init__(
        self,
        function: Callable[[Indices, Indices], Any],
        labels: Labels | None = None,
        *,
        count: int | None = None,
    ) -> None:
        if not callable(function):
            raise ValueError(f"function: got {shown(function)}, expected a function of two index arrays")
        if count is None:
            if labels is None:
                raise ValueError(
                    "got neither labels nor count, expected one of them: how many images are there?"
                )
            count = check_length("labels", labels, "the classes of all images")
        super().__init__(count, labels)
        self.function = function

    def _pairs(self, i: Indices, j: Indices) -> Values:
        return checked_values(self.function(i, j), (len(i),), "function(i, j)")
