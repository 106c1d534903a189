"""LRML: negatives pushed to distances that differ by their rank."""

from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.distances.base_distance import BaseDistance
from pytorch_metric_learning.reducers import AvgNonZeroReducer
from pytorch_metric_learning.reducers.base_reducer import BaseReducer
from torch import Tensor

from dr_plugin.checks import check_flag, check_number
from dr_plugin.losses.deep_ranking import AsyncAvgNonZeroReducer
from dr_plugin.losses.explicit_triplets import WideLoss, as_triplets
from dr_plugin.losses.row_distance import prepared, row_distance
from dr_plugin.triplets.ranked import Choose, Positive, RankedTriplets, compare
from dr_plugin.triplets.tuples import Tuples, as_tuples

_KNOWN = "LpDistance or SNRDistance; a cosine says the same as LpDistance(power=2) of unit-norm embeddings"


class LRMLLoss(WideLoss):
    """Pull a query's positive near, and push its negatives to distances that grow with their rank.

    Of a query q, a positive p and negatives n_1, ..., n_K, the most similar first:

        [D(q, p) - positive_margin]+  and, for each r,  push_weight [margin + (r - 1) step - D(q, n_r)]+

    Where nothing stands against it, the positive ends within `positive_margin` and the r-th negative, if it was
    nearer, exactly at margin + (r - 1) step. Contrastive losses (this with step = 0) push each to one distance, a
    triplet loss each to one distance beyond the positive's. Ranks are of the current distances, and no gradient
    goes through them.

    In an ordinary batch images are queries and each other's negatives: the pushes of several queries meet in one
    image, and of hinges none holds a negative back that others have pushed beyond its margin. Of classes that start
    nearer than the margins, the distances to a query's nearest ones then differ by more than under the other two
    losses, but do not end at the margins; of classes that start beyond them, by about as much. With `two_sided`,
    |margin + (r - 1) step - D(q, n_r)|, they end at the margins, where a batch holds all classes.

    **Only the paper's abstract is at hand**, not its equations. From it: negatives are separated from the query to
    different distances by learning the ranking sequence; one positive, and five negatives, "the bottom five ranked
    by similarity"; several losses together. All else is our choice:

    - How the distances differ: margins linear in the rank (`margin`, `step`), absolute and not relative to the
      positive, so that the end distances are known. They must lie within the distance's range.
    - Which five (`choose`, `negatives`): the usual practice is the most similar, as others cost little; the
      abstract read literally is `choose="least_similar"`. The most similar of the five is the first in either.
      The default margins suit embeddings that start close together, of a collapsed or a pretrained trunk. In a batch
      of random ones, the least similar are beyond them and nothing is pushed: raise `margin` to about 1.3. The
      statistic `active_pushes` tells.
    - Of which classes (`per_class`): each has one negative, its image most similar to the query, so that ranks are
      of classes. Of the five most similar images several are of one class, and ranks that part those part the
      classes less than a contrastive loss does. A batch should hold more than `negatives` classes.
    - Which positive (`positive`): the least similar, so that the query's class is held together.
    - The losses together: a pull and a push, hinges like those of PML's `ContrastiveLoss` (`positive_margin`,
      `push_weight`), each reduced by itself: the sub-losses `pull_loss` and `push_loss`, to which PML's
      `MultipleReducers` gives reducers of their own. A class may keep an extent (`positive_margin` > 0): of one
      that shrinks to a point, no images can be at different distances from a query.
    - The `distance`: Euclidean, of unit-norm embeddings. Equal steps are equal distances, and the push is as strong
      on a negative that all but coincides with the query, where the gradient of a squared distance vanishes.

    - `indices_tuple=None`: the loss mines the batch itself, as `RankedNegativeMiner` does.
    - Given triplets, of any miner, are read as one tuple for each (query, positive), ranked anew; a triplet given
      twice counts once, and of more than `negatives` those are taken that `choose` names, whatever their class.
      Pairs (a1, p, a2, n) are joined on the anchor. A positive without negatives is not pulled, nor the other way
      round.
    - In a `CrossBatchMemory` or `ReservoirMemory` without a miner, the memory gives all its pairs: `positive` is then
      "every", and `per_class` False. Give the memory a `RankedNegativeMiner` for other ones.
    - No tuple (empty batch, one class, singletons only): 0, attached to the graph.
    - Equal distances rank by the lower index; equal negatives part, as their margins differ.
    - Half precision embeddings are taken to float32 first.

    Args:
        negatives: K, for each query; at least 1.
        margin: Smallest wanted distance of the most similar negative; finite, > 0.
        step: What each further rank adds; finite, at least 0. 0: no ranking.
        positive_margin: Largest distance at which the positive is left alone; at least 0, below `margin`.
        push_weight: Weight of the push beside the pull; finite, > 0.
        two_sided: Whether a negative beyond its margin is drawn back to it; ours, not in the abstract.
        choose: "most_similar" or "least_similar" (the bottom of the ranked list).
        positive: For `indices_tuple=None`: "least_similar", "most_similar" or "every".
        per_class: For `indices_tuple=None`: whether each class has at most one negative.
        distance: PML's `LpDistance` (any p, power, normalisation) or `SNRDistance`; None: `LpDistance()`.
        reducer, embedding_regularizer, embedding_reg_weight: As in PML. Without a reducer: the mean over the pairs
            that cost something, as for PML's `ContrastiveLoss`.
        collect_stats: As in PML: whether to keep `active_pushes`, how many pushes of the last batch were above 0.
    Shape:
        embeddings (B, D), labels (B,), indices_tuple 3 x (T,) or (P,), (P,), (N,), (N,), ref_emb (M, D),
        ref_labels (M,) -> scalar (or what the reducer gives). Memory O(B M) where it mines or has to choose, and
        O(pairs of a query and its negative x D).
    Raises:
        ValueError: if an argument is out of range, the margins go beyond the distance's (2 ** power, for the
            normalised `LpDistance`), the distance is a similarity or none of the above, there are neither labels
            nor indices, or indices or `ref_emb` do not fit.
    Example:
        >>> query, positive = [1.0, 0.0], [0.0, 1.0]  # at distance sqrt(2)
        >>> loss_func = LRMLLoss(negatives=2, margin=1.5, step=0.25)
        >>> embeddings = torch.tensor([query, positive, positive, positive])
        >>> triplets = (torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([2, 3]))
        >>> loss_func(embeddings, indices_tuple=triplets)  # 1.0142 + (0.0858 + 0.3358) / 2
        tensor(1.2250)

    References:
        Fan et al., Image Retrieval Based on Learning to Rank and Multiple Loss, ISPRS International Journal of
        Geo-Information 8(9), 2019: the abstract.
    """

    def __init__(
        self,
        negatives: int = 5,
        margin: float = 0.8,
        step: float = 0.1,
        *,
        positive_margin: float = 0.4,
        push_weight: float = 1.0,
        two_sided: bool = False,
        choose: Choose = "most_similar",
        positive: Positive = "least_similar",
        per_class: bool = True,
        distance: BaseDistance | None = None,
        reducer: BaseReducer | None = None,
        embedding_regularizer: torch.nn.Module | None = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        rule = RankedTriplets(negatives, choose, positive, per_class)
        if positive == "random":
            raise ValueError(
                "positive: got 'random', expected another one: the loss draws nothing; "
                "use RankedNegativeMiner(positive='random') with it"
            )
        two_sided = check_flag("two_sided", two_sided)
        push_weight = check_number("push_weight", push_weight, above=0)
        margin, step, positive_margin = _checked_margins(margin, step, positive_margin)
        _check_distance(LpDistance() if distance is None else distance, margin + (negatives - 1) * step)
        super().__init__(
            distance=distance,
            reducer=reducer,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            collect_stats=collect_stats,
        )
        self.rule = rule
        self.margin, self.step, self.positive_margin = margin, step, positive_margin
        self.push_weight, self.two_sided = push_weight, two_sided
        names = ["margin", "step", "positive_margin", "push_weight"]
        self.add_to_recordable_attributes(list_of_names=names, is_stat=False)
        self.add_to_recordable_attributes(name="active_pushes", is_stat=True)

    def get_default_distance(self) -> LpDistance:
        """Euclidean, of unit-norm embeddings."""
        return LpDistance()

    def get_default_reducer(self) -> AvgNonZeroReducer:
        """Mean of the losses above 0."""
        return AsyncAvgNonZeroReducer()

    def _sub_loss_names(self) -> list[str]:
        return ["pull_loss", "push_loss"]

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """The unreduced pulls (G,) of the tuples and pushes (T,) of their negatives, in PML's form."""
        if indices_tuple is None:
            triplets = self._mined(embeddings, labels, ref_emb, ref_labels)
        else:
            triplets = as_triplets(indices_tuple, labels, ref_labels, embeddings, ref_emb, wait=True)
        if len(triplets[0]) == 0:
            zero: dict[str, Any] = self.zero_losses()
            return zero
        tuples = self._cut(as_tuples(*triplets, len(ref_emb)), embeddings, ref_emb)
        positives, negatives = self._distances(tuples, embeddings, ref_emb)
        pull = (positives - self.positive_margin).relu()
        missing = self.margin + self.step * tuples.ranks(negatives.detach()).to(negatives.dtype) - negatives
        push = missing.abs() if self.two_sided else missing.relu()
        if self.collect_stats:
            self.active_pushes = int((push > 0).sum())
        return {
            "pull_loss": {
                "losses": pull,
                "indices": (tuples.query, tuples.positive),
                "reduction_type": "pos_pair",
            },
            "push_loss": {
                "losses": self.push_weight * push,
                "indices": (tuples.query[tuples.of], tuples.negative),
                "reduction_type": "neg_pair",
            },
        }

    def _mined(
        self, embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if labels is None or ref_labels is None:
            raise ValueError(
                "got no labels or ref_labels and no indices_tuple, expected a class for each embedding"
            )
        distances, itself = compare(self.distance, embeddings, ref_emb)
        return self.rule.of(distances, labels, ref_labels, itself)

    def _cut(self, tuples: Tuples, embeddings: Tensor, ref_emb: Tensor) -> Tuples:
        """With no more negatives than wanted."""
        if int(tuples.size.max()) <= self.rule.negatives:
            return tuples
        distances, _ = compare(self.distance, embeddings, ref_emb)
        distances = distances[tuples.query[tuples.of], tuples.negative]
        if self.rule.choose == "least_similar":
            distances = -distances
        return tuples.lowest(self.rule.negatives, distances)

    def _distances(self, tuples: Tuples, embeddings: Tensor, ref_emb: Tensor) -> tuple[Tensor, Tensor]:
        """Of each tuple's query to its positive (G,), and to its negatives (T,)."""
        between = row_distance(self.distance, _KNOWN)
        query, reference = prepared(self.distance, embeddings, ref_emb)
        positives = between(query.index_select(0, tuples.query), reference.index_select(0, tuples.positive))
        first, second, of = tuples.query[tuples.of], tuples.negative, slice(None)
        if (tuples.query[1:] == tuples.query[:-1]).any():  # a query's tuples share negatives: each pair once
            pairs, of = torch.unique(first * len(reference) + second, return_inverse=True)
            first, second = pairs // len(reference), pairs % len(reference)
        negatives = between(query.index_select(0, first), reference.index_select(0, second))
        return positives, negatives[of]


def _checked_margins(margin: float, step: float, positive_margin: float) -> tuple[float, float, float]:
    margin = check_number("margin", margin, above=0)
    step = check_number("step", step, minimum=0)
    positive_margin = check_number("positive_margin", positive_margin, minimum=0)
    if positive_margin >= margin:
        raise ValueError(
            f"positive_margin: got {positive_margin}, expected less than the margin {margin}: the positive nearer "
            "than the negatives"
        )
    return margin, step, positive_margin


def _check_distance(distance: BaseDistance, largest: float) -> None:
    """Refuse what is no distance known by rows, and margins that no embedding can reach."""
    if getattr(distance, "is_inverted", False):
        raise ValueError(f"distance: got {type(distance).__name__}, a similarity, expected {_KNOWN}")
    row_distance(distance, _KNOWN)
    if (
        isinstance(distance, LpDistance)
        and distance.normalize_embeddings
        and type(distance).normalize is BaseDistance.normalize
        and largest > 2**distance.power + 1e-9
    ):
        raise ValueError(
            f"margin: got {largest:g} for the last rank, margin + (negatives - 1) * step, expected at most "
            f"{2**distance.power:g}, which is as far as unit-norm embeddings can be; lower margin or step"
        )
