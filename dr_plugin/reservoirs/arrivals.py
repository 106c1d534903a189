"""The state of both kinds of reservoir: which items arrive next, and when."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dr_plugin.reservoirs.checks import Array

Rows = npt.NDArray[np.int64]  # (n,) the row of each entry
Floats = npt.NDArray[np.float64]

_BLOCK = 2**16  # items worked on at a time
_ROUNDING = 1e-9  # more than the error of an exp or a log
_SOONEST = 2.0**-60  # stands in for an exponential or a rest of time that was rounded to 0


class Arrivals:
    """For each row (a class) the `capacity` items that arrive next, in order.

    Each item that was streamed arrives again and again, at the times of a Poisson process whose rate is its
    weight w. Two facts make this both a reservoir and a source of draws:

    - The first arrival is at E ~ Exp(1) / w, which is -log(u^(1/w)), the A-Res key; so the items with the
      smallest E are the weighted sample without replacement.
    - All arrivals of a row, read in time order, are independent draws in proportion to weight. When an item has
      arrived at time t, its next arrival is at t + Exp(1) / w.

    The process has no memory: an item that is streamed late arrives Exp(1) / w from then on. So all times count
    from now, the last arrival read from the row, and reading one moves the others closer.

    Items that do not fit are lost. `log_bounds` holds the earliest arrival lost of each row: what is read up to
    then is exact, later an arrival may have been missed. Row 0 of it is for the present pass over the data, row 1
    for the pass before.

    Logarithms of times are kept, so that weights from 5e-324 to 1.8e308 keep their law.

    Shape:
        log_times (R, capacity), ascending, inf where nothing is held; items, weights alike; log_bounds (2, R).
    """

    def __init__(self, rows: int, capacity: int, dtype: npt.DTypeLike = np.int64) -> None:
        self.capacity = capacity
        self.log_times = np.full((rows, capacity), np.inf)
        self.weights = np.zeros((rows, capacity))
        self.items: Array = np.zeros((rows, capacity), dtype)
        self.log_bounds = np.full((2, rows), np.inf)

    def __len__(self) -> int:
        return len(self.log_times)

    def held(self) -> npt.NDArray[np.int64]:
        """How many items each row holds, (R,)."""
        held: npt.NDArray[np.int64] = np.count_nonzero(self.log_times < np.inf, axis=1)
        return held

    def limits(self) -> Floats:
        """Times from which an arrival is neither held nor lowers the present pass's bound, a little high, (R,).

        inf where a row has room, and where float64 cannot hold the time.
        """
        with np.errstate(over="ignore"):
            limits: Floats = np.exp(np.maximum(self.log_times[:, -1], self.log_bounds[0]) + _ROUNDING)
        return limits

    def grow(self, rows: int) -> None:
        """Add empty rows."""
        more = Arrivals(rows - len(self), self.capacity, self.items.dtype)
        for name in ("log_times", "weights", "items"):
            setattr(self, name, np.concatenate([getattr(self, name), getattr(more, name)]))
        self.log_bounds = np.concatenate([self.log_bounds, more.log_bounds], axis=1)

    def resize(self, capacity: int) -> None:
        """Make each row this wide; none holds more."""
        for name, empty in (
            ("log_times", np.inf),
            ("weights", 0.0),
            ("items", np.zeros((), self.items.dtype)[()]),
        ):
            old = getattr(self, name)[:, :capacity]
            new = np.full((len(self), capacity), empty, old.dtype)
            new[:, : old.shape[1]] = old
            setattr(self, name, new)
        self.capacity = capacity

    def keep(self, sizes: Rows) -> Array:
        """Lose all but the first `sizes` (R,) arrivals of each row; gives the items lost."""
        lost = (np.arange(self.capacity) >= sizes[:, None]) & (self.log_times < np.inf)
        earliest = np.where(lost, self.log_times, np.inf).min(axis=1)
        self.log_bounds[0] = np.minimum(self.log_bounds[0], earliest)
        self.weights[lost] = 0.0
        self.log_times[lost] = np.inf
        return self.items[lost]

    def push(self, rows: Rows, items: Array, weights: Floats, log_times: Floats) -> None:
        """Offer arrivals: each row keeps its earliest, and what it loses lowers its bound."""
        if len(rows) == 0:
            return
        order = np.lexsort((log_times, rows))
        touched, starts, counts = np.unique(rows[order], return_index=True, return_counts=True)
        rank = np.arange(len(rows)) - np.repeat(starts, counts)
        matters = rank <= self.capacity  # one more than can be held: the earliest that is lost
        order, column = order[matters], self.capacity + rank[matters]
        line = np.repeat(np.arange(len(touched)), counts)[matters]

        def beside(held: Array, offered: Array, empty: object) -> Array:
            wide = np.full((len(touched), column.max() + 1), empty, held.dtype)
            wide[:, : self.capacity] = held[touched]
            wide[line, column] = offered[order]
            return wide

        times = beside(self.log_times, log_times, np.inf)
        # Each row is two sorted runs, which this sort merges in linear time.
        earliest = np.argsort(times, axis=1, kind="stable")
        times = np.take_along_axis(times, earliest, axis=1)
        self.log_bounds[0, touched] = np.minimum(self.log_bounds[0, touched], times[:, self.capacity])
        self.log_times[touched] = times[:, : self.capacity]
        earliest = earliest[:, : self.capacity]
        for array, offered in ((self.weights, weights), (self.items, items)):
            wide = beside(array, offered, array.dtype.type())
            array[touched] = np.take_along_axis(wide, earliest, axis=1)

    def absorb(self, other: "Arrivals") -> None:
        """Take in what another one, of as many rows at most, holds; each counts from its own now."""
        rows, columns = np.nonzero(other.log_times < np.inf)
        self.log_bounds[:, : len(other)] = np.minimum(self.log_bounds[:, : len(other)], other.log_bounds)
        self.push(rows, *(array[rows, columns] for array in (other.items, other.weights, other.log_times)))

    def drop(self, rows: Rows, items: Array) -> None:
        """Forget the next arrivals of these items, where these rows hold them."""
        touched = np.unique(rows)
        again = np.isin(self.items[touched], items) & (self.log_times[touched] < np.inf)
        touched, again = touched[again.any(axis=1)], again[again.any(axis=1)]
        self._write(touched, np.where(again, np.inf, self.log_times[touched]))

    def read(self, rows: Rows, generator: np.random.Generator) -> tuple[Array, npt.NDArray[np.bool_]]:
        """The next arrivals of the rows named, one for each time that a row is named.

        Args:
            rows: None of them empty.
        Shape:
            rows (n,) -> items (n,), exact (n,) bool.
        """
        items, exact = np.empty(len(rows), self.items.dtype), np.empty(len(rows), np.bool_)
        places = np.argsort(rows, kind="stable")
        touched, starts, wanted = np.unique(rows[places], return_index=True, return_counts=True)
        while len(touched):
            line, item, in_time, given = self._advance(touched, wanted, generator)
            place = places[starts[line] + np.arange(len(line)) - np.searchsorted(line, line)]
            items[place], exact[place] = item, in_time
            more = given < wanted
            touched, starts, wanted = touched[more], (starts + given)[more], (wanted - given)[more]
        return items, exact

    def state(self) -> dict[str, Any]:
        """What is held, row by row in order, and the bounds: plain numbers (and items) in lists."""
        rows, columns = np.nonzero(self.log_times < np.inf)
        held = {
            name: getattr(self, name)[rows, columns].tolist() for name in ("items", "weights", "log_times")
        }
        return {
            "dtype": self.items.dtype.str,
            "held": np.bincount(rows, minlength=len(self)).tolist(),
            "log_bounds": self.log_bounds.tolist(),
            **held,
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any], capacity: int) -> "Arrivals":
        """The arrivals of which `state` was taken, exactly."""
        arrivals = cls(len(state["held"]), capacity, state["dtype"])
        rows = np.repeat(np.arange(len(arrivals)), state["held"])
        arrivals.push(
            rows,
            np.array(state["items"], state["dtype"]),
            np.array(state["weights"], np.float64),
            np.array(state["log_times"], np.float64),
        )
        arrivals.log_bounds = np.array(state["log_bounds"], np.float64).reshape(2, len(arrivals))
        return arrivals

    def _advance(
        self, rows: Rows, wanted: Rows, generator: np.random.Generator
    ) -> tuple[Rows, Array, npt.NDArray[np.bool_], Rows]:
        """Read up to `wanted` arrivals from each of these different rows, and move their now there.

        All arrivals up to a horizon are drawn at once; it lies where a few more are expected than are wanted.

        Returns:
            Of all that was read, row by row in time order: index in `rows`, item, exact; and how many each row gave.
        """
        target = wanted + 3 * np.sqrt(wanted - 1.0)  # one is there for certain, the row's first
        soon = slice(int(target.max()) + 1)  # that many items are expected to arrive at most
        unit = self.log_times[rows, :1]  # count in times of the row's first arrival, which is then at 1
        with np.errstate(over="ignore", divide="ignore"):
            times = np.exp(self.log_times[rows] - unit)
            rates = np.exp(np.log(self.weights[rows, soon]) + unit)
            bounds = np.exp(self.log_bounds[:, rows] - unit[:, 0])
            horizon = _horizon(times[:, soon], rates, target)
        line, slot, time = _arrivals_before(horizon, times[:, soon], rates, generator)
        starts = np.searchsorted(line, np.arange(len(rows) + 1))
        given = np.minimum(np.diff(starts), wanted)
        now = np.where(given == wanted, time[starts[:-1] + given - 1], horizon)
        read = np.arange(len(line)) - starts[line] < wanted[line]

        due = np.nonzero(times[:, soon] <= horizon[:, None])
        times[due] = horizon[due[0]] + generator.standard_exponential(len(due[0])) / rates[due]
        # Those after now that were drawn already come before the horizon.
        np.minimum.at(times, (line[~read], slot[~read]), time[~read])
        line, items = line[read], self.items[rows[line[read]], slot[read]]
        exact = time[read] <= bounds.min(axis=0)[line]
        self._write(rows, _log_rests(times, now[:, None], unit, self.log_times[rows]))
        log_bounds = _log_rests(bounds, now, unit[:, 0], self.log_bounds[:, rows])
        self.log_bounds[:, rows] = np.where(bounds < now, -np.inf, log_bounds)
        return line, items, exact, given

    def _write(self, rows: Rows, log_times: Floats) -> None:
        """Give these different rows new times, in order again."""
        order = np.argsort(log_times, axis=1, kind="stable")
        self.log_times[rows] = np.take_along_axis(log_times, order, axis=1)
        for array in (self.weights, self.items):
            array[rows] = np.take_along_axis(array[rows], order, axis=1)


def blocks(count: int, streamed: int, capacity: int) -> Iterator[slice]:
    """Slices of a chunk that is worked on with bounded memory, at the limits which held at each slice's start.

    Short ones come first, as all of a stream's first items pass; longer ones where many rows have to be merged.
    """
    longest = min(max(capacity, _BLOCK), 16 * _BLOCK)
    start = 0
    while start < count:
        stop = start + min(max(capacity, streamed + start), longest)
        yield slice(start, stop)
        start = stop


def arrivals_within(
    weights: Floats, limits: Floats, generator: np.random.Generator
) -> tuple[npt.NDArray[np.intp], Floats]:
    """A-Res: indices and log times of the items whose first arrival, one exponential for each item, is in time.

    Under the limit inf all of positive weight are.

    Shape:
        weights (n,), limits (n,) or (1,) -> two of (survivors,).
    """
    exponentials = generator.standard_exponential(len(weights))
    with np.errstate(over="ignore", invalid="ignore"):  # a weight of 0 times no limit is NaN, and fails
        index = np.flatnonzero(exponentials < weights * limits)
    return index, log_arrivals(exponentials[index], weights[index])


def log_arrivals(exponentials: Floats, weights: Floats) -> Floats:
    """Log of Exp(1) / w for weights above 0."""
    log_times: Floats = np.log(np.maximum(exponentials, _SOONEST)) - np.log(weights)
    return log_times


def _horizon(times: Floats, rates: Floats, target: Floats) -> Floats:
    """The time before which each row expects `target` arrivals, (R,).

    Before t these are the sum over items with times <= t of 1 + rate (t - time): piecewise linear, rising in t.
    """
    number = np.arange(times.shape[1])
    rate = np.cumsum(rates, axis=1)
    offset = np.cumsum(rates * np.where(times < np.inf, times, 0.0), axis=1)
    expected = number + 1 + (times * rate - offset)  # before an item's own first time
    last = np.maximum(np.count_nonzero(expected <= target[:, None], axis=1), 1) - 1
    line = np.arange(len(times))
    horizon = (target - number[last] - 1 + offset[line, last]) / rate[line, last]
    later: Floats = np.maximum(horizon, times[line, last])  # but for rounding, it is
    return later


def _arrivals_before(
    horizon: Floats, times: Floats, rates: Floats, generator: np.random.Generator
) -> tuple[Rows, Rows, Floats]:
    """All arrivals up to each row's horizon: row, slot and time, row by row in time order."""
    line, slot = np.nonzero(times <= horizon[:, None])
    first = times[line, slot]
    ahead = horizon[line] - first
    repeats = generator.poisson(rates[line, slot] * ahead)
    again = np.repeat(np.arange(len(line)), repeats)
    time = np.concatenate([first, first[again] + ahead[again] * generator.random(len(again))])
    line, slot = np.concatenate([line, line[again]]), np.concatenate([slot, slot[again]])
    order = np.lexsort((time, line))
    return line[order], slot[order], time[order]


def _log_rests(times: Floats, now: Floats, unit: Floats, log_times: Floats) -> Floats:
    """Log of the time that is left from now, in the unit of `log_times`; beyond float64 nothing has changed."""
    rests: Floats = np.where(times < np.inf, unit + np.log(np.maximum(times - now, _SOONEST)), log_times)
    return rests
