"""Draws from class reservoirs, and their acceptance as a positive or an in-class negative of a query."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dr_plugin.triplets.relevances import Indices

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Pairs = Callable[[Indices, Indices], npt.NDArray[np.floating]]
ByItem = Callable[[Indices], npt.NDArray[np.floating]]

BYSTANDER = 1e-200  # weight in the reservoirs of an image that is to be an out-of-class negative only

_AHEAD = 8  # how many times as many arrivals are read as are asked for, as reading a few is dear,
_LEAST = 16  # and how many at least
_LOOK = 16  # held images of a class that are compared when nothing is known of its bound
_SLACK = 1.25  # by which a learned bound is set higher than what was seen


class Reservoirs(Protocol):
    """What the draws ask of a `dr_plugin.reservoirs.ClassReservoirs`."""

    @property
    def classes(self) -> int:
        """C."""

    @property
    def totals(self) -> Floats:
        """Weight of all that was streamed of each class, (C,)."""

    @property
    def counts(self) -> Indices:
        """How many images were streamed of each class, (C,)."""

    def held(self, label: int) -> Indices:
        """The images of a class."""

    def weights_of(self, label: int) -> Floats:
        """Their weights."""

    def held_all(self) -> tuple[Indices, Indices]:
        """The images of all classes, class by class, and their labels."""

    def draw(self, labels: Indices) -> tuple[Indices, Flags]:
        """For each label the class's next arrival, and whether it is exact."""

    def draw_uniform(self, labels: Indices, generator: np.random.Generator) -> Indices:
        """For each label any image that the class holds."""


class Arrivals:
    """The next arrivals of each class, read from the reservoirs in long runs and given out in order.

    What is left of a run when this object goes is lost; the arrivals after it are as independent as any.
    """

    def __init__(self, reservoirs: Reservoirs) -> None:
        self._reservoirs = reservoirs
        self._items, self._exact = np.empty(0, np.int64), np.empty(0, np.bool_)
        # (C,) each class's first arrival not yet given out.
        self._next = np.zeros(reservoirs.classes, np.int64)
        self._end = self._next.copy()

    def take(self, labels: Indices) -> tuple[Indices, Flags]:
        """An arrival for each label, and whether it is exact: (n,) -> (n,), (n,)."""
        wanted = np.bincount(labels, minlength=len(self._next))
        if (wanted > self._end - self._next).any():
            self._read_on(wanted)
        order = np.argsort(labels, kind="stable")
        rank = np.arange(len(labels)) - np.repeat(np.cumsum(wanted) - wanted, wanted)
        place = np.empty(len(labels), np.int64)
        place[order] = np.repeat(self._next, wanted) + rank
        self._next = self._next + wanted
        return self._items[place], self._exact[place]

    def _read_on(self, wanted: Indices) -> None:
        short = np.flatnonzero(wanted > self._end - self._next)
        rows = np.repeat(short, np.maximum(_AHEAD * wanted[short], _LEAST))
        items, exact = self._reservoirs.draw(rows)
        left = self._end - self._next
        kept = np.repeat(self._next - np.cumsum(left) + left, left) + np.arange(left.sum())
        rows = np.concatenate([np.repeat(np.arange(len(left)), left), rows])
        order = np.argsort(rows, kind="stable")  # of a class, what was left comes first
        self._items = np.concatenate([self._items[kept], items])[order]
        self._exact = np.concatenate([self._exact[kept], exact])[order]
        self._end = np.cumsum(np.bincount(rows, minlength=len(left)))
        self._next = np.concatenate([[0], self._end[:-1]])


class BufferPicks:
    """The paper's reading of an arrival: any image of the class's buffer, all with equal chances."""

    def __init__(self, reservoirs: Reservoirs, rng: np.random.Generator) -> None:
        self._reservoirs, self._rng = reservoirs, rng

    def take(self, labels: Indices) -> tuple[Indices, Flags]:
        """As `Arrivals.take`; never exact."""
        return self._reservoirs.draw_uniform(labels, self._rng), np.zeros(len(labels), np.bool_)


class Acceptance:
    """Turns candidates that come in proportion to r_x into candidates in proportion to min(T_p, r(q, x)).

    A candidate is accepted with probability min(T_p, r(q, x)) / r_x / bound; the bound makes it at most 1.

    Args:
        pairs: r(i, j); checked to be finite and at least 0.
        threshold: T_p; None: no threshold.
        thinned: Whether there is anything to accept: otherwise each candidate is.
        weights: r_x of images; None: what the reservoirs hold of them.
        bounds: For queries, no less than their largest min(T_p, r(q, x)) / r_x; None: learned for each class.
    """

    def __init__(
        self,
        reservoirs: Reservoirs,
        pairs: Pairs | None,
        *,
        threshold: float | None,
        thinned: bool,
        weights: ByItem | None,
        bounds: ByItem | None,
    ) -> None:
        self._reservoirs, self._pairs = reservoirs, pairs
        self._threshold = np.inf if threshold is None else threshold
        self._thinned, self._weights, self._bounds = thinned, weights, bounds
        self._learned = np.zeros(0)  # (C,) each class's bound, 0 where nothing is known

    def prepare(self, labels: Indices) -> None:
        """Learn what is needed of these classes; between two calls the reservoirs may stream on."""
        if not self._thinned:
            return
        classes = np.unique(labels).tolist()
        if self._weights is None:
            items = np.concatenate([self._reservoirs.held(label) for label in classes])
            weights = np.concatenate([self._reservoirs.weights_of(label) for label in classes])
            order = np.argsort(items)
            self._held, self._held_weights = items[order], weights[order]
        if self._bounds is None:
            more = max(0, self._reservoirs.classes - len(self._learned))
            self._learned = np.concatenate([self._learned, np.zeros(more)])
            for label in classes:
                if self._learned[label] == 0:
                    self._learned[label] = _SLACK * self._largest_ratio(self._reservoirs.held(label)[:_LOOK])

    def __call__(
        self,
        labels: Indices,
        queries: Indices,
        candidates: Indices,
        possible: Flags,
        rng: np.random.Generator,
    ) -> tuple[Flags, Floats, Flags]:
        """Whether each candidate is accepted, its r(q, x), and whether that was done with a bound that held.

        Shape:
            labels, queries (n,), candidates, possible (n, k) -> three of (n, k).
        """
        relevance = self.relevances(queries, candidates, possible)
        fits = np.ones(candidates.shape, np.bool_)
        if not self._thinned:
            return possible, relevance, fits
        bounds = self._learned[labels] if self._bounds is None else self._bounds(queries)
        ratio = np.minimum(relevance, self._threshold) / self._weight(candidates)
        if self._bounds is None:
            fits = ratio <= bounds[:, None]
            np.maximum.at(self._learned, labels, _SLACK * np.where(fits, 0.0, ratio).max(axis=1))
        accepted = possible & (rng.random(ratio.shape) * bounds[:, None] < ratio)
        return accepted, relevance, fits

    def relevances(self, queries: Indices, candidates: Indices, possible: Flags) -> Floats:
        """r(q, x), 0 where not possible or where there are no `pairs`: (n,), (n, k), (n, k) -> (n, k)."""
        relevance = np.zeros(candidates.shape)
        if self._pairs is not None:
            row, column = np.nonzero(possible)
            relevance[row, column] = self._relevance(queries[row], candidates[row, column])
        return relevance

    def can_be_accepted(self, relevance: Floats) -> Flags:
        """Whether a candidate of this relevance ever is."""
        return (relevance > 0) | (not self._thinned)

    def _largest_ratio(self, items: Indices) -> float:
        first, second = np.nonzero(items[:, None] != items)
        if len(first) == 0:
            return 0.0
        relevance = np.minimum(self._relevance(items[first], items[second]), self._threshold)
        return float((relevance / self._weight(items[second])).max())

    def _relevance(self, i: Indices, j: Indices) -> Floats:
        if self._pairs is None or len(i) == 0:
            return np.zeros(len(i))
        found = np.asarray(self._pairs(i, j))
        if found.shape != i.shape:
            raise ValueError(f"pairs: got shape {found.shape} for {len(i)} pairs, expected ({len(i)},)")
        if not (found.min() >= 0 and found.max() < np.inf):  # NaN fails the first
            wrong = int(np.argmin((found >= 0) & (found < np.inf)))
            raise ValueError(
                f"pairs: got r({i[wrong]}, {j[wrong]}) = {found[wrong]}, expected finite numbers, at least 0"
            )
        return found.astype(np.float64)

    def _weight(self, items: Indices) -> Floats:
        if self._weights is not None:
            return np.maximum(self._weights(items), BYSTANDER)
        weights: Floats = self._held_weights[np.searchsorted(self._held, items)]
        return weights
