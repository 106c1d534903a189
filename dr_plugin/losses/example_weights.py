"""What an example of a batch weighs: by its relevance, or by what it costs as a query."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_metric_learning.losses.base_metric_loss_function import BaseMetricLossFunction
from torch import Tensor

from dr_plugin.triplets.embedding import embedding_values
from dr_plugin.triplets.layout import ClassLayout

# As PML's losses give them to their reducer: name -> losses, indices, reduction_type.
LossTerms = dict[str, Any]


def mean_relevances(
    embeddings: Tensor,
    labels: Tensor,
    references: Tensor,
    ref_labels: Tensor,
    *,
    kernel: str,
    bandwidth: float | None,
) -> Tensor:
    """Each embedding's mean relevance to the references of its class other than itself; 1 where there are none.

    Shape:
        embeddings (B, D), all of which are among the references (M, D) -> (B,).
    """
    layout = ClassLayout(labels.cpu(), ref_labels.cpu())
    values = embedding_values(layout, embeddings, references, kernel=kernel, bandwidth=bandwidth)
    query = layout.pairs()[0].to(values.device)
    total = values.new_zeros(len(labels)).index_add_(0, query, values)
    others = torch.bincount(query, minlength=len(labels)) - 1
    return torch.where(others > 0, total / others, 1.0)


@contextmanager
def loss_terms(loss: BaseMetricLossFunction) -> Iterator[LossTerms]:
    """Collect what a PML loss gives to its reducer."""
    terms: LossTerms = {}
    hook = loss.reducer.register_forward_pre_hook(lambda _, inputs: terms.update(inputs[0]))
    try:
        yield terms
    finally:
        hook.remove()


def query_losses(terms: LossTerms, count: int, device: torch.device) -> Tensor:
    """Mean of the terms in which each of `count` examples is the query; 0 where it is in none, or one is not finite."""
    total, number = torch.zeros(2, count, device=device)
    for part in terms.values():
        values, indices = part["losses"], part["indices"]
        if part["reduction_type"] == "already_reduced" or not torch.is_tensor(values):
            continue  # a regulariser, or nothing
        query = indices if part["reduction_type"] == "element" else indices[0]
        values = values.detach().float().reshape(len(query))  # AngularLoss has a second dimension of 1
        total.index_add_(0, query, values)
        number.index_add_(0, query, torch.ones_like(values))
    mean: Tensor = total / number.clamp(min=1)
    return mean.nan_to_num(nan=0.0, posinf=0.0)
