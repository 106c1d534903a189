"""The paper's triplet draw, (6) to (8), from what class reservoirs hold of a stream."""

import numpy as np

from dr_plugin.triplets.candidates import (
    BYSTANDER,
    Acceptance,
    Arrivals,
    BufferPicks,
    ByItem,
    Pairs,
    Reservoirs,
)
from dr_plugin.triplets.draws import NoTripletError, TripletDraw, Weighting, check_draw
from dr_plugin.triplets.filling import AT_ONCE, Filling, Options, Triplets

__all__ = ["BYSTANDER", "NoTripletError", "StreamedTriplets"]


class StreamedTriplets:
    """Triplets in proportion to relevance from a stream, whose images are held in one reservoir a class.

    The law is that of `RelevantTriplets`, over all that was streamed, as long as the reservoirs' draws are exact:

    - A class by its total weight, then the query by r_q within it.
    - The positive: draws in proportion to r_x are accepted with probability min(T_p, r(q, x)) / r_x, times a
      constant of the query's that keeps it at most 1. So it comes in proportion to min(T_p, r(q, x)), eq. (7).
    - The in-class negative in the same way, query and positive left out; drawn again until (8) holds, and after
      `max_trials` failures the triplet is discarded for another of its kind, with a new query.
    - The out-of-class negative is uniform over what the reservoirs of the other classes hold.

    Differs from the paper in the acceptance, whose printed form has no T_p and nothing that makes it frequent.
    Corner cases:

    - Query and positive need a class that holds two images, an in-class negative one that holds three.
    - A search that 4096 candidates did not end discards the triplet: where no image held is relevant to the query.
    - `pairs=None` needs `out_of_class_ratio=1`: the positive then comes in proportion to r_x.
    - `exact=False` is the paper's approximate reading: every draw by weight is a uniform one from the buffer.

    Draws that exceed what the reservoirs can supply exactly are counted, as is all under `exact=False`.

    Args:
        reservoirs: The images' r_x are their weights. They may stream on between draws. Under "uniform" the weights
            must be alike. An image of weight `BYSTANDER` is only an out-of-class negative.
        pairs: r(i, j) of held images by their numbers: (n,), (n,) -> (n,).
        out_of_class_ratio: Share of the triplets whose negative is of another class, 0 to 1.
        relevance_threshold: T_p > 0; None: no threshold.
        relevance_margin: T_r >= 0; at 0 the order must still be strict.
        weighting: "relevance", or "uniform" for uniform query, positive and in-class negative, still under (8).
        equal_classes: Draw the query's class uniformly instead of by its total weight.
        max_trials: Draws of an in-class negative before the triplet is discarded, at least 1.
        exact: Draw by weight, or uniformly from the buffers.
        weights: r_x of images by their numbers; None: looked up in the reservoirs. One with 0 is no query.
        bounds: For queries, no less than the largest min(T_p, r(q, x)) / r_x of their class; None: learned from the
            pairs that come along, where a triplet with a pair above what was known counts as inexact.
    Raises:
        ValueError: if an argument is out of range; in `draw`, if `pairs` gives something else than finite numbers, at
            least 0.
        NoTripletError: a ValueError; in `draw`, if a kind of triplet cannot be drawn from what is held.
    Example:
        >>> from dr_plugin.reservoirs import ClassReservoirs
        >>> reservoirs = ClassReservoirs(2, seed=0)
        >>> reservoirs.extend([0, 1, 2, 3], [0, 0, 1, 1], [1.0, 1.0, 2.0, 2.0])
        >>> draw = StreamedTriplets(reservoirs, None, out_of_class_ratio=1.0).draw(5, np.random.default_rng(0))
        >>> draw.query // 2 == draw.positive // 2
        tensor([True, True, True, True, True])

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 5.1.
    """

    def __init__(
        self,
        reservoirs: Reservoirs,
        pairs: Pairs | None,
        *,
        out_of_class_ratio: float = 0.2,
        relevance_threshold: float | None = None,
        relevance_margin: float = 0.0,
        weighting: Weighting = "relevance",
        equal_classes: bool = False,
        max_trials: int = 100,
        exact: bool = True,
        weights: ByItem | None = None,
        bounds: ByItem | None = None,
    ) -> None:
        check_draw(
            out_of_class_ratio=out_of_class_ratio,
            relevance_threshold=relevance_threshold,
            relevance_margin=relevance_margin,
            weighting=weighting,
            max_trials=max_trials,
        )
        if pairs is None and out_of_class_ratio < 1:
            raise ValueError(
                f"out_of_class_ratio: got {out_of_class_ratio} without pairs, expected 1: "
                "only relevance says which in-class image is a negative"
            )
        self._reservoirs, self._ratio = reservoirs, out_of_class_ratio
        self._options = Options(float(relevance_margin), max_trials, equal_classes, exact, weights)
        self._accept = Acceptance(
            reservoirs,
            pairs,
            threshold=None if relevance_threshold is None else float(relevance_threshold),
            thinned=pairs is not None and weighting == "relevance",
            weights=weights,
            bounds=bounds,
        )

    def draw(self, count: int, rng: np.random.Generator) -> TripletDraw:
        """Draw `count` independent triplets."""
        return self.draw_batches(1, count, rng)[0]

    def draw_batches(self, batches: int, size: int, rng: np.random.Generator) -> list[TripletDraw]:
        """Draw several batches of `size` triplets at once, which is faster than one by one."""
        in_class = rng.random(batches * size) >= self._ratio
        triplets = Triplets.empty(len(in_class))
        reservoirs, exact = self._reservoirs, self._options.exact
        source = Arrivals(reservoirs) if exact else BufferPicks(reservoirs, rng)
        for kind in (False, True):
            places = np.flatnonzero(in_class == kind)
            if len(places):
                filling = Filling(reservoirs, self._accept, self._options, source, kind, rng)
                for start in range(0, len(places), AT_ONCE):
                    filling.fill(triplets, places[start : start + AT_ONCE])
        parts = [slice(batch * size, (batch + 1) * size) for batch in range(batches)]
        return [triplets.cut(part, in_class[part]) for part in parts]
