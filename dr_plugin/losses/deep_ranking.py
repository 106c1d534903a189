"""The ranking loss of Deep Ranking, on explicit triplets."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from pytorch_metric_learning.distances import DotProductSimilarity, LpDistance, SNRDistance
from pytorch_metric_learning.distances.base_distance import BaseDistance
from pytorch_metric_learning.losses.base_metric_loss_function import BaseMetricLossFunction
from pytorch_metric_learning.reducers import AvgNonZeroReducer
from pytorch_metric_learning.reducers.base_reducer import BaseReducer
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_ELEMENTS = 1 << 19  # of one gathered (chunk, D) tensor: 2 MiB in float32
_MAX_PAIRINGS = 1 << 30  # bytes of the mask that PML builds to enumerate triplets


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
        return (_at_least_float32(losses).relu().sum() / count.clamp(min=1)).to(losses.dtype)


class DeepRankingLoss(BaseMetricLossFunction):
    """Hinge on how much nearer the positive is to the query than the negative is.

    max(0, gap + D(query, positive) - D(query, negative)), eq. (3), with D the squared Euclidean distance of
    unit-norm embeddings unless another is given. Value and gradient are those of PML's
    `TripletMarginLoss(margin=gap, distance=LpDistance(power=2))`, but only the T distances asked for are
    computed, never the (B, M) matrix, and in chunks, so that the memory does not grow with T x D.

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
            indices, or too many triplets would have to be enumerated.
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
        if isinstance(gap, bool) or not isinstance(gap, int | float) or not (0 < gap < math.inf):
            raise ValueError(f"gap: got {gap!r}, expected a finite number above 0")
        if distance is not None:
            _row_distance(distance)  # refuse an unknown one now rather than in the first step
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

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of the triplets, reduced."""
        # Here and not in compute_loss: the reducer and the regularizer go by the embeddings' dtype too.
        wide = _at_least_float32(embeddings)
        reference = wide if ref_emb is embeddings else None if ref_emb is None else _at_least_float32(ref_emb)
        loss: Tensor = super().forward(wide, labels, indices_tuple, reference, ref_labels)
        return loss

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """The unreduced losses, in PML's form."""
        triplets = _as_triplets(indices_tuple, labels, ref_labels, embeddings.device)
        if len(triplets[0]) == 0:
            zero: dict[str, Any] = self.zero_losses()
            return zero
        query, reference = _prepared(self.distance, embeddings, ref_emb)
        margins = _TripletMargins.apply(_margin(self.distance), query, reference, *triplets)
        losses = torch.nn.functional.relu(margins + self.gap)
        return {"loss": {"losses": losses, "indices": triplets, "reduction_type": "triplet"}}


class _TripletMargins(torch.autograd.Function):
    """margin(query[a], reference[p], reference[n]) of each triplet, gathered chunk by chunk, both ways."""

    @staticmethod
    def forward(
        ctx: Any,
        margin: Callable[[Tensor, Tensor, Tensor], Tensor],
        query: Tensor,
        reference: Tensor,
        *triplets: Tensor,  # 3 x (T,)
    ) -> Tensor:
        ctx.margin = margin
        ctx.save_for_backward(query, reference, *triplets)
        return torch.cat([margin(*rows) for _, rows in _chunks(query, reference, *triplets)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, reference, *triplets = ctx.saved_tensors
        # A memory's references need no gradient: None then, and no work for them.
        grad_query = torch.zeros_like(query) if ctx.needs_input_grad[1] else None
        grad_reference = torch.zeros_like(reference) if ctx.needs_input_grad[2] else None
        targets = [
            (role, gradient)
            for role, gradient in enumerate((grad_query, grad_reference, grad_reference))
            if gradient is not None
        ]
        for part, rows in _chunks(query, reference, *triplets):
            leaves = [rows[role].requires_grad_() for role, _ in targets]
            with torch.enable_grad():
                margins = ctx.margin(*rows)
            row_gradients = torch.autograd.grad(margins, leaves, grad_output[part])
            for (role, gradient), row_gradient in zip(targets, row_gradients, strict=True):
                gradient.index_add_(0, triplets[role][part], row_gradient)
        return None, grad_query, grad_reference, None, None, None


def _chunks(query: Tensor, reference: Tensor, *triplets: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices of the triplets, each with its rows of query, positive and negative, 3 x (chunk, D)."""
    size = max(1, _CHUNK_ELEMENTS // max(1, query.shape[1]))
    sources = (query, reference, reference)
    for start in range(0, len(triplets[0]), size):
        part = slice(start, start + size)
        rows = [
            source.index_select(0, indices[part]) for source, indices in zip(sources, triplets, strict=True)
        ]
        yield part, rows


def _margin(distance: BaseDistance) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    row_distance = _row_distance(distance)

    def margin(query: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        difference: Tensor = distance.margin(row_distance(query, positive), row_distance(query, negative))
        return difference

    return margin


def _row_distance(distance: BaseDistance) -> Callable[[Tensor, Tensor], Tensor]:
    """`distance` of row i to row i of prepared embeddings: entry (i, i) of the matrix that PML computes."""
    kind = type(distance)
    if isinstance(distance, BaseDistance) and kind.forward is BaseDistance.forward:
        # By what computes the matrix: a subclass that computes another one is not taken for its base.
        if kind.compute_mat is LpDistance.compute_mat:
            return lambda first, second: _lp(first - second, distance.p, distance.power)
        for known in (DotProductSimilarity, SNRDistance):
            if kind.compute_mat is known.compute_mat:
                rows = partial(known.pairwise_distance, distance)
                return lambda first, second: _power(rows(first, second), distance.power)
    raise ValueError(
        f"distance: got {kind.__name__}, expected LpDistance, CosineSimilarity, DotProductSimilarity or "
        "SNRDistance; for another one use PML's TripletMarginLoss(margin=gap, distance=...), which computes "
        "the whole matrix"
    )


def _lp(difference: Tensor, p: float, power: float) -> Tensor:
    # Not LpDistance.pairwise_distance, which adds an eps to the difference and takes no power.
    if p == power == 2:
        return difference.square().sum(dim=1)
    return _power(torch.linalg.vector_norm(difference, ord=p, dim=1), power)


def _power(distances: Tensor, power: float) -> Tensor:
    return distances if power == 1 else distances**power


def _prepared(distance: BaseDistance, embeddings: Tensor, ref_emb: Tensor) -> tuple[Tensor, Tensor]:
    """What `distance.forward` does before it computes the matrix: checks, normalisation, statistics."""
    distance.reset_stats()
    distance.check_shapes(embeddings, ref_emb)
    query = distance.maybe_normalize(embeddings)
    reference = query if ref_emb is embeddings else distance.maybe_normalize(ref_emb)
    distance.set_default_stats(embeddings, ref_emb, query, reference)
    return query, reference


def _as_triplets(
    indices_tuple: tuple[Tensor, ...] | None,
    labels: Tensor | None,
    ref_labels: Tensor | None,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    if indices_tuple is None:
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        if labels is None or ref_labels is None:
            raise ValueError("got ref_emb without ref_labels and no indices_tuple, expected one of these two")
        pairings = len(labels) * len(ref_labels) ** 2
    elif len(indices_tuple) == 4:
        pairings = len(indices_tuple[0]) * len(indices_tuple[2])
    elif len({len(indices) for indices in indices_tuple}) != 1 or len(indices_tuple) != 3:
        lengths = [len(indices) for indices in indices_tuple]
        raise ValueError(f"indices_tuple: got lengths {lengths}, expected 3 of one length, or 4 as pairs")
    else:
        pairings = 0
    if pairings > _MAX_PAIRINGS:
        raise ValueError(
            f"indices_tuple: got {'none' if indices_tuple is None else 'pairs'}, whose triplets would be "
            f"sought among {pairings:,} combinations, expected at most {_MAX_PAIRINGS:,}; give triplets, "
            "from a miner such as UniformTripletMiner"
        )
    triplets = lmu.convert_to_triplets(indices_tuple, labels, ref_labels, t_per_anchor="all")
    anchors, positives, negatives = (indices.to(device) for indices in triplets)
    return anchors, positives, negatives


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
