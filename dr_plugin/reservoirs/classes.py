"""A weighted reservoir for each class, all in one piece of memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dr_plugin.checks import check_whole
from dr_plugin.reservoirs.arrivals import Arrivals, Floats, arrivals_within, blocks
from dr_plugin.reservoirs.checks import (
    Array,
    check_labels_from_0,
    check_state,
    checked_integers,
    checked_labels,
    checked_weights,
    summed,
)
from dr_plugin.reservoirs.key_stream import KeyStream, Seed

Integers = npt.NDArray[np.int64]


class ClassReservoirs:
    """A `WeightedReservoir` ("a-res") for each class 0, 1, ..., filled and drawn from by whole chunks.

    - A class's reservoir has the law of `WeightedReservoir`, whatever the other classes hold.
    - Memory: 24 bytes times `capacity` for each class, allocated as a class appears, up to three times as much again
      and a few MB while a chunk is merged. A stream of any length adds nothing.
    - Where the stream comes back to items that it gave before, as a second pass over a data set does, `refresh` them:
      then they are not counted twice, and `draw` stays exact for as long as the passes go on.

    Args:
        capacity: Items held of each class, at least 1.
        classes: How many classes there are; None: as many as labels show.
        total_capacity: The most that all classes may hold together; capacity x classes beyond it is refused.
        seed: At least 0, or several such numbers, as (7, worker); None: from the system's entropy.
    Shape:
        items, labels (n,) integers, weights (n,).
    Raises:
        ValueError: if an argument is out of range; in the methods, before anything is changed, for a label that is
            not a class, for a weight that is negative, infinite or NaN, or where `total_capacity` would be passed.
    Example:
        >>> reservoirs = ClassReservoirs(2, classes=3, seed=0)
        >>> reservoirs.extend(items=[7, 8, 9], labels=[0, 2, 2], weights=[1.0, 0.5, 4.0])
        >>> reservoirs.totals.tolist(), reservoirs.held(0).tolist(), sorted(reservoirs.held(2).tolist())
        ([1.0, 0.0, 4.5], [7], [8, 9])
    """

    def __init__(
        self,
        capacity: int,
        classes: int | None = None,
        *,
        total_capacity: int = 10_000_000,
        seed: Seed = None,
    ) -> None:
        self.capacity = check_whole("capacity", capacity, minimum=1)
        self.total_capacity = check_whole("total_capacity", total_capacity, minimum=1)
        self._fixed = None if classes is None else check_whole("classes", classes, minimum=1, below=2**31)
        self._check_total(self._fixed or 1)
        self._keys = KeyStream(seed)
        self._arrivals = Arrivals(self._fixed or 0, self.capacity)
        self._totals = np.zeros(self.classes)
        self._counts = np.zeros(self.classes, np.int64)

    @property
    def classes(self) -> int:
        """C: as many as were asked for, or one more than the largest label so far."""
        return len(self._arrivals)

    @property
    def totals(self) -> Floats:
        """The weight of all that was streamed of each class, (C,), each item as it was first given."""
        return self._totals.copy()

    @property
    def counts(self) -> Integers:
        """How many items were streamed of each class, (C,)."""
        return self._counts.copy()

    @property
    def sizes(self) -> Integers:
        """How many items each class holds, (C,)."""
        return self._arrivals.held()

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def held(self, label: int) -> Integers:
        """The items that a class holds, largest key first."""
        return self._row(self._arrivals.items, label)

    def weights_of(self, label: int) -> Floats:
        """Their weights."""
        return self._row(self._arrivals.weights, label)

    def log_keys_of(self, label: int) -> Floats:
        """Their log keys, counted from the class's last draw."""
        with np.errstate(over="ignore"):
            log_keys: Floats = -np.exp(self._row(self._arrivals.log_times, label))
        return log_keys

    def held_all(self) -> tuple[Integers, Integers]:
        """All that is held, class by class, largest key first: items and labels."""
        labels, columns = np.nonzero(self._arrivals.log_times < np.inf)
        return self._arrivals.items[labels, columns], labels

    def extend(self, items: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike) -> None:
        """Stream a chunk of items that were not streamed before."""
        items, labels, weights = self._checked(items, labels, weights)
        summed(weights, self._totals.max(initial=0.0))
        self._make_room(labels)
        for block in blocks(len(items), int(self._counts.sum()), self._arrivals.items.size):
            rows, rates = labels[block], weights[block].astype(np.float64, copy=False)
            self._totals += np.bincount(rows, rates, minlength=self.classes)
            self._counts += np.bincount(rows, minlength=self.classes)
            self._offer(items[block], rows, rates)

    def refresh(self, items: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike) -> None:
        """Stream a chunk of items again: each gets a new key, whether it is held or was lost.

        As only arrivals to come count, draws stay independent and by weight, with the weight given last. They can be
        flagged a little earlier than they need be: the place of a replaced item is not given to one that was lost.
        Totals and counts stay as they are. An item is known by its number, which must be the same as the first time,
        as must its class; of one that is twice in the chunk, the last counts.
        """
        items, labels, weights = self._checked(items, labels, weights)
        self._make_room(labels)
        for block in blocks(len(items), int(self._counts.sum()), self._arrivals.items.size):
            last = len(items[block]) - 1 - np.unique(items[block][::-1], return_index=True)[1]
            again, rows = items[block][last], labels[block][last]
            self._arrivals.drop(rows, again)
            self._offer(again, rows, weights[block][last].astype(np.float64, copy=False))

    def resize(self, capacity: int) -> None:
        """Change how many items each class can hold; nothing that is held is lost.

        Raises:
            ValueError: if a class holds more than `capacity`, or `total_capacity` would be passed.
        """
        fullest = int(self.sizes.max(initial=0))
        check_whole("capacity", capacity, minimum=max(1, fullest))
        if self.classes * capacity > self.total_capacity:
            raise ValueError(
                f"capacity: got {capacity} for {self.classes} classes, expected at most {self.total_capacity} "
                "(total_capacity) in all"
            )
        self.capacity = capacity
        self._arrivals.resize(capacity)

    def keep(self, sizes: npt.ArrayLike) -> Integers:
        """Lose all but the first items of each class, those with the largest keys; gives the items lost.

        As if the class's capacity had been its size all along: the items kept have the same law, and draws say whether
        they are exact.

        Args:
            sizes: How many items each class keeps at most, (C,).
        """
        counts = checked_integers("sizes", sizes)
        if len(counts) != self.classes or counts.min(initial=0) < 0:
            raise ValueError(
                f"sizes: got {counts.tolist()}, expected a number, at least 0, for each of {self.classes}"
            )
        lost: Integers = self._arrivals.keep(counts)
        return lost

    def new_pass(self) -> None:
        """Say that the stream has given every item once since the last call, and starts over with `refresh`.

        Items lost before the pass that has just ended were streamed again in it, so they no longer count as missing.
        """
        self._arrivals.log_bounds[1] = self._arrivals.log_bounds[0]
        self._arrivals.log_bounds[0] = np.inf

    def draw(self, labels: npt.ArrayLike) -> tuple[Integers, npt.NDArray[np.bool_]]:
        """For each label, an independent draw in proportion to weight among all that was streamed of that class.

        With replacement; exact and flagged as in `WeightedReservoir.draw`. A label may be named many times.

        Raises:
            ValueError: if a class holds nothing.
        Shape:
            labels (n,) -> items (n,), exact (n,) bool.
        """
        return self._arrivals.read(self._drawable(labels), self._keys.generator)

    def draw_uniform(self, labels: npt.ArrayLike, generator: np.random.Generator | None = None) -> Integers:
        """For each label, one of the items that its class holds, all with equal chances, with replacement.

        This is the paper's reading of a draw by weight: close to it while the class is much larger than its buffer.

        Args:
            generator: None: the reservoirs' own.
        """
        rows = self._drawable(labels)
        uniform = (generator or self._keys.generator).random(len(rows))
        drawn: Integers = self._arrivals.items[rows, (uniform * self.sizes[rows]).astype(np.int64)]
        return drawn

    def merge(self, other: "ClassReservoirs") -> "ClassReservoirs":
        """New reservoirs, as if one had seen both streams, of different items; the two stay as they are.

        Raises:
            ValueError: if the capacities or fixed classes differ, or the keys are not independent: same seed, a
                copy, or merged before.
        """
        built, others = (self.capacity, self._fixed), (other.capacity, other._fixed)
        if built != others:
            raise ValueError(f"merge: got (capacity, classes) {built} and {others}, expected the same")
        totals = max(self.total_capacity, other.total_capacity)
        merged = ClassReservoirs(self.capacity, self._fixed, total_capacity=totals)
        merged._keys = self._keys.merged(other._keys)
        merged._grow(max(self.classes, other.classes))
        for part in (self, other):
            summed(part._totals, merged._totals.max(initial=0.0))
            merged._totals[: part.classes] += part._totals
            merged._counts[: part.classes] += part._counts
            merged._arrivals.absorb(part._arrivals)
        return merged

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on exactly, the random numbers included: numbers, strings and lists of them."""
        return {
            "capacity": self.capacity,
            "classes": self._fixed,
            "totals": self._totals.tolist(),
            "counts": self._counts.tolist(),
            "arrivals": self._arrivals.state(),
            "keys": self._keys.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: if it is of reservoirs of another capacity or other classes.
        """
        fixed = {"capacity": self.capacity, "classes": self._fixed}
        check_state(state, fixed, {"totals", "counts", "arrivals", "keys"})
        self._check_total(len(state["counts"]))
        self._arrivals = Arrivals.of_state(state["arrivals"], self.capacity)
        self._keys.load(state["keys"])
        self._totals = np.array(state["totals"], np.float64)
        self._counts = np.array(state["counts"], np.int64)

    def _offer(self, items: Integers, rows: Integers, weights: Floats) -> None:
        index, log_times = arrivals_within(weights, self._arrivals.limits()[rows], self._keys.generator)
        self._arrivals.push(rows[index], items[index], weights[index], log_times)

    def _checked(
        self, items: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike
    ) -> tuple[Integers, Integers, Array]:
        items = checked_integers("items", items)
        labels = checked_labels(labels, len(items))
        weights = checked_weights(weights, len(items))
        largest = int(labels.max(initial=-1))
        if self._fixed is not None and largest >= self._fixed:
            index = int(np.argmax(labels))
            raise ValueError(f"labels: got {largest} at index {index}, expected classes below {self._fixed}")
        self._check_total(largest + 1)
        return items, labels, weights

    def _check_total(self, classes: int) -> None:
        if classes * self.capacity > self.total_capacity:
            raise ValueError(
                f"total_capacity: got {classes} classes x capacity {self.capacity} = {classes * self.capacity} items, "
                f"expected at most {self.total_capacity}; hold fewer a class, allow more, or number classes 0, 1, ..."
            )

    def _drawable(self, labels: npt.ArrayLike) -> Integers:
        rows = checked_integers("labels", labels)
        check_labels_from_0(rows)
        if rows.max(initial=-1) >= self.classes:
            raise ValueError(f"labels: got {rows.max()}, expected classes below {self.classes}")
        if (empty := self._arrivals.log_times[rows, 0] == np.inf).any():
            raise ValueError(
                f"draw: got class {rows[empty.argmax()]}, which holds nothing; expected items of positive weight "
                "to be streamed before"
            )
        return rows

    def _row(self, array: Array, label: int) -> Array:
        check_whole("label", label, minimum=0, below=self.classes)
        size = np.count_nonzero(self._arrivals.log_times[label] < np.inf)
        return array[label, :size].copy()

    def _make_room(self, labels: Integers) -> None:
        self._grow(int(labels.max(initial=-1)) + 1)

    def _grow(self, classes: int) -> None:
        if more := max(0, classes - self.classes):
            self._arrivals.grow(classes)
            self._totals = np.concatenate([self._totals, np.zeros(more)])
            self._counts = np.concatenate([self._counts, np.zeros(more, np.int64)])
