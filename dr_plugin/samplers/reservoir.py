"""Batches of relevance-weighted triplets of a data set: the paper's importance sampling."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dr_plugin.checks import as_number, check_flag, check_whole, check_whole_or_none, shown
from dr_plugin.samplers.class_rows import Progress
from dr_plugin.samplers.packaged import (
    Labels,
    PackagedTripletSampler,
    as_classes,
    check_batch_size,
    checksum,
)
from dr_plugin.samplers.reservoir_passes import ReservoirPasses
from dr_plugin.samplers.triplet_counts import TripletCounts
from dr_plugin.samplers.whole_classes import WholeClasses
from dr_plugin.triplets import Relevance, TripletDraw, Weighting, as_relevance, check_draw


class ReservoirTripletSampler(PackagedTripletSampler):
    """Batches of triplets in proportion to relevance: a flat list query, positive, negative, query, ... of indices.

    A triplet's kind is drawn first, out of class with `out_of_class_ratio`. Then a class by its total relevance, the
    query by r_q (6) within it, the positive by min(T_p, r(q, p)) (7), and the negative: out of class uniformly from
    the other classes; in class by min(T_p, r(q, n)), again and again until r(q, p) - r(q, n) >= T_r and
    r(q, p) > r(q, n) (8). After `max_trials` failures the triplet is discarded for another of its kind, so that the
    ratio stays the one asked for. Triplets are independent. For PML's `MetricLossOnly(sampler=...)` with the miner
    `EmbeddingsAlreadyPackagedAsTriplets`.

    - `capacity=None` holds all relevances within classes, 10 bytes for each, and follows the law exactly. Batch b of
      epoch e depends on (seed, e, b) and the data only.
    - With a capacity, no more than so many images of each class are held: the data set's numbers stream through
      weighted reservoirs, and the triplets are drawn from what these hold, out-of-class negatives uniformly. Memory
      is a few numbers an image. The law is the same as long as the reservoirs' draws are exact, which they are for
      about `capacity` draws by weight of each class, of which a triplet takes several; then the images stream anew.
      How often is set by `triplets_per_image`. Triplets that a draw beyond that went into are counted as inexact.
      Batch b of epoch e depends on (seed, e, b), the arguments and the data only.
    - An image that is relevant to none is no query, but may be an out-of-class negative.
    - `labels=None` (graded relevance): all images are one class, "in class" is what is relevant to the query, "out of
      class" what has relevance 0 to it. For at most 23,170 images, and not with a capacity.

    To resume: loader workers ask for batches well ahead of the training, so where in which epoch the training is only
    its loop can say. It takes `epoch, start = sampler.position` before each pass, and saves
    `sampler.state_dict(epoch, start + batches_trained_on)` in the middle of one, or `state_dict()` between two. The
    relevance must be the same when it is loaded.

    Args:
        labels: The data set's classes, in its order; any integers; or None.
        relevance: r(i, j) of the images: an object with len, `pairs` and `total`, or an (N, N) array.
        batch_size: Images a batch, three for each triplet: a positive multiple of 3.
        capacity: Images held of each class, at least 3 (2 where `out_of_class_ratio` is 1); None: whole classes.
        out_of_class_ratio: Share of the triplets whose negative is of another class, 0 to 1.
        relevance_threshold: T_p > 0; None: no threshold.
        relevance_margin: T_r >= 0; at 0 the order must still be strict.
        weighting: "relevance", or "uniform" for the baseline of Fig. 6: query (of those relevant to another), positive
            and in-class negative uniform, still under (8).
        equal_classes: Draw the query's class uniformly instead of by its total weight.
        max_trials: Draws of an in-class negative before the triplet is discarded, at least 1.
        exact: With a capacity: False is the paper's approximate reading, all draws uniform from the buffers.
        triplets_per_image: With a capacity: triplets drawn for each image streamed. None: so many that most draws are
            exact, about capacity / (16 x the images of a class).
        batches_per_epoch: Batches an epoch; None: as many as it takes to draw as many images as there are.
        seed: At least 0.
        progress: Called as progress("reading relevances", images done, N) while the sampler is built.
    Attributes:
        counters: Of all batches given so far: triplets `accepted`, of them `in_class`, `out_of_class` and `inexact`;
            in-class negatives `rejected` by (8), triplets `discarded` (of whole classes, these two run up to 2**14
            triplets ahead); `distinct_images` used.
    Shape:
        labels (N,), relevance (N, N) -> lists of batch_size ints.
    Raises:
        ValueError: if an argument is out of range, labels and relevance do not match, a relevance is negative,
            infinite, NaN or (in an array) not symmetric, a wanted kind of triplet does not exist, or the relevances
            are too many to be held; while batches are drawn, if (8) is hardly ever satisfied.
    Example:
        >>> relevance = [[0, 2, 1, 0], [2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
        >>> sampler = ReservoirTripletSampler([0, 0, 0, 1], relevance, batch_size=3, out_of_class_ratio=0.0)
        >>> [sorted(query_positive_negative) for query_positive_negative in sampler]
        [[0, 1, 2], [0, 1, 2]]

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 5.1.
    """

    def __init__(
        self,
        labels: Labels | None,
        relevance: Relevance | npt.ArrayLike | Tensor,
        *,
        batch_size: int,
        capacity: int | None = None,
        out_of_class_ratio: float = 0.2,
        relevance_threshold: float | None = None,
        relevance_margin: float = 0.0,
        weighting: Weighting = "relevance",
        equal_classes: bool = False,
        max_trials: int = 100,
        exact: bool = True,
        triplets_per_image: float | None = None,
        batches_per_epoch: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        batch_size = check_batch_size(batch_size)
        draw = check_draw(
            out_of_class_ratio=out_of_class_ratio,
            relevance_threshold=relevance_threshold,
            relevance_margin=relevance_margin,
            weighting=weighting,
            max_trials=max_trials,
        )
        draw["equal_classes"] = check_flag("equal_classes", equal_classes)
        stream: dict[str, Any] = {
            "capacity": capacity,
            "exact": exact,
            "triplets_per_image": triplets_per_image,
        }
        _check_stream(**stream, labelled=labels is not None, fewest=2 if out_of_class_ratio == 1 else 3)
        classes, checked = _classes_and_relevance(labels, relevance)
        batches_per_epoch = check_whole_or_none("batches_per_epoch", batches_per_epoch, minimum=1)
        if batches_per_epoch is None:
            batches_per_epoch = -(-len(classes) // batch_size)
        super().__init__(
            len(classes),
            batch_size=batch_size,
            batches_per_epoch=batches_per_epoch,
            seed=seed,
            same={"labels_crc32": checksum(torch.from_numpy(classes)), **stream, **draw},
        )
        self._counts = TripletCounts(len(classes))
        common: dict[str, Any] = {"size": batch_size // 3, "batches_per_epoch": batches_per_epoch}
        common |= {"seed": seed, "progress": progress}
        self._draws: WholeClasses | ReservoirPasses
        if capacity is None:
            self._draws = WholeClasses(checked, classes, graded=labels is None, draw=draw, **common)
        else:
            self._draws = ReservoirPasses(checked, classes, **stream, draw=draw, **common)

    @property
    def counters(self) -> dict[str, int]:
        """What was counted since the sampler was built, or went on from a state."""
        return self._counts.all()

    def batch(self, epoch: int, index: int) -> list[int]:
        """Batch `index` of `epoch`: query, positive, negative, query, ...; not counted."""
        epoch = check_whole("epoch", epoch, minimum=0)
        index = check_whole("index", index, minimum=0, below=self.batches_per_epoch)
        return _flat(self._draws.batch(epoch, index))

    def state_dict(self, epoch: int | None = None, batches_consumed: int = 0) -> dict[str, Any]:
        """As the base's, with the counters as of there."""
        state = super().state_dict(epoch, batches_consumed)
        return {**state, **self._counts.state(epoch, batches_consumed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As the base's; the counters go on too."""
        super().load_state_dict(state)
        self._counts.load(state)

    def _batches(self, epoch: int, start: int) -> Iterator[list[int]]:
        self._counts.begin(epoch, start)
        for index in range(start, self.batches_per_epoch):
            draw = self._draws.batch(epoch, index)
            self._counts.add(draw)
            yield _flat(draw)


def _flat(draw: TripletDraw) -> list[int]:
    batch: list[int] = torch.stack(draw[:3], dim=1).flatten().tolist()
    return batch


def _classes_and_relevance(
    labels: Labels | None, relevance: Relevance | npt.ArrayLike | Tensor
) -> tuple[npt.NDArray[np.int64], Relevance]:
    """Classes 0, 1, ... (N,), and a relevance that matches them."""
    if relevance is None:
        raise ValueError("relevance: got None, expected a relevance object or an (N, N) array")
    if labels is None:
        if not hasattr(relevance, "__len__"):
            raise ValueError(
                f"relevance: got {shown(relevance)}, expected a relevance object or an (N, N) array"
            )
        count = len(relevance)  # type: ignore[arg-type]
        if count == 0:
            raise ValueError("relevance: got no images, expected some")
        return np.zeros(count, np.int64), as_relevance(relevance, None, count)
    array = as_classes(labels).numpy()
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels: got {array.dtype}, expected integers (N,)")
    classes = np.unique(array, return_inverse=True)[1].astype(np.int64)
    return classes, as_relevance(relevance, classes, len(classes))


def _check_stream(
    *, capacity: object, exact: object, triplets_per_image: object, labelled: bool, fewest: int
) -> None:
    check_flag("exact", exact)
    if capacity is None:
        if not exact or triplets_per_image is not None:
            raise ValueError(
                f"capacity: got None with exact={exact}, triplets_per_image={shown(triplets_per_image)}, which are for "
                "reservoirs: expected a capacity, or neither of them"
            )
        return
    if not labelled:
        raise ValueError(
            f"capacity: got {shown(capacity)} without labels, expected None: the buffers are one for each class; "
            "give labels, or hold all relevances"
        )
    check_whole("capacity", capacity, minimum=fewest, below=2**31)
    if triplets_per_image is None:
        return
    if not 0 < as_number(triplets_per_image) < math.inf:
        raise ValueError(
            f"triplets_per_image: got {shown(triplets_per_image)}, expected a finite number above 0, or None"
        )
