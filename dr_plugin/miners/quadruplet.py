"""PDDM's hard quadruplets of a batch."""

from typing import Literal

from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor

from dr_plugin.checks import check_whole, shown
from dr_plugin.triplets.quadruplets import Similarity, Triplets, hard_quadruplets, hard_triplets


class HardQuadrupletMiner(BaseMiner):
    """Find the positive pairs that a similarity has least alike, and their most alike negatives.

    With S the similarity: (i, j) = argmin S over positive pairs, k = argmax S(i, .) over i's negatives, l = argmax
    S(j, .) over j's negatives. The quadruplet comes as the two triplets (i, j, k) and (j, i, l), i < j, which every
    PML triplet loss reads right: as a 4-tuple PML would take it for pairs.

    - Fewer than two classes, or no positive pair: 3 empty tensors.
    - Ties go to the lower indices.
    - With `ref_emb` that is not the batch itself, j and k are references: j cannot be an anchor then, and a pair
      gives the one triplet (i, j, k). A reference whose embedding is the image's to the bit, as in a memory, is the
      image itself, and no positive of it.
    - `similarity` stays its owner's: it is not a submodule, so that its weights are neither in `state_dict()` nor
      in `parameters()` twice, and `to(device)` does not move it. Copied or pickled alone, the miner takes a copy of
      the unit along, which nobody trains: copy it together with its loss.
    - Only the positive pairs and the rows of the pairs found are compared, never all pairs of the batch.

    A unit that mines for itself may long give all pairs one similarity, with one quadruplet a batch more than with
    several, and least with kind="triplet"; `UniformTripletMiner` did not show it. `PDDMLoss` says how to see it.

    Args:
        similarity: The loss's unit (`PDDMLoss(...).unit`), or any object with `similarity(x, y)` of pairs,
            `similarity.matrix(x, y=None)` and `embedding_size`.
        quadruplets: How many positive pairs, the least similar first, each unordered pair once; fewer where the
            batch holds fewer. The paper takes 1.
        kind: "quadruplet", or "triplet": for each anchor its least similar positive and its most similar negative,
            at most B triplets, which is `BatchHardMiner` under `similarity` (our reading of the paper's row
            PDDM+triplet).
        collect_stats: As in PML. `num_triplets` is kept in any case.
    Shape:
        embeddings (B, D), labels (B,), ref_emb (M, D), ref_labels (M,) -> 3 tensors (T,) long, T <= 2 quadruplets.
    Raises:
        ValueError: if an argument is out of range, if the embeddings are not of the similarity's size, if labels are
            no integers, if `ref_emb` comes without `ref_labels`, or is the batch but `ref_labels` differ from `labels`.
    Example:
        >>> import torch
        >>> from dr_plugin.losses import PDDMLoss
        >>> loss_func = PDDMLoss(embedding_size=8)
        >>> miner = HardQuadrupletMiner(loss_func.unit)
        >>> anchors, positives, negatives = miner(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> len(anchors)
        2

    References:
        Huang, Loy and Tang, Local Similarity-Aware Deep Feature Embedding, NIPS 2016.
    """

    def __init__(
        self,
        similarity: Similarity,
        *,
        quadruplets: int = 1,
        kind: Literal["quadruplet", "triplet"] = "quadruplet",
        collect_stats: bool | None = None,
    ) -> None:
        missing = [name for name in ("__call__", "matrix", "embedding_size") if not hasattr(similarity, name)]
        if missing or isinstance(similarity, type):
            raise ValueError(
                f"similarity: got {shown(similarity)}, expected a unit such as PDDMLoss(...).unit, with "
                "similarity(x, y), matrix(x, y) and embedding_size"
            )
        if not isinstance(kind, str) or kind not in ("quadruplet", "triplet"):
            raise ValueError(f"kind: got {shown(kind)}, expected 'quadruplet' or 'triplet'")
        quadruplets = check_whole("quadruplets", quadruplets, minimum=1)
        if kind == "triplet" and quadruplets != 1:
            raise ValueError(
                f"quadruplets: got {quadruplets} with kind='triplet', which takes a triplet for each anchor; "
                "leave it out"
            )
        super().__init__(collect_stats=collect_stats)
        self._held = (similarity,)  # in a tuple, which torch does not register
        self.quadruplets, self.kind = quadruplets, kind
        self.add_to_recordable_attributes(list_of_names=["quadruplets"], is_stat=False)

    @property
    def similarity(self) -> Similarity:
        """What the miner compares by."""
        return self._held[0]

    def mine(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> Triplets:
        """The triplets; PML calls this under `no_grad`."""
        batch = (self.similarity, embeddings, labels, ref_emb, ref_labels)
        if self.kind == "triplet":
            return hard_triplets(*batch)
        return hard_quadruplets(*batch, count=self.quadruplets)
