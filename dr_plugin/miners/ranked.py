"""Ranked negatives of a batch, for LRML."""

import torch
from pytorch_metric_learning.distances.base_distance import BaseDistance
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor

from dr_plugin.checks import check_whole, shown
from dr_plugin.triplets import RANDOM_BITS
from dr_plugin.triplets.ranked import Choose, Positive, RankedTriplets, Triplets, compare


class RankedNegativeMiner(BaseMiner):
    """Take for each query one positive, and the negatives that are most similar to it, by rank.

    Its triplets are tuples of LRML: for each query (ascending) the same positive in up to `negatives` triplets, the
    most similar negative first. `LRMLLoss` reads them as one tuple for each query; any PML loss takes them.

    Each class has one negative, its image most similar to the query, and the ranks are of classes (`per_class`, our
    choice): of the most similar images of a batch several are of one class. A batch should hold more than `negatives`
    classes.

    LRML's abstract takes "negative sets from the bottom five ranked by similarity". The usual practice, and the
    default, is the five most similar negatives; `choose="least_similar"` is the abstract read literally: of each class
    still the most similar image, but of the five classes at the bottom. With `per_class=False`, it is the five least
    similar images, whatever their class.

    - Fewer negatives (classes) than asked for: those that there are. An image without a positive is no query; fewer
      than two classes, or an empty batch: 3 empty tensors.
    - Equal distances rank by the lower index, as the `distance`'s matrix has them.
    - With `ref_emb` and `ref_labels`, positives and negatives index the references. A query is not its own positive: by
      its index, where `ref_emb` is `embeddings`; else by its embedding, to the bit, as it lies in a memory.
    - Half precision embeddings are compared in float32. Memory O(B M), the matrix of distances.
    - A distance that is NaN counts as the most similar, so that the loss becomes NaN rather than pass over it.

    Args:
        negatives: For each query, at least 1.
        choose: "most_similar" or "least_similar" (the bottom of the ranked list).
        positive: "least_similar" (the hardest), "most_similar", "random" (uniform), or "every": a tuple for each
            positive, all with the query's negatives.
        per_class: Whether each class has at most one negative; else images are ranked whatever their class.
        distance: Any of PML's, similarities too; None: `LpDistance()`, Euclidean of unit-norm embeddings.
        seed: Seed of the miner's generator, at least 0, which draws a "random" positive; its state is part of
            `state_dict()`.
        collect_stats: As in PML. `num_triplets` is kept in any case.
    Shape:
        embeddings (B, D), labels (B,) integer, ref_emb (M, D), ref_labels (M,) integer -> 3 tensors (T,) long.
    Raises:
        ValueError: if an argument is out of range, labels are not 1-D integers, or `ref_emb` comes without
            `ref_labels` or is of another size.
    Example:
        >>> miner = RankedNegativeMiner(negatives=2)
        >>> angles = torch.tensor([0.0, 0.1, 1.0, 0.5])
        >>> embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
        >>> miner(embeddings, torch.tensor([0, 0, 1, 2]))
        (tensor([0, 0, 1, 1]), tensor([1, 1, 0, 0]), tensor([3, 2, 3, 2]))

    References:
        Fan et al., Image Retrieval Based on Learning to Rank and Multiple Loss, ISPRS International Journal of
        Geo-Information 8(9), 2019: the abstract.
    """

    def __init__(
        self,
        negatives: int = 5,
        *,
        choose: Choose = "most_similar",
        positive: Positive = "least_similar",
        per_class: bool = True,
        distance: BaseDistance | None = None,
        seed: int = 0,
        collect_stats: bool | None = None,
    ) -> None:
        rule = RankedTriplets(negatives, choose, positive, per_class)
        seed = check_whole("seed", seed, minimum=0, below=2**63)
        if distance is not None and not isinstance(distance, BaseDistance):
            raise ValueError(f"distance: got {shown(distance)}, expected one of PML's distances, or None")
        super().__init__(distance=distance, collect_stats=collect_stats)
        self.rule = rule
        self.generator = torch.Generator().manual_seed(seed)

    def mine(
        self, embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> Triplets:
        """The triplets; PML calls this under `no_grad`."""
        if labels is None or ref_labels is None:
            raise ValueError(
                "got no labels or ref_labels, expected a class for each embedding and each reference"
            )
        distances, itself = compare(self.distance, embeddings, ref_emb)
        bits = None
        if self.rule.positive == "random":
            bits = torch.randint(1 << RANDOM_BITS, (len(labels),), generator=self.generator)
        return self.rule.of(distances, labels, ref_labels, itself, bits)

    def get_extra_state(self) -> Tensor:
        """The generator's state, for `state_dict()`."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Put the generator where it was when `state` was taken."""
        self.generator.set_state(state.cpu())  # generators take it from the CPU, wherever map_location put it
