"""One weighted reservoir over a stream."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dr_plugin.checks import check_whole, shown
from dr_plugin.reservoirs.arrivals import Arrivals, Floats, arrivals_within, blocks, log_arrivals
from dr_plugin.reservoirs.checks import (
    Array,
    check_state,
    checked_items,
    checked_weights,
    summed,
)
from dr_plugin.reservoirs.key_stream import KeyStream, Seed

_STRETCH = 64  # items


class WeightedReservoir:
    """A weighted sample without replacement of a stream, in bounded memory, and exact draws by weight.

    Each item gets the key u^(1 / w), u uniform in (0, 1); the `capacity` largest are held, so that
    P(i1, i2, ... in key order) = product of w_ik / (W - weights of those before). "a-res" draws a key for every
    item; "a-expj" jumps over those that would not enter, with O(capacity log(n / capacity)) random numbers. Their
    laws are the same. Under "a-res" the generator gives each item, also one of weight 0, one exponential in stream
    order, so that the sample does not depend on how the stream was cut into chunks.

    - Weight 0 is never chosen; all items of positive weight are held until there are more than `capacity`.
    - Every element of the stream is an item of its own, also if it equals another.
    - Any positive float64 is a weight: keys are kept as log(-log key).

    `draw` gives independent draws from all that was streamed, in proportion to weight, where taking from the held
    items with equal chances, as the paper does, is only close to that. How: see `Arrivals`.

    Args:
        capacity: Items held at most, at least 1.
        method: "a-res" or "a-expj".
        seed: At least 0, or several such numbers, as (7, worker); None: from the system's entropy.
    Shape:
        items (n,) of any type, which the first chunk sets; weights (n,).
    Raises:
        ValueError: if an argument is out of range; in `extend`, before anything is changed, for a weight that is
            negative, infinite or NaN.
    Example:
        >>> reservoir = WeightedReservoir(2, seed=0)
        >>> reservoir.extend([10, 11, 12], [0.5, 0.0, 2.0])
        >>> sorted(reservoir.items.tolist()), len(reservoir), reservoir.total_weight
        ([10, 12], 2, 2.5)

    References:
        Efraimidis, Spirakis, Weighted random sampling with a reservoir, Information Processing Letters 97, 2006.
    """

    def __init__(
        self, capacity: int, *, method: Literal["a-res", "a-expj"] = "a-res", seed: Seed = None
    ) -> None:
        self.capacity = check_whole("capacity", capacity, minimum=1, below=2**31)
        if not isinstance(method, str) or method not in ("a-res", "a-expj"):
            raise ValueError(f'method: got {shown(method)}, expected "a-res" or "a-expj"')
        self.method = method
        self._keys = KeyStream(seed)
        self._arrivals = Arrivals(1, self.capacity)
        self._total = 0.0
        self._count = 0

    def __len__(self) -> int:
        return int(self._arrivals.held()[0])

    @property
    def items(self) -> Array:
        """The held items, largest key first."""
        return self._arrivals.items[0, : len(self)].copy()

    @property
    def weights(self) -> Floats:
        """Their weights."""
        return self._arrivals.weights[0, : len(self)].copy()

    @property
    def log_keys(self) -> Floats:
        """Their log keys, counted from the last draw; -inf where float64 cannot hold one (weights below 1e-307)."""
        with np.errstate(over="ignore"):
            log_keys: Floats = -np.exp(self._arrivals.log_times[0, : len(self)])
        return log_keys

    @property
    def total_weight(self) -> float:
        """W, the weight of all that was streamed."""
        return self._total

    @property
    def count(self) -> int:
        """How many items were streamed."""
        return self._count

    def extend(self, items: npt.ArrayLike, weights: npt.ArrayLike) -> None:
        """Stream a chunk of items."""
        items = checked_items(items)
        weights = checked_weights(weights, len(items))
        total = summed(weights, self._total)
        if len(items) == 0:
            return
        self._fit_type(items.dtype)
        for block in blocks(len(items), self._count, self.capacity):
            self._offer(items[block], weights[block].astype(np.float64, copy=False))
        self._total = total
        self._count += len(items)

    def draw(self, count: int) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Independent draws, with replacement, in proportion to weight among all that was streamed.

        They are exact until one of them would be an item that the reservoir lost: at least for `capacity` draws
        from a stream. From then on all are flagged as not exact, and come from the held items only. (To leave
        flagged draws out would bias the rest.) Draws and `extend` can follow one another in any order.

        Raises:
            ValueError: if no item of positive weight was streamed.
        Shape:
            -> items (count,), exact (count,) bool.
        """
        check_whole("count", count, minimum=0, below=2**31)
        if count and len(self) == 0:
            raise ValueError(
                "draw: got an empty reservoir, expected items of positive weight to be streamed before"
            )
        return self._arrivals.read(np.zeros(count, np.int64), self._keys.generator)

    def merge(self, other: "WeightedReservoir") -> "WeightedReservoir":
        """A new reservoir, as if one had seen both streams; the two stay as they are.

        Raises:
            ValueError: if the capacities or the types of items differ, or the keys are not independent: same
                seed, a copy, or merged before.
        """
        if other.capacity != self.capacity:
            raise ValueError(f"merge: got capacities {self.capacity} and {other.capacity}, expected the same")
        merged = WeightedReservoir(self.capacity, method=self.method)
        merged._keys = self._keys.merged(other._keys)
        for part in (self, other):
            if part._count:
                merged._fit_type(part._arrivals.items.dtype, widen=True)
                merged._arrivals.absorb(part._arrivals)
                merged._count += part._count
        merged._total = summed(np.array([other._total]), self._total)
        return merged

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on exactly, the random numbers included: numbers, strings, lists of them, items."""
        return {
            "capacity": self.capacity,
            "method": self.method,
            "total_weight": self._total,
            "count": self._count,
            "arrivals": self._arrivals.state(),
            "keys": self._keys.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: if it is of a reservoir of another capacity or method.
        """
        fixed = {"capacity": self.capacity, "method": self.method}
        check_state(state, fixed, {"total_weight", "count", "arrivals", "keys"})
        self._arrivals = Arrivals.of_state(state["arrivals"], self.capacity)
        self._keys.load(state["keys"])
        self._total, self._count = state["total_weight"], state["count"]

    def _offer(self, items: Array, weights: Floats) -> None:
        limits = self._arrivals.limits()
        choose = _jump if self.method == "a-expj" and limits[0] < np.inf else arrivals_within
        index, log_times = choose(weights, limits, self._keys.generator)
        self._arrivals.push(np.zeros(len(index), np.int64), items[index], weights[index], log_times)

    def _fit_type(self, dtype: np.dtype[Any], widen: bool = False) -> None:
        """The first items set the type that is held; later ones must fit in it, or widen it."""
        held = self._arrivals.items.dtype
        if self._count == 0:
            held = dtype
        elif widen and dtype.kind == held.kind:
            held = np.promote_types(dtype, held)
        elif dtype.kind != held.kind or not np.can_cast(dtype, held):
            raise ValueError(
                f"items: got {dtype}, expected {held}, the first chunk's type, or a narrower one"
            )
        self._arrivals.items = self._arrivals.items.astype(held, copy=False)


def _jump(
    weights: Floats, limits: Floats, generator: np.random.Generator
) -> tuple[npt.NDArray[np.intp], Floats]:
    """A-ExpJ: what `arrivals_within` gives, for about as many random numbers as items pass.

    Laid end to end, each as long as its weight times the limit, the items are a line on which a Poisson process of
    rate 1, whose gaps are the exponential jumps, hits each with the chance that it arrives in time. A hit is found
    by its stretch of the line first. Items longer than 1 are likelier to be hit than not, and get a number each.
    """
    with np.errstate(over="ignore"):
        lengths = weights * limits
    if rest := -len(lengths) % _STRETCH:
        lengths = np.concatenate([lengths, np.zeros(rest)])
    long = np.flatnonzero(lengths > 1)
    exponentials = generator.standard_exponential(len(long))
    in_time = exponentials < lengths[long]
    lengths[long] = 0

    ends = np.cumsum(np.add.reduceat(lengths, np.arange(0, len(lengths), _STRETCH)))
    hits = generator.poisson(ends[-1])
    # Above 0: never on a length of 0.
    stretch = np.searchsorted(ends, (1 - generator.random(hits)) * ends[-1])
    within = np.cumsum(lengths.reshape(-1, _STRETCH)[stretch], axis=1)
    place = np.count_nonzero(within < (1 - generator.random((hits, 1))) * within[:, -1:], axis=1)
    short = np.unique(stretch * _STRETCH + place)
    given_in_time = -np.log1p(generator.random(len(short)) * np.expm1(-lengths[short]))
    index = np.concatenate([long[in_time], short])
    return index, log_arrivals(np.concatenate([exponentials[in_time], given_in_time]), weights[index])
