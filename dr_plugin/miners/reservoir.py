"""The paper's importance sampling, with the batch as its stream."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dr_plugin.checks import check_flag, check_length, check_whole_or_none
from dr_plugin.miners.batch_buffers import fill_buffers
from dr_plugin.miners.random_triplets import RandomTripletMiner, Triplets
from dr_plugin.triplets import (
    RANDOM_BITS,
    ClassLayout,
    NoTripletError,
    Relevance,
    RelevantTriplets,
    TripletDraw,
    as_relevance,
    check_draw,
)
from dr_plugin.triplets.embedding import check_embedding_kernel, embedding_values
from dr_plugin.triplets.layout import relevance_values
from dr_plugin.triplets.relevances import same_classes


class ReservoirTripletMiner(RandomTripletMiner):
    """Draw triplets of the batch in proportion to relevance, as Deep Ranking does from its stream.

    A query comes in proportion to its total relevance r_i in the batch (6), its positive to min(T_p, r) (7). A share
    `out_of_class_ratio` of the negatives is uniform over the images of the other classes; the others are drawn like
    the positive from the query's class, under r(q, p) - r(q, n) >= T_r (8), and strictly in that order.
    T = triplets_per_query x the images that have a positive and a negative; a triplet may come twice.

    The relevance is

    - external (`relevance`), by image index: call `miner.observe(indices)` before each forward. Ratio 0.2 by default.
      In plain PML one line in `data_and_label_getter` does it, where the data set returns its index.
    - or, without one, the kernel of the current embeddings, l2-normalised and in float32. It only weights queries and
      positives, and the ratio is 1.0: in-class negatives would confirm the ranking that is being trained.

    - Singletons are no queries, but may be out-of-class negatives. Where a kind of triplet cannot be had in a batch
      (one class only; no two relevances in strict order, T_r apart), its share is left out: there are fewer
      triplets, or none, and training goes on. `discarded` counts what was given up after `max_trials`.
    - With `ref_emb` and `ref_labels` (a memory), positives and negatives index the references, and these are the
      stream; where they are the batch itself, an image is not its own positive, nor is a reference with the very
      same embedding, or image index: a memory may hold the image itself.
    - `buffer_size`: a class with more references than that keeps a weighted sample of them, and is read as in the
      paper, approximately (see `fill_buffers`). None holds whole classes, and the draws are exact.

    The random numbers come from a generator of the miner's own, which lives on the CPU unless another is given. Its
    state is part of `state_dict()`, and so are `counters`, running since construction: `accepted` triplets, those of
    them `in_class` and `out_of_class`, `rejected` in-class negatives, `discarded` triplets.

    Args:
        buffer_size: Images that a class's buffer holds, at least 1; None: all.
        relevance: A `Relevance` of the data set, or an (N, N) array; None: the current embeddings.
        out_of_class_ratio: Share of triplets with an out-of-class negative, 0 to 1; None: 0.2 with a relevance, 1.0
            without.
        relevance_threshold: T_p of (7), above 0; None: no threshold.
        relevance_margin: T_r of (8), at least 0.
        triplets_per_query: At least 1.
        weighting: "relevance", or "uniform": query, positive and in-class negative uniform, still under (8).
        equal_classes: Draw the queries' classes equally often rather than by their total relevance.
        max_trials: In-class negatives that are tried before a triplet is discarded.
        kernel, bandwidth: Of the current embeddings, see `embedding_values`.
        seed: Seed of the miner's generator, at least 0; None means 0.
        generator: Draw from this one instead; not together with `seed`.
        collect_stats: As in PML; `num_triplets`, `in_class`, `rejected` and `discarded` of the last batch are kept
            in any case.
    Shape:
        embeddings (B, D), labels (B,) integer, ref_emb (M, D), ref_labels (M,) integer -> 3 tensors (T,) long.
    Raises:
        ValueError: if an argument is out of range, in-class negatives are asked for without a relevance, the batch
            was not observed, or labels and references do not match.
    Example:
        >>> miner = ReservoirTripletMiner(triplets_per_query=2)
        >>> query, positive, negative = miner(torch.randn(4, 8), torch.tensor([0, 0, 1, 1]))
        >>> len(query)
        8

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 5.1.
    """

    def __init__(
        self,
        buffer_size: int | None = None,
        relevance: Relevance | npt.NDArray[np.floating[Any]] | None = None,
        out_of_class_ratio: float | None = None,
        relevance_threshold: float | None = None,
        relevance_margin: float = 0.0,
        *,
        triplets_per_query: int = 10,
        weighting: Literal["relevance", "uniform"] = "relevance",
        equal_classes: bool = False,
        max_trials: int = 100,
        kernel: str = "gaussian",
        bandwidth: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        collect_stats: bool | None = None,
    ) -> None:
        buffer_size = check_whole_or_none("buffer_size", buffer_size, minimum=1)
        ratio = (1.0 if relevance is None else 0.2) if out_of_class_ratio is None else out_of_class_ratio
        check_draw(
            out_of_class_ratio=ratio,
            relevance_threshold=relevance_threshold,
            relevance_margin=relevance_margin,
            weighting=weighting,
            max_trials=max_trials,
        )
        check_embedding_kernel(kernel, bandwidth)
        check_flag("equal_classes", equal_classes)
        if relevance is None and ratio != 1:
            raise ValueError(
                f"out_of_class_ratio: got {ratio} without a relevance, expected 1.0: in-class negatives ordered by the "
                "current embeddings would only confirm the ranking that is being trained; give a relevance"
            )
        super().__init__(triplets_per_query, seed=seed, generator=generator, collect_stats=collect_stats)
        self.buffer_size = buffer_size
        self.relevance = None
        if relevance is not None:
            count = check_length("relevance", relevance, "a relevance object or an (N, N) array")
            self.relevance = as_relevance(relevance, None, count)
        self.out_of_class_ratio = float(ratio)
        self.relevance_threshold, self.relevance_margin = relevance_threshold, relevance_margin
        self.weighting, self.equal_classes, self.max_trials = weighting, equal_classes, max_trials
        self.kernel, self.bandwidth = kernel, bandwidth
        self.counters = dict.fromkeys(("accepted", "rejected", "discarded", "in_class", "out_of_class"), 0)
        self.in_class = self.rejected = self.discarded = 0
        self._observed: tuple[Tensor, Tensor | None] | None = None
        self.add_to_recordable_attributes(list_of_names=["in_class", "rejected", "discarded"], is_stat=True)

    def observe(self, indices: Any, ref_indices: Any = None) -> None:
        """Tell which images of the data set the next batch holds, in order, and which its references, if any.

        Integers (B,), (M,): a tensor on any device (from a GPU the host waits for it), an array or a list.
        """
        if self.relevance is None:
            raise ValueError(
                "observe: got indices, but no relevance was given that they could be looked up in"
            )
        self._observed = (
            _indices(indices, "indices", len(self.relevance)),
            None if ref_indices is None else _indices(ref_indices, "ref_indices", len(self.relevance)),
        )

    def draw(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None
    ) -> Triplets:
        """Draw the triplets, on the CPU: of a GPU's embeddings only the relevances are copied, at one wait."""
        labels = labels.cpu()
        ref_labels = None if ref_labels is None else ref_labels.cpu()
        layout = ClassLayout(labels, ref_labels)
        if self.relevance is None:
            values = embedding_values(
                layout, embeddings, ref_emb, kernel=self.kernel, bandwidth=self.bandwidth
            ).cpu()
        else:
            count = None if ref_labels is None else len(ref_labels)
            values = self._external(self.relevance, layout, labels, count)
        count = self.triplets_per_query * self._queries(layout)
        kept, query_weights, candidate_weights = None, None, None
        sizes = (labels if ref_labels is None else ref_labels).unique(return_counts=True)[1]
        if self.buffer_size is not None and bool((sizes > self.buffer_size).any()):
            buffers = fill_buffers(
                labels,
                ref_labels,
                layout,
                values,
                self.buffer_size,
                weighted=self.weighting == "relevance",
                random_bits=self.random_bits,
            )
            kept, layout, values = buffers.kept, buffers.layout, buffers.values
            query_weights, candidate_weights = buffers.query_weights, buffers.candidate_weights
        drawn = self._draw(partial(self._triplets, layout, values, query_weights, candidate_weights), count)
        for name, number in drawn.counters.items():
            self.counters[name] += number
        self.in_class, self.rejected, self.discarded = (
            drawn.counters[name] for name in ("in_class", "rejected", "discarded")
        )
        if kept is None:
            return drawn.query, drawn.positive, drawn.negative
        query = kept[drawn.query] if ref_labels is None else drawn.query
        return query, kept[drawn.positive], kept[drawn.negative]

    def _triplets(
        self,
        layout: ClassLayout,
        values: Tensor,
        query_weights: Tensor | None,
        candidate_weights: Tensor | None,
        ratio: float,
    ) -> RelevantTriplets:
        return RelevantTriplets(
            layout,
            values,
            query_weights=query_weights,
            candidate_weights=candidate_weights,
            out_of_class_ratio=ratio,
            relevance_threshold=self.relevance_threshold,
            relevance_margin=self.relevance_margin,
            weighting=self.weighting,
            equal_classes=self.equal_classes,
            max_trials=self.max_trials,
        )

    def _external(
        self, relevance: Relevance, layout: ClassLayout, labels: Tensor, ref_count: int | None
    ) -> Tensor:
        """The relevance of each entry of the layout, by image index; 0 for an image with itself."""
        if self._observed is None:
            raise ValueError(
                "got a batch that was not observed, expected miner.observe(indices) before each forward"
            )
        (images, others), self._observed = self._observed, None
        got = (len(images), None if others is None else len(others))
        if got != (len(labels), ref_count):
            raise ValueError(
                f"observe: got {got[0]} indices and {got[1]} ref_indices, expected {len(labels)} and {ref_count}, as "
                "in the batch; under DistributedMinerWrapper gather the indices as it gathers the embeddings, the own "
                "rank's first; a memory such as ReservoirMemory does not know its images' indices: leave relevance out"
            )
        own = getattr(relevance, "labels", None)
        if own is not None and not same_classes(np.asarray(own)[images.numpy()], labels.numpy()):
            raise ValueError(
                "observe: got images of other classes than the batch's labels, expected the batch's images in its "
                "order, as indices into the data set that the relevance was made for"
            )
        others = images if others is None else others
        return relevance_values(layout, relevance, images, others)

    def _queries(self, layout: ClassLayout) -> int:
        """How many images have a positive and a negative, by their labels."""
        positives = layout.count - int(layout.own)
        out_of_class = (layout.count < len(layout.references)) & (self.out_of_class_ratio > 0)
        in_class = (positives > 1) & (self.out_of_class_ratio < 1)
        return int(((positives > 0) & (out_of_class | in_class)).sum())

    def _draw(self, draws: Callable[[float], RelevantTriplets], count: int) -> TripletDraw:
        """Draw `count` triplets, less the share of a kind that cannot be had; `draws` makes one of a ratio."""
        ratio, drawn = self.out_of_class_ratio, None
        none = torch.zeros(0, dtype=torch.long)
        nothing = TripletDraw(none, none, none, dict.fromkeys(self.counters, 0))
        if count == 0:
            return nothing
        triplets = draws(ratio)
        in_class = ratio == 1 or len(triplets.in_class_queries) > 0  # not in the way, at least
        out_of_class = ratio == 0 or len(triplets.out_of_class_queries) > 0
        if in_class and out_of_class:
            drawn = self._attempt(triplets, count)
            in_class = False  # where that was given up
        if drawn is None:
            out = int((self.random_bits((count,)) < int(ratio * (1 << RANDOM_BITS))).sum())
            share = count - out if in_class else out if out_of_class else 0
            drawn = self._attempt(draws(0.0 if in_class else 1.0), share) if share else None
        drawn = drawn or nothing
        drawn.counters["discarded"] += count - len(drawn.query)
        return drawn

    def _attempt(self, triplets: RelevantTriplets, count: int) -> TripletDraw | None:
        """None where the draw gives up, as (8) holds too rarely: one batch does not end the training."""
        try:
            return triplets.draw(count, self.random_bits)
        except NoTripletError:
            return None

    def get_extra_state(self) -> dict[str, Any]:
        """The generator's state and the counters, for `state_dict()`."""
        return {"generator": super().get_extra_state(), "counters": dict(self.counters)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        super().set_extra_state(state["generator"])
        self.counters = dict(state["counters"])


def _indices(given: Any, name: str, count: int) -> Tensor:
    """As a (B,) long tensor on the CPU, below `count`."""
    indices = torch.as_tensor(given).detach().cpu()
    if indices.ndim != 1 or (len(indices) and (indices.is_floating_point() or indices.dtype == torch.bool)):
        raise ValueError(
            f"{name}: got {indices.dtype} of shape {tuple(indices.shape)}, expected whole numbers of shape (B,)"
        )
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < count:
        raise ValueError(
            f"{name}: got {int(indices.min())} to {int(indices.max())}, expected indices of the {count} images of the "
            "relevance"
        )
    return indices.long()
