"""Rows of weights made ready to be drawn from."""

import warnings
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dr_plugin.triplets.layout import ClassLayout
from dr_plugin.triplets.uniform import uniform_below

TOTAL = 2**31 - 1  # a row's weights as whole numbers add up to at most this
_CHUNK = 2**17  # entries that are worked on at once, but at least one row: they stay in a core's cache
# Row (12 bits), relevance (31) and place in the row (17, or 29 with a row alone) make one sortable number.
_CHUNK_ROWS = 2**12


class RelevanceRows:
    """The rows of a layout, each sorted by r(q, .), with a weight for each entry to draw by.

    In a sorted row, the negatives that satisfy (8) for a positive come before all others: the share of them,
    and one of them by weight, are found by bisection, without trying.

    A row's weights are kept as running sums of whole numbers (int32). An entry's probability is within (1 +
    n p) / 2**31 of its p (n the row's entries), and at least 2**-31 if p > 0, so that 1e-30 beside 1 stays
    possible. An image has weight 0 in its own row, and is its last entry, with r = infinity.

    - Under `relevance`, an entry weighs min(T_p, r) times its reference's `candidate_weights`.
    - Under `uniform`, it weighs just the latter, or 1.

    Args:
        layout: The rows.
        values: r of each entry. An image's with itself is ignored.
        threshold: T_p; None: no threshold.
        candidate_weights: A factor for each reference; None: 1.
        uniform: Whether weights leave r out.
        positive_only: Under `uniform`, weight 0 where r = 0; needed for `draw_zero`.
    Attributes:
        values: (E,) float32, r, sorted in each row.
        sums: (rows,) float64, the sum of r times the candidate weights.
        total: (rows,) long, the sum of the whole numbers, 0 where nothing can be drawn.
        lowest, highest: (rows,) float32, extremes of r among the entries that can be drawn; 0 if there are none.
        zeros: (rows,) long, under `positive_only`: how many entries have r = 0, not counting the image itself;
            0 where nothing can be drawn.
    Shape:
        values (E,), candidate_weights (M,) float64.
    Raises:
        ValueError: if there is not one value for each entry, or one is negative, infinite or NaN.
    """

    def __init__(
        self,
        layout: ClassLayout,
        values: Tensor | npt.NDArray[np.floating],
        *,
        threshold: float | None = None,
        candidate_weights: Tensor | None = None,
        uniform: bool = False,
        positive_only: bool = False,
    ) -> None:
        given = _as_vector(values, layout)
        count = layout.count
        longest = int(count.max()) if len(count) else 0
        self._layout, self._threshold, self._candidates = layout, threshold, candidate_weights
        self._uniform, self._positive_only = uniform, positive_only
        self._steps = [1 << bit for bit in reversed(range(max(longest - 1, 0).bit_length()))]
        places = torch.int16 if longest <= 2**15 else torch.int32
        self.values = torch.empty(layout.size, device=count.device)
        self._running = torch.empty(layout.size, dtype=torch.int32, device=count.device)
        self._place = torch.empty(layout.size, dtype=places, device=count.device)
        self.sums = torch.zeros(len(count), dtype=torch.float64, device=count.device)
        self.lowest, self.highest = torch.zeros(2, len(count), device=count.device)
        self.total, self.zeros = torch.zeros(2, len(count), dtype=torch.long, device=count.device)
        for first, last in _whole_rows(layout):
            self._fill(given, slice(first, last))
        self._find_extremes()

    def _fill(self, given: Tensor, rows: slice) -> None:
        layout, count = self._layout, self._layout.count[rows]
        begin = layout.offset[rows]
        entries = slice(int(begin[0]), int(begin[-1] + count[-1]))
        begin = begin - entries.start
        row = torch.repeat_interleave(count, output_size=entries.stop - entries.start)
        # A copy; -0.0, which sorts last, is 0.0.
        relevance = given[entries].to(count.device, torch.float32) + 0
        itself = begin + layout.itself[rows] if layout.own else begin[:0]
        relevance[itself] = 0
        _check_values(relevance)
        relevance[itself] = torch.inf
        place = torch.arange(len(row), device=row.device) - at(begin, row)
        relevance, place = _sort_rows(relevance, row, place)
        self.values[entries], self._place[entries] = relevance, place
        relevance = relevance.double()
        itself = begin + count - 1 if layout.own else begin[:0]
        relevance[itself] = 0
        weights = self._weights(relevance, itself)
        if self._candidates is not None:
            factor = at(self._candidates, at(layout.references, place + at(layout.start[rows], row)))
            relevance, weights = relevance * factor, weights * factor
        self.sums[rows] = _row_sums(relevance, count)
        self._running[entries], self.total[rows] = _running_sums(weights, count, row)

    def _weights(self, relevance: Tensor, itself: Tensor) -> Tensor:
        """(n,) float64, without the candidates' factor."""
        if not self._uniform:
            return relevance if self._threshold is None else relevance.clamp(max=self._threshold)
        if self._positive_only:
            return (relevance > 0).double()
        weights = torch.ones_like(relevance)
        weights[itself] = 0
        return weights

    def _find_extremes(self) -> None:
        """Set `lowest`, `highest` and `zeros` of the rows that can be drawn from."""
        row = torch.nonzero(self.total).squeeze(1)
        last = at(self._layout.offset, row + 1) - 1
        nothing, all_but_one = torch.zeros_like(last).int(), (at(self.total, row) - 1).int()
        self.lowest[row] = at(self.values, self._first_above(self._running, row, last, nothing))
        self.highest[row] = at(self.values, self._first_above(self._running, row, last, all_but_one))
        if self._positive_only:
            self.zeros[row] = self._first_above(self.values, row, last, nothing) - at(
                self._layout.offset, row
            )

    def draw(self, row: Tensor, bits: Tensor) -> Tensor:
        """One entry of each row by weight; `total` must be above 0.

        Shape:
            row (n,), bits (n,) -> (n,) long, places among all entries.
        """
        last = at(self._layout.offset, row + 1) - 1
        return self._first_above(self._running, row, last, uniform_below(bits, at(self.total, row)).int())

    def draw_below(self, row: Tensor, end: Tensor, bits: Tensor) -> Tensor:
        """One entry of each row by weight, of those before `end`; these must have weight: (n,) each -> (n,)."""
        target = uniform_below(bits, self.weight_below(row, end)).int()
        return self._first_above(self._running, row, end - 1, target)

    def draw_zero(self, row: Tensor, bits: Tensor) -> Tensor:
        """One entry of each row, uniform over those with r = 0; `zeros` must be above 0: (n,), (n,) -> (n,)."""
        return at(self._layout.offset, row) + uniform_below(bits, at(self.zeros, row))

    def end_of_values(self, row: Tensor, entry: Tensor, bound: Tensor) -> Tensor:
        """The first entry of each row whose r is above the bound, as `entry`'s must be: (n,) each -> (n,)."""
        return self._first_above(self.values, row, entry, bound)

    def weight_below(self, row: Tensor, end: Tensor) -> Tensor:
        """Sum of the row's whole numbers before the entry `end`: (n,), (n,) -> (n,) long."""
        some = end > at(self._layout.offset, row)
        return torch.where(some, at(self._running, end - some.long()), 0).long()

    def weight(self, row: Tensor, entry: Tensor) -> Tensor:
        """The entry's whole number: (n,), (n,) -> (n,) long."""
        return at(self._running, entry).long() - self.weight_below(row, entry)

    def reference(self, row: Tensor, entry: Tensor) -> Tensor:
        """Which reference an entry stands for: (n,), (n,) -> (n,) long."""
        return at(self._layout.references, at(self._layout.start, row) + at(self._place, entry))

    def _first_above(self, table: Tensor, row: Tensor, last: Tensor, bound: Tensor) -> Tensor:
        """The first entry of each row with table > bound, where `last` is known to have it: (n,) each -> (n,)."""
        before = at(self._layout.offset, row) - 1  # the last entry that is known not to have it
        for step in self._steps:
            middle = torch.minimum(before + step, last)
            before = torch.where(at(table, middle) <= bound, middle, before)
        return before + 1


def at(table: Tensor, places: Tensor) -> Tensor:
    """table[places], both 1-D; on a CPU several times as fast."""
    return table.index_select(0, places)


def _as_vector(values: Tensor | npt.NDArray[np.floating], layout: ClassLayout) -> Tensor:
    if not isinstance(values, Tensor):
        with warnings.catch_warnings():  # of arrays that may not be written to: nothing here writes
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            values = torch.from_numpy(values)
    if values.shape != (layout.size,) or not values.is_floating_point():
        raise ValueError(
            f"values: got {values.dtype} of shape {tuple(values.shape)}, expected one relevance for each entry "
            f"of the layout, ({layout.size},) float32"
        )
    return values.detach()


def _whole_rows(layout: ClassLayout) -> Iterator[tuple[int, int]]:
    """First and last + 1 of rows that have up to `_CHUNK` entries together, or of one longer row."""
    offset = layout.offset.cpu()
    first = 0
    while first < len(offset) - 1:
        last = int(torch.searchsorted(offset, offset[first] + _CHUNK, right=True)) - 1
        last = max(min(last, first + _CHUNK_ROWS), first + 1)
        yield first, last
        first = last


def _check_values(relevance: Tensor) -> None:
    if not relevance.numel():
        return
    lowest, highest = torch.aminmax(relevance)  # NaN if any is
    if not (lowest >= 0 and highest < torch.inf):
        wrong = relevance[~((relevance >= 0) & relevance.isfinite())][0]
        raise ValueError(f"relevance: got {wrong.item()}, expected every r(i, j) finite and at least 0")


def _sort_rows(relevance: Tensor, row: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Each row sorted by relevance, ties by place: the sorted relevances and places, (n,) each."""
    shift = int(place.max()).bit_length() if len(place) else 0
    key = relevance.view(torch.int32).long()  # floats of at least 0 sort as their bits do
    key.bitwise_left_shift_(shift).bitwise_or_(place).bitwise_or_(row << (31 + shift))
    if key.device.type == "cpu":
        key.numpy().sort()  # several times as fast as torch's; the keys differ, so all sorts give the same
    else:
        key = key.sort().values
    bits = (key >> shift) & (2**31 - 1)
    return bits.int().view(torch.float32), key & ((1 << shift) - 1)


def _row_sums(values: Tensor, count: Tensor) -> Tensor:
    """(n,) -> (rows,)."""
    return torch.segment_reduce(values, "sum", lengths=count, unsafe=True)


def _running_sums(weights: Tensor, count: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's running sums as whole numbers, from weights >= 0: (n,) int32, and the totals, (rows,)."""
    sums = _row_sums(weights, count)
    scale = torch.where(sums > 0, (TOTAL - count) / sums, 0)  # the rest is for rounding small ones up to 1
    running = (weights * at(scale, row)).long().add_(weights > 0).cumsum_(0)
    ends = torch.nn.functional.pad(running, (1, 0))[torch.nn.functional.pad(count.cumsum(0), (1, 0))]
    return running.sub_(at(ends, row)).int(), ends.diff()
