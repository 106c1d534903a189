"""PDDM's loss: a hinge on learned similarities and a hinge on Euclidean distances."""

from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.reducers import MeanReducer
from pytorch_metric_learning.reducers.base_reducer import BaseReducer
from pytorch_metric_learning.utils import common_functions as c_f
from torch import Tensor
from torch.nn.functional import normalize, relu

from dr_plugin.checks import check_number
from dr_plugin.losses.explicit_triplets import TripletMargins, WideLoss, as_triplets
from dr_plugin.losses.pddm_unit import PDDMUnit
from dr_plugin.triplets.quadruplets import hard_quadruplets


class QuadrupletMeanReducer(MeanReducer):
    """Twice the mean of the losses of triplets: the mean over quadruplets, each of which is two triplets.

    For one quadruplet it is the sum of its two losses, as in the paper, and it stays of that size for many. It does
    not know where triplets come from: those that are no quadruplets count twice as well.

    Args:
        collect_stats: As in PML.
    Shape:
        losses (T,) -> scalar of their dtype.
    """

    def element_reduction(self, losses: Tensor, *_: Any) -> Tensor:
        """What PML calls for losses of elements, pairs and triplets alike."""
        return 2 * losses.mean()


class PDDMLoss(WideLoss):
    """The double-header hinge of PDDM, with the similarity unit that it trains.

    For each triplet (a, p, n), with S the unit's similarity and D the squared Euclidean distance of unit-norm
    embeddings,

        [alpha + S(a, n) - S(a, p)]+ + lambda [beta + D(a, p) - D(a, n)]+

    The two triplets of a hard quadruplet, (i, j, k) and (j, i, l), give E_m + lambda E_e. The unit has weights:
    give them an optimizer (PML's trainers: "metric_loss_optimizer").

    - `indices_tuple=None`: the one hard quadruplet of the batch is mined by the unit, the paper's whole method.
      This differs from PML, where it means all triplets. `HardQuadrupletMiner(loss_func.unit, ...)` mines more.
    - Any triplets can be given, and pairs (a1, p, a2, n) are joined on the anchor, as PML does; more than 2**30
      combinations of pairs are refused. Only the 2T pairs of the triplets go through the unit, or all B x M
      (B (B + 1) / 2 without other references) where these are fewer.
    - With `ref_emb`, p and n are references; what is mined is then (i, j, k) alone. A reference whose embedding is
      the image's to the bit, as in a memory, is the image itself, and no positive of it.
    - No triplets (no positive pair in the batch, or one class): 0, attached to the embeddings and to the unit.
    - Half precision embeddings, and those made under autocast, are taken to float32 first.

    Differs from the paper in: the default reducer is twice the mean over triplets, which for the paper's one
    quadruplet is its sum. Triplets that are no quadruplets (kind="triplet", `UniformTripletMiner`, or mined with
    `ref_emb`) count twice as well, so that learning rates carry over badly: one found with a loss that takes the
    mean acts twice as strongly here. `MeanReducer` halves it, `SumReducer` grows with the triplets. Weight decay is
    the optimizer's.

    **Collapse.** Mining by its own similarities can hold the unit at one similarity for all pairs: of the loss, E_m
    stands at 2 x similarity_margin, `similarity_std` is near 0, `similarity_gap` at 0 or below, and the unit is no
    use for re-ranking, while the Euclidean part still trains the embedding. On scikit-learn's digits, with a small
    network and Adam at 1e-3 (benchmarks/pddm_plateau.py), one quadruplet a batch stayed there for more than a thousand
    steps, and then trained; 16 quadruplets left it sooner, kind="triplet" sooner still, and `UniformTripletMiner` at
    once, from random weights and after a softmax stage alike.

    Args:
        embedding_size: D of the embeddings.
        similarity_margin: Smallest wanted difference of similarities, alpha; finite, > 0.
        euclidean_margin: Smallest wanted difference of squared distances, beta; finite, > 0 (D is in 0 to 4).
        euclidean_weight: lambda; finite, >= 0. At 0 the embedding learns through the unit alone.
        reducer, embedding_regularizer, embedding_reg_weight, collect_stats: As in PML.
    Attributes:
        unit: The `PDDMUnit`.
        similarity_gap: Mean of S(a, p) - S(a, n) over the last call's triplets; recorded under `collect_stats`, for
            which the host waits for an accelerator. 0 where there were none.
        similarity_std: Standard deviation of their similarities, S(a, p) and S(a, n) together; likewise.
    Shape:
        embeddings (B, D), labels (B,), indices_tuple 3 x (T,) or (P,), (P,), (N,), (N,), ref_emb (M, D),
        ref_labels (M,) -> scalar (or what the reducer gives).
    Raises:
        ValueError: if an argument is out of range, embeddings are of another size, neither labels nor indices are
            given, indices are out of range (on an accelerator, that is its own error), or it is to mine by labels
            that are no integers.
    Example:
        >>> loss_func = PDDMLoss(embedding_size=8)
        >>> loss_func(torch.randn(4, 8), torch.tensor([0, 0, 1, 1])).shape
        torch.Size([])

    References:
        Huang, Loy and Tang, Local Similarity-Aware Deep Feature Embedding, NIPS 2016; the margins and lambda
        after code that follows it.
    """

    def __init__(
        self,
        embedding_size: int,
        *,
        similarity_margin: float = 0.5,
        euclidean_margin: float = 1.0,
        euclidean_weight: float = 0.5,
        reducer: BaseReducer | None = None,
        embedding_regularizer: torch.nn.Module | None = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        similarity_margin = check_number("similarity_margin", similarity_margin, above=0)
        euclidean_margin = check_number("euclidean_margin", euclidean_margin, above=0)
        euclidean_weight = check_number("euclidean_weight", euclidean_weight, minimum=0)
        super().__init__(
            reducer=reducer,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            collect_stats=collect_stats,
        )
        self.unit = PDDMUnit(embedding_size)
        self.similarity_margin, self.euclidean_margin = similarity_margin, euclidean_margin
        self.euclidean_weight = euclidean_weight
        self.add_to_recordable_attributes(
            list_of_names=["similarity_margin", "euclidean_margin", "euclidean_weight"], is_stat=False
        )
        self.add_to_recordable_attributes(list_of_names=["similarity_gap", "similarity_std"], is_stat=True)

    def get_default_distance(self) -> LpDistance:
        """Squared Euclidean, of unit-norm embeddings: what the loss computes by itself."""
        return LpDistance(power=2)

    def get_default_reducer(self) -> BaseReducer:
        """Mean over quadruplets."""
        return QuadrupletMeanReducer()

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of the triplets, reduced."""
        if indices_tuple is None:  # mined here, where references that are the batch are still seen to be it
            indices_tuple = self._mined(embeddings, labels, ref_emb, ref_labels)
        return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """The unreduced losses, in PML's form."""
        self._check_sizes(embeddings, ref_emb)
        triplets = as_triplets(indices_tuple, labels, ref_labels, embeddings, ref_emb)
        if len(triplets[0]) == 0:
            return {
                "loss": {
                    "losses": self._attached_zero(embeddings),
                    "indices": None,
                    "reduction_type": "already_reduced",
                }
            }
        near, far = self._similarities(embeddings, ref_emb, *triplets)
        if self.collect_stats:
            self.similarity_gap = (near - far).mean().item()
            self.similarity_std = torch.cat([near, far]).std(correction=0).item()
        query = normalize(embeddings)
        reference = query if ref_emb is embeddings else normalize(ref_emb)
        nearer = TripletMargins.apply(_euclidean_margin, query, reference, *triplets)
        losses = relu(self.similarity_margin + far - near)
        losses = losses + self.euclidean_weight * relu(self.euclidean_margin + nearer)
        return {"loss": {"losses": losses, "indices": triplets, "reduction_type": "triplet"}}

    def _mined(
        self, embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor | None, ref_labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The hard quadruplet's triplets."""
        if labels is None or (ref_emb is not None and ref_labels is None):
            raise ValueError(
                f"{'labels' if labels is None else 'ref_labels'}: got none, and no indices_tuple, expected one of "
                "them: the hard quadruplet is found by labels"
            )
        c_f.check_shapes(embeddings, labels)
        if ref_emb is not None:
            c_f.check_shapes(ref_emb, ref_labels)
        with torch.no_grad():
            return hard_quadruplets(self.unit, embeddings, labels, ref_emb, ref_labels)

    def _check_sizes(self, embeddings: Tensor, ref_emb: Tensor) -> None:
        for name, given in (("embeddings", embeddings), ("ref_emb", ref_emb)):
            self.unit.check_size(name, given)

    def _attached_zero(self, embeddings: Tensor) -> Tensor:
        """0 with a gradient, 0, for the unit's weights too: DistributedDataParallel waits for one from each."""
        return (embeddings * 0).sum() + sum((weight * 0).sum() for weight in self.unit.parameters())

    def _similarities(
        self, embeddings: Tensor, ref_emb: Tensor, anchors: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, Tensor]:
        """S(a, p) and S(a, n), (T,) each."""
        own, count = ref_emb is embeddings, len(embeddings)
        pairs = count * (count + 1) // 2 if own else count * len(ref_emb)
        if 2 * len(anchors) > pairs:  # they come again and again
            matrix = self.unit.matrix(embeddings, None if own else ref_emb)
            return matrix[anchors, positives], matrix[anchors, negatives]
        both = self.unit.pairs(embeddings, ref_emb, anchors.repeat(2), torch.cat([positives, negatives]))
        near, far = both.tensor_split(2)
        return near, far


def _euclidean_margin(query: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """D(q, p) - D(q, n) of each row: 3 x (T, D) -> (T,)."""
    return (query - positive).square().sum(dim=1) - (query - negative).square().sum(dim=1)
