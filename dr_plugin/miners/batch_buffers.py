"""The paper's buffers within one batch: a bounded, weighted sample of each class."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dr_plugin.triplets import RANDOM_BITS, ClassLayout


class BatchBuffers(NamedTuple):
    """What the buffers hold of the references, and how the draws from them are weighted.

    Attributes:
        kept: (K,) the references in the buffers, ascending.
        layout, values: Of the kept references, and, where the batch is its own references, of the kept queries.
        query_weights: (B,) or (K,) of the layout's queries.
        candidate_weights: (K,) of the kept references.
    """

    kept: Tensor
    layout: ClassLayout
    values: Tensor
    query_weights: Tensor
    candidate_weights: Tensor


def fill_buffers(
    labels: Tensor,
    ref_labels: Tensor | None,
    layout: ClassLayout,
    values: Tensor,
    buffer_size: int,
    *,
    weighted: bool,
    random_bits: Callable[[tuple[int, ...]], Tensor],
) -> BatchBuffers:
    """Stream the references by: of a class with more than `buffer_size`, those with the largest u^(1/r) are kept.

    r_j is the reference's total relevance to the queries of its class, (6); 1 where the draws are not `weighted`. A
    class that does not fit is read as in the paper: queries uniform from its buffer, candidates corrected by 1 / r_j,
    as they are there in proportion to r_j already. As a whole it weighs what all its images weigh together.
    """
    references = labels if ref_labels is None else ref_labels
    i, j = layout.pairs()
    totals, query_totals = values.new_ones(len(references)), values.new_ones(len(labels))
    if weighted:
        totals = torch.zeros_like(totals).index_add_(0, j, values)  # (M,) r_j
        query_totals = torch.zeros_like(query_totals).index_add_(0, i, values)  # (B,) r_i
    classes, of, counts = torch.unique(references, return_inverse=True, return_counts=True)
    uniform = (random_bits((len(references),)) + 1).double() / (1 << RANDOM_BITS)  # (0, 1]
    arrivals = -uniform.log().to(totals.device) / totals  # -log key; none where r_j is 0, so it comes last
    # At random where all come last, as in a class without queries.
    first = torch.argsort(uniform.to(arrivals.device))
    first = first[torch.argsort(arrivals[first], stable=True)]
    first = first[torch.argsort(of[first], stable=True)]
    rank = torch.arange(len(first), device=first.device) - (counts.cumsum(0) - counts)[of[first]]
    kept = first[rank < buffer_size].sort().values
    full = counts[of] > buffer_size  # (M,) whether the reference's class did not fit
    correction = torch.where(full & (totals > 0), 1 / totals, 1.0)
    inside = torch.zeros(len(references), dtype=torch.bool, device=kept.device)
    inside[kept] = True
    if ref_labels is not None:
        chosen = inside[j]
        return BatchBuffers(
            kept, ClassLayout(labels, references[kept]), values[chosen], query_totals, correction[kept]
        )
    of_class = totals.new_zeros(len(classes)).index_add_(0, of, totals)
    query_weights = torch.where(full, of_class[of] / buffer_size, query_totals)
    return BatchBuffers(
        kept, ClassLayout(labels[kept]), values[inside[i] & inside[j]], query_weights[kept], correction[kept]
    )
