"""PDDM's hard quadruplets, and hard triplets, by any similarity of embeddings."""

from typing import Protocol

import torch
from torch import Tensor

from dr_plugin.triplets.references import are_the_batch, itself
from dr_plugin.triplets.uniform import checked_labels

Triplets = tuple[Tensor, Tensor, Tensor]  # anchor, positive, negative, (T,) long each


class Similarity(Protocol):
    """How similar embeddings are, higher being more: PDDM's unit, or anything like it."""

    embedding_size: int

    def __call__(self, x: Tensor, y: Tensor, /) -> Tensor:
        """Of each x to the y of the same row: (N, D), (N, D) -> (N,)."""

    def matrix(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Of each x to each y, or to each x: (N, D), (M, D) -> (N, M)."""


def hard_quadruplets(
    similarity: Similarity,
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    count: int = 1,
) -> Triplets:
    """The `count` least similar positive pairs (i, j), each with its most similar negatives, as triplets.

    k is i's most similar negative and l is j's: (i, j, k), (j, i, l). A pair counts once, as i < j; ties go to the
    lower indices; fewer pairs than `count` are all taken. With references other than the batch itself, i is in the
    batch, j and k are references, and a pair gives (i, j, k) alone, as j cannot be an anchor; a reference that is
    the image itself (see `itself`) is no positive of it.

    - No positive pair, or no negative (fewer than two classes): 3 empty tensors.
    - Only the positive pairs and the rows of i and j are compared, not all pairs of the batch.

    Shape:
        embeddings (B, D), labels (B,), ref_emb (M, D), ref_labels (M,) -> 3 x (T,), T <= 2 count.
    Raises:
        ValueError: if the embeddings are of another size than the similarity, labels are no integers, `ref_emb` comes
            without `ref_labels`, or is the batch but `ref_labels` differ from `labels`.
    """
    own, others, same, other = _compared(similarity, embeddings, labels, ref_emb, ref_labels)
    positive = same & other & ~same.all(dim=1, keepdim=True)
    i, j = (positive.triu(1) if own else positive).nonzero().unbind(1)
    hardest = similarity(embeddings[i], others[j]).argsort(stable=True)[:count]
    i, j = i[hardest], j[hardest]
    if len(i) == 0:
        return i, j, i
    if own:
        i, j = torch.stack([i, j], 1).flatten(), torch.stack([j, i], 1).flatten()
    anchors, place = i.unique(return_inverse=True)
    similarities = similarity.matrix(embeddings[anchors], others)
    negative = similarities.masked_fill(same[anchors], -torch.inf).argmax(dim=1)
    return i, j, negative[place]


def hard_triplets(
    similarity: Similarity,
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
) -> Triplets:
    """Each anchor that has both with its least similar positive and its most similar negative.

    - Ties go to the lower index. An image is not its own positive, nor is a reference that is the image itself.

    Shape:
        embeddings (B, D), labels (B,), ref_emb (M, D), ref_labels (M,) -> 3 x (T,), T <= B.
    Raises:
        ValueError: as `hard_quadruplets`.
    """
    own, others, same, other = _compared(similarity, embeddings, labels, ref_emb, ref_labels)
    positive = same & other
    anchors = (positive.any(dim=1) & ~same.all(dim=1)).nonzero().squeeze(1)
    if len(anchors) == 0:
        return anchors, anchors, anchors
    similarities = similarity.matrix(embeddings, None if own else others)[anchors]
    hardest = similarities.masked_fill(~positive[anchors], torch.inf).argmin(dim=1)
    return anchors, hardest, similarities.masked_fill(same[anchors], -torch.inf).argmax(dim=1)


def check_size(name: str, embeddings: Tensor, size: int) -> None:
    """A ValueError unless the embeddings, called `name`, are of the similarity's size, (N, D)."""
    if embeddings.ndim != 2 or embeddings.shape[1] != size:
        raise ValueError(
            f"{name}: got embeddings of shape {tuple(embeddings.shape)}, expected (N, {size}), as the unit's "
            "embedding_size says; give both the trunk's"
        )


def _compared(
    similarity: Similarity,
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
) -> tuple[bool, Tensor, Tensor, Tensor]:
    """Whether the batch is compared with itself, with what else, and where that is of one class and another image.

    Shape:
        embeddings (B, D), labels (B,), ref_emb (M, D), ref_labels (M,) -> bool, (M, D), 2 x (B, M) bool.
    """
    check_size("embeddings", embeddings, similarity.embedding_size)
    labels = checked_labels(labels, "labels").to(embeddings.device)
    others, other_labels = embeddings, labels
    if ref_emb is not None:
        check_size("ref_emb", ref_emb, similarity.embedding_size)
        if ref_labels is None:
            raise ValueError("ref_labels: got none with ref_emb, expected a class for each reference")
        ref_labels = checked_labels(ref_labels, "ref_labels").to(embeddings.device)
        if not are_the_batch(embeddings, labels, ref_emb, ref_labels):
            others, other_labels = ref_emb, ref_labels
    same = labels.unsqueeze(1) == other_labels
    return others is embeddings, others, same, ~itself(embeddings, others)
