"""The paper's triplet draw, (6) to (8), where whole classes and their relevances are at hand."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dr_plugin.checks import check_flag, check_whole, shown
from dr_plugin.triplets.draws import NoTripletError, TripletDraw, Weighting, check_draw
from dr_plugin.triplets.layout import ClassLayout
from dr_plugin.triplets.rows import RelevanceRows, at
from dr_plugin.triplets.uniform import RANDOM_BITS, uniform_below

RandomBits = Callable[[tuple[int, ...]], Tensor]  # shape -> long, uniform over 0, ..., 2**62 - 1

_CHUNK = 2**16  # triplets that are drawn at once: what is computed of them stays in a core's cache
_GIVE_UP = 2**18  # triplets discarded in a row after which a draw is called hopeless


class RelevantTriplets:
    """Triplets in proportion to relevance, under the ranking order of the paper.

    A triplet's kind is drawn first: out of class with `out_of_class_ratio`, else in class. Then the query in
    proportion to r_q (6), the positive to min(T_p, r(q, p)) (7), and the negative

    - out of class: uniform over the references of the other classes; (8) does not bind it;
    - in class: in proportion to min(T_p, r(q, n)), over the class without query and positive. If not
      r(q, p) - r(q, n) >= T_r and r(q, p) > r(q, n) (8), only the negative is drawn again; after
      `max_trials` failures the triplet is discarded, and another is begun, with a new query of its kind.

    So the share of out-of-class triplets is the one asked for, whatever fails. The trials are not made one by
    one: a draw costs three bisections, however many trials it stands for. Corner cases:

    - An image without other references of its class, or with r_q = 0, is no query, but may be a negative.
    - A triplet that cannot be finished is not begun: an in-class query must have a positive and a negative
      that satisfy (8), an out-of-class query a reference of another class.
    - Equal relevances: there is no in-class triplet, and at ratio 1 the draw is that of `UniformTriplets`.
    - Probabilities are exact to about 2**-31; no positive weight becomes 0, however small beside others.
    - 10 bytes of memory an entry (12 if a class has over 2**15 references), `values` not counted: these are
      read once.

    Args:
        layout: The rows of entries.
        values: r of each entry of the layout, such as `class_entries` gives; a memory map will do.
        query_weights: In place of r_q, the row's sum of r times `candidate_weights`.
        candidate_weights: A factor for each reference in the draws of positives and in-class negatives: 1 /
            r_j, say, where the references came from a buffer that holds them in proportion to r_j.
        out_of_class_ratio: Share of the triplets whose negative is of another class, 0 to 1.
        relevance_threshold: T_p > 0; None: no threshold.
        relevance_margin: T_r >= 0.
        weighting: "relevance" as above; "uniform" draws query (of those with a weight above 0), positive and
            in-class negative uniformly, times `candidate_weights`, still under (8), as in Fig. 6's baseline.
        equal_classes: Draw the query's class uniformly instead of by its total weight.
        max_trials: Draws of an in-class negative before the triplet is discarded; at least 1.
        zero_relevance_negatives: For graded relevance, with a layout of one class: "in class" is what has r(q,
            .) > 0, "out of class" what has r(q, .) = 0, from which that negative is uniform.
    Attributes:
        queries: Images that have a weight and a positive, ascending.
        in_class_queries: Those that in-class triplets begin with.
        out_of_class_queries: Those that out-of-class triplets begin with.
    Shape:
        values (E,) float32, query_weights (B,), candidate_weights (M,).
    Raises:
        ValueError: if shapes do not match the layout, a relevance or weight is negative, infinite or NaN, or
            an argument is out of range.
    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 5.1.
    Example:
        >>> layout = ClassLayout(torch.tensor([0, 0, 0, 1]))
        >>> r = torch.tensor([0, 2, 1, 2, 0, 1, 1, 1, 0, 0.0])  # r(0, 1) = 2, r(0, 2) = r(1, 2) = 1
        >>> triplets = RelevantTriplets(layout, r, out_of_class_ratio=0.0)
        >>> triplets.in_class_queries
        tensor([0, 1])
        >>> draw = triplets.draw(5, lambda shape: torch.randint(1 << RANDOM_BITS, shape))
        >>> draw.negative
        tensor([2, 2, 2, 2, 2])
    """

    def __init__(
        self,
        layout: ClassLayout,
        values: Tensor | npt.NDArray[np.float32],
        *,
        query_weights: Tensor | None = None,
        candidate_weights: Tensor | None = None,
        out_of_class_ratio: float = 0.2,
        relevance_threshold: float | None = None,
        relevance_margin: float = 0.0,
        weighting: Weighting = "relevance",
        equal_classes: bool = False,
        max_trials: int = 100,
        zero_relevance_negatives: bool = False,
    ) -> None:
        check_draw(
            out_of_class_ratio=out_of_class_ratio,
            relevance_threshold=relevance_threshold,
            relevance_margin=relevance_margin,
            weighting=weighting,
            max_trials=max_trials,
        )
        if not isinstance(layout, ClassLayout):
            raise ValueError(f"layout: got {shown(layout)}, expected a ClassLayout")
        check_flag("equal_classes", equal_classes)
        check_flag("zero_relevance_negatives", zero_relevance_negatives)
        if zero_relevance_negatives and (layout.count < len(layout.references)).any():
            raise ValueError(
                "zero_relevance_negatives: got a layout of several classes, expected one class for all"
            )
        if query_weights is not None:
            query_weights = _weights(query_weights, "query_weights", layout.queries)[layout.queries]
        if candidate_weights is not None:
            candidate_weights = _weights(candidate_weights, "candidate_weights", layout.references)
        self._layout, self._margin, self._max_trials = layout, float(relevance_margin), max_trials
        self._ratio = int(float(out_of_class_ratio) * (1 << RANDOM_BITS))  # of the random numbers
        self._zero_negatives = zero_relevance_negatives
        self._rows = rows = RelevanceRows(
            layout,
            values,
            threshold=None if relevance_threshold is None else float(relevance_threshold),
            candidate_weights=candidate_weights,
            uniform=weighting == "uniform",
            positive_only=zero_relevance_negatives,
        )
        weights = rows.sums if query_weights is None else query_weights
        weights = weights * (rows.total > 0) * (rows.sums > 0)
        if weighting == "uniform":
            weights = (weights > 0).double()
        self._set_queries(weights, layout.start if equal_classes else None)

    def _set_queries(self, weights: Tensor, classes: Tensor | None) -> None:
        """What the queries of each kind are and how they are drawn, from the rows' weights."""
        rows, layout = self._rows, self._layout
        self._out_of_class = rows.zeros if self._zero_negatives else len(layout.references) - layout.count
        inside = weights * self._satisfies(rows.highest, rows.lowest)
        outside = weights * (self._out_of_class > 0)
        self.queries, self.in_class_queries, self.out_of_class_queries = (
            layout.queries[kind > 0].sort().values for kind in (weights, inside, outside)
        )
        self._in_class_sums, self._out_of_class_sums = (
            _query_sums(kind, classes) for kind in (inside, outside)
        )

    def check(self) -> None:
        """Refuse a ratio that asks for triplets of a kind of which there are none; `draw` does so first of all.

        Raises:
            NoTripletError: if so; a ValueError.
        """
        if self._ratio > 0 and not len(self.out_of_class_queries):
            what = "of relevance 0" if self._zero_negatives else "of another class"
            raise NoTripletError(
                f"out_of_class_ratio: got one above 0, but no image has both a relevant positive and a "
                f"reference {what}: expected 0"
            )
        if self._ratio < 1 << RANDOM_BITS and not len(self.in_class_queries):
            raise NoTripletError(
                f"out_of_class_ratio: got one below 1, but no image has two references in its class whose "
                f"relevances differ, by relevance_margin={self._margin} or more: expected 1, or a smaller margin"
            )

    def draw(self, count: int, random_bits: RandomBits) -> TripletDraw:
        """Draw independent triplets.

        Args:
            count: T, how many; at least 0.
            random_bits: Gives random numbers of any shape, independent and uniform over 0, ..., 2**62 - 1. It
                is called several times; the same numbers give the same triplets.
        Raises:
            ValueError: as `check`, or if (8) holds so rarely that 2**18 triplets in a row were discarded.
        """
        count = check_whole("count", count, minimum=0, below=2**31)
        self.check()
        device = self._layout.offset.device
        counters = dict.fromkeys(("accepted", "rejected", "discarded", "in_class", "out_of_class"), 0)
        triplets = torch.empty(3, count, dtype=torch.long, device=device)
        for start in range(0, count, _CHUNK):
            part = triplets[:, start : start + _CHUNK]
            self._draw_into(part, lambda *shape: random_bits(shape).to(device), counters)
        query, positive, negative = triplets
        return TripletDraw(query, positive, negative, counters)

    def _draw_into(self, triplets: Tensor, bits: Callable[..., Tensor], counters: dict[str, int]) -> None:
        """Fill (3, n) and count."""
        kinds = bits(triplets.shape[1]) < self._ratio
        out, inside = torch.nonzero(kinds).squeeze(1), torch.nonzero(~kinds).squeeze(1)
        if len(out):
            triplets.index_copy_(1, out, self._out_of_class_triplets(len(out), bits))
        if len(inside):
            triplets.index_copy_(1, inside, self._in_class_triplets(len(inside), bits, counters))
        counters["accepted"] += triplets.shape[1]
        counters["out_of_class"] += len(out)
        counters["in_class"] += len(inside)

    def _out_of_class_triplets(self, count: int, bits: Callable[..., Tensor]) -> Tensor:
        """(3, count), query, positive and negative."""
        row = torch.searchsorted(self._out_of_class_sums, bits(count), right=True)
        positive = self._rows.reference(row, self._rows.draw(row, bits(count)))
        if self._zero_negatives:
            negative = self._rows.reference(row, self._rows.draw_zero(row, bits(count)))
        else:
            place = uniform_below(bits(count), at(self._out_of_class, row))
            start, skipped = at(self._layout.start, row), at(self._layout.count, row)
            place += skipped * (place >= start)  # what is not of the query's class
            negative = at(self._layout.references, place)
        return torch.stack((at(self._layout.queries, row), positive, negative))

    def _in_class_triplets(
        self, wanted: int, bits: Callable[..., Tensor], counters: dict[str, int]
    ) -> Tensor:
        """(3, wanted): the first so many that are accepted. What comes after these counts as never begun."""
        parts: list[Tensor] = []
        begun = found = idle = 0
        attempts = wanted
        while found < wanted:
            triplets, failures = self._attempt(attempts, bits)
            accepted = torch.nonzero(failures < self._max_trials).squeeze(1)[: wanted - found]
            parts.append(triplets[:, accepted])
            found += len(accepted)
            last = int(accepted[-1]) + 1 if found == wanted else attempts
            begun += last
            counters["rejected"] += int(failures[:last].sum())
            idle = 0 if len(accepted) else idle + last
            # Enough, most likely, to be the last: by the share that was accepted so far, and some more.
            attempts = min((wanted - found) * (begun + 1) * 5 // (found + 1) // 4 + 16, _CHUNK)
            if idle >= _GIVE_UP:
                raise NoTripletError(
                    f"relevance_margin: got {self._margin}, which so few in-class pairs have that {idle} "
                    f"triplets in a row were discarded; expected a smaller margin, or more max_trials"
                )
        counters["discarded"] += begun - found
        return torch.cat(parts, dim=1)

    def _attempt(self, count: int, bits: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """Begin in-class triplets: (3, count), and how often the negative failed, (count,).

        Negatives are not tried one by one. Where a share s of them (by weight) satisfies (8), the first that
        does so comes after k failures or more with probability (1 - s)**k, and is any of that share by weight:
        the number of failures is drawn, and the negative. At `max_trials` failures the triplet is discarded,
        and its negative means nothing.
        """
        rows = self._rows
        row = torch.searchsorted(self._in_class_sums, bits(count), right=True)
        positive = rows.draw(row, bits(count))
        end = rows.end_of_values(row, positive, self._highest_negative(at(rows.values, positive)))
        satisfying = rows.weight_below(row, end)
        share = satisfying.double() / (at(rows.total, row) - rows.weight(row, positive))
        chance = (bits(count) + 1).double() / (1 << RANDOM_BITS)  # above 0, at most 1
        failures = torch.where(satisfying > 0, chance.log() / torch.log1p(-share), torch.inf)
        negative = rows.draw_below(row, torch.where(satisfying > 0, end, positive + 1), bits(count))
        chosen = at(self._layout.queries, row), rows.reference(row, positive), rows.reference(row, negative)
        return torch.stack(chosen), failures.clamp(max=self._max_trials).long()

    def _highest_negative(self, positive: Tensor) -> Tensor:
        """The highest relevance, as float32, that satisfies (8) with the positive's."""
        bound = (positive.double() - self._margin).float()
        below = torch.nextafter(bound, torch.full_like(bound, -torch.inf))
        return torch.where(self._satisfies(positive, bound), bound, below)

    def _satisfies(self, positive: Tensor, negative: Tensor) -> Tensor:
        """(8), of relevances. In float64, where their difference is not rounded."""
        difference = positive.double() - negative
        return (difference >= self._margin) & (difference > 0)


def _query_sums(weights: Tensor, classes: Tensor | None) -> Tensor:
    """Running sums (rows,) of whole numbers; a random number draws the first row whose sum is above it.

    They add up to exactly 2**62, in proportion to the weights, of which none becomes 0; or, given the rows'
    classes (in blocks), so that each class with a weight has an equal share.
    """
    positive = weights > 0
    if not positive.any():
        return torch.zeros_like(weights, dtype=torch.long)
    if classes is None:
        shares = weights / weights.sum()
    else:
        _, place, count = torch.unique_consecutive(classes, return_inverse=True, return_counts=True)
        sums = torch.segment_reduce(weights, "sum", lengths=count, unsafe=True)
        shares = torch.where(positive, weights / at(sums, place), 0) / (sums > 0).sum()
    whole = (shares * ((1 << RANDOM_BITS) - len(weights))).long() + positive
    whole[whole.argmax()] += (1 << RANDOM_BITS) - whole.sum()  # what was lost in rounding
    return whole.cumsum(0)


def _weights(weights: Tensor, name: str, images: Tensor) -> Tensor:
    """Checked, float64, the largest of them 1."""
    if weights.shape != images.shape:
        raise ValueError(f"{name}: got shape {tuple(weights.shape)}, expected {tuple(images.shape)}")
    weights = weights.detach().to(images.device, torch.float64)
    if not ((weights >= 0) & weights.isfinite()).all():
        raise ValueError(f"{name}: got one that is negative, infinite or NaN, expected finite, at least 0")
    largest = weights.max() if len(weights) else 1.0
    return weights / largest if largest > 0 else weights
