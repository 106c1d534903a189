"""Score at top K: right less wrong among the triplets that reach the top of a ranking."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dr_plugin.checks import as_number, check_whole, shown


def score_at_top_k(
    positive_ranks: Tensor | NDArray[Any], negative_ranks: Tensor | NDArray[Any], k: int | Tensor
) -> int:
    """Triplets ranked right less triplets ranked wrong, of those with an answer among the query's K nearest.

    sum_t sign(rank(n_t) - rank(p_t)) [min(rank(p_t), rank(n_t)) <= K]

    - Ranks start at 1 within the query's pool, the query itself not counted; an image's rank is 1 + the number of
      nearer images, so images at one distance share a rank. ``triplet_ranks`` computes them.
    - Positive and negative at one distance count neither way.
    - It is a sum, not a mean: scores compare only on the same triplets and pools. With K as large as every pool it is
      right - wrong, and knows no more than similarity precision does.

    Differs from the paper in: nothing here, but its pools (1,000 images for each text query) were never published. See
    ``scaled_k`` for smaller ones.

    Args:
        positive_ranks: Rank of each triplet's positive.
        negative_ranks: Rank of each triplet's negative.
        k: The paper's K, 30 there; or one for each triplet.
    Shape:
        (T,) and (T,) integer, k int or (T,) integer -> int.
    Raises:
        ValueError: if the shapes differ, there is no triplet, ranks or k are not integers of at least 1.
    Example:
        >>> import torch
        >>> positive, negative = torch.tensor([1, 5, 40, 3]), torch.tensor([9, 2, 50, 3])
        >>> score_at_top_k(positive, negative, k=30)
        0
        >>> score_at_top_k(positive, negative, k=1)
        1

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 6.3.
    """
    positive, negative, limit = _checked(positive_ranks, negative_ranks, k)
    reaches = torch.minimum(positive, negative) <= limit
    return int((torch.sign(negative - positive) * reaches).sum())


def scaled_k(pool_sizes: Tensor | NDArray[Any], share: float = 0.03) -> Tensor:
    """The K that is to each pool what the paper's 30 is to its 1,000 images: the share, rounded, at least 1.

    Args:
        pool_sizes: Images in the pool of each triplet, the query not counted.
        share: K as a share of the pool, in (0, 1].
    Shape:
        (T,) integer -> (T,) long; halves are rounded up.
    Raises:
        ValueError: if a pool is empty, sizes are not integers, or the share is not in (0, 1].
    Example:
        >>> import torch
        >>> scaled_k(torch.tensor([1000, 100, 10, 50]))
        tensor([30,  3,  1,  2])
    """
    share, given = as_number(share), share
    if not 0 < share <= 1:
        raise ValueError(f"got share={shown(given)}, expected a number in (0, 1]")
    sizes = _positive_integers("pool_sizes", pool_sizes)
    return torch.floor(sizes.double() * share + 0.5).long().clamp(min=1)


def _checked(
    positive_ranks: Tensor | NDArray[Any], negative_ranks: Tensor | NDArray[Any], k: int | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    positive = _positive_integers("positive_ranks", positive_ranks)
    negative = _positive_integers("negative_ranks", negative_ranks)
    limit = _positive_integers("k", k if isinstance(k, Tensor) else check_whole("k", k, minimum=1))
    if positive.ndim != 1 or positive.shape != negative.shape or limit.shape not in ((), positive.shape):
        raise ValueError(
            f"got positive_ranks {tuple(positive.shape)}, negative_ranks {tuple(negative.shape)} and "
            f"k {tuple(limit.shape)}, expected (T,), (T,) and one k or (T,)"
        )
    if len(positive) == 0:
        raise ValueError("positive_ranks: got no triplets, expected at least one")
    return positive, negative, limit


def _positive_integers(name: str, values: Any) -> Tensor:
    tensor = torch.as_tensor(values).detach().cpu()
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name}: got {tensor.dtype}, expected integers")
    tensor = tensor.long()
    if bool((tensor < 1).any()):
        raise ValueError(f"{name}: got {int(tensor.min())}, expected integers of at least 1")
    return tensor
