"""The ranking loss of Deep Ranking, on explicit triplets."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.distances.base_distance import BaseDistance
from pytorch_metric_learning.reducers import AvgNonZeroReducer
from pytorch_metric_learning.reducers.base_reducer import BaseReducer
from torch import Tensor

from dr_plugin.checks import check_number
from dr_plugin.losses.explicit_triplets import SquaredMargins, TripletMargins, WideLoss, as_triplets
from dr_plugin.losses.row_distance import prepared, row_distance
from dr_plugin.triplets.embedding import at_least_float32

_KNOWN = (
    "LpDistance, CosineSimilarity, DotProductSimilarity or SNRDistance; for another one use PML's "
    "TripletMarginLoss(margin=gap, distance=...), which computes the whole matrix"
)


class AsyncAvgNonZeroReducer(AvgNonZeroReducer):
    """Mean of the losses above 0, as PML's `AvgNonZeroReducer`, computed without asking how many those are.

    sum(max(0, losses)) / max(1, number of losses above 0). PML selects the losses by a mask, whose length the
    host has to wait for when they are on a GPU; here nothing is read back, unless `collect_stats` asks for
    PML's counts.

    - None above 0: 0, attached to the graph.
    - A loss that is NaN makes the mean NaN; PML's leaves it out.

    Args:
        collect_stats: As in PML.
    Shape:
        losses (T,) -> scalar of their dtype.
    Example:
        >>> reducer = AsyncAvgNonZeroReducer()
        >>> losses = {"losses": torch.tensor([0.0, 1, 3]), "indices": torch.arange(3)}
        >>> reducer({"loss": {**losses, "reduction_type": "element"}}, torch.zeros(3, 2), None)
        tensor(2.)
    """

    def element_reduction_helper(self, losses: Tensor, embeddings: Tensor) -> Tensor:
        """What PML calls for losses of elements, pairs and triplets alike."""
        if len(losses) == 0:
            nothing: Tensor = self.zero_loss(embeddings)
            return nothing
        above = losses > 0
        count = above.sum()
        if self.collect_stats:
            self.set_stats(above, None, int(count))
        # A sum of half precision losses may overflow where their mean does not.
        return (at_least_float32(losses).relu().sum() / count.clamp(min=1)).to(losses.dtype)


class DeepRankingLoss(WideLoss):
    """Hinge on how much nearer the positive is to the query than the negative is.

    max(0, gap + D(query, positive) - D(query, negative)), eq. (3), with D the squared Euclidean distance of
    unit-norm embeddings unless another is given. Value and gradient are those of PML's
    `TripletMarginLoss(margin=gap, distance=LpDistance(power=2))`, but for many embeddings only the T distances asked
    for are computed, not the (B, M) matrix, and in chunks, so that the memory does not grow with T x D. Where that
    matrix has at most 128 entries a triplet it is the faster way, and taken for the distance above.

    - No triplets: 0, attached to the graph.
    - `indices_tuple=None` means all triplets of the labels, as in PML, and pairs (a1, p, a2, n) are joined on
      the anchor, as PML does. Both take O(B M M) and O(pairs x pairs) memory: above 2**30 entries they are
      refused.
    - Half precision embeddings, and those made under autocast, are taken to float32 first.
    - For similarities (`CosineSimilarity`, `DotProductSimilarity`) the hinge is turned round, as in PML.
    - It can be differentiated once, not twice.

    Differs from the paper in: the default reducer, as PML's, is the mean over the triplets that cost
    something (`AsyncAvgNonZeroReducer`); eq. (4) sums.

    Args:
        gap: Smallest wanted difference of the distances, g in eq. (3); finite, > 0. The paper gives none; 0.2
            is FaceNet's for the same distance, whose range is 0 to 4.
        distance: PML's `LpDistance` (any p, power, normalisation), `CosineSimilarity`, `DotProductSimilarity`
            or `SNRDistance`, or a subclass that changes the normalisation only. None: `LpDistance(power=2)`.
        reducer, embedding_regularizer, embedding_reg_weight, collect_stats: As in PML.
    Shape:
        embeddings (B, D), labels (B,), indices_tuple 3 x (T,) or (P,), (P,), (N,), (N,), ref_emb (M, D),
        ref_labels (M,) -> scalar (or what the reducer gives).
    Raises:
        ValueError: if gap is out of range, the distance is none of the above, there are neither labels nor
            indices, indices are out of range (on an accelerator, that is its own error), or too many triplets would
            have to be enumerated.
    Example:
        >>> loss_func = DeepRankingLoss(gap=0.2)
        >>> triplets = (torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
        >>> loss_func(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), indices_tuple=triplets)
        tensor(0.2000)

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, eq. (3).
        Schroff et al., FaceNet: A Unified Embedding for Face Recognition and Clustering, CVPR 2015.
    """

    def __init__(
        self,
        gap: float = 0.2,
        *,
        distance: BaseDistance | None = None,
        reducer: BaseReducer | None = None,
        embedding_regularizer: torch.nn.Module | None = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        gap = check_number("gap", gap, above=0)
        if distance is not None:
            row_distance(distance, _KNOWN)  # refuse an unknown one now rather than in the first step
        super().__init__(
            distance=distance,
            reducer=reducer,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            collect_stats=collect_stats,
        )
        self.gap = gap
        self.add_to_recordable_attributes(list_of_names=["gap"], is_stat=False)

    def get_default_distance(self) -> LpDistance:
        """Squared Euclidean, of unit-norm embeddings."""
        return LpDistance(power=2)

    def get_default_reducer(self) -> AvgNonZeroReducer:
        """Mean of the losses above 0."""
        return AsyncAvgNonZeroReducer()

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """The unreduced losses, in PML's form."""
        triplets = as_triplets(indices_tuple, labels, ref_labels, embeddings, ref_emb)
        if len(triplets[0]) == 0:
            zero: dict[str, Any] = self.zero_losses()
            return zero
        query, reference = prepared(self.distance, embeddings, ref_emb)
        if _is_default(self.distance) and SquaredMargins.worth_it(query, reference, len(triplets[0])):
            margins = SquaredMargins.apply(query, reference, *triplets)
        else:
            margins = TripletMargins.apply(_margin(self.distance), query, reference, *triplets)
        losses = torch.nn.functional.relu(margins + self.gap)
        return {"loss": {"losses": losses, "indices": triplets, "reduction_type": "triplet"}}


def _is_default(distance: BaseDistance) -> bool:
    """Whether it is the squared Euclidean distance of unit-norm embeddings."""
    squared = type(distance) is LpDistance and distance.p == distance.power == 2
    return squared and bool(distance.normalize_embeddings)


def _margin(distance: BaseDistance) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    between = row_distance(distance, _KNOWN)

    def margin(query: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        difference: Tensor = distance.margin(between(query, positive), between(query, negative))
        return difference

    return margin
