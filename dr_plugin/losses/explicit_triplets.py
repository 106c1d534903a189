"""What the losses on explicit triplets share: their triplets, their type, and differences in bounded memory."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_metric_learning.losses.base_metric_loss_function import BaseMetricLossFunction
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor
from torch.autograd.function import once_differentiable

from dr_plugin.triplets.embedding import at_least_float32

_CHUNK_ELEMENTS = 1 << 19  # of one gathered (chunk, D) tensor: 2 MiB in float32, which a CPU's cache holds
_GPU_CHUNK_ELEMENTS = 1 << 24  # few kernels count for more there
_ENTRIES_PER_TRIPLET = (
    128  # of a matrix of products, up to which it is faster than gathering (measured on a CPU)
)
_MAX_PAIRINGS = 1 << 30  # bytes of the mask that PML builds to enumerate triplets


class TripletMargins(torch.autograd.Function):
    """margin(query[a], reference[p], reference[n]) of each triplet, gathered chunk by chunk, both ways."""

    @staticmethod
    def forward(
        ctx: Any,
        margin: Callable[[Tensor, Tensor, Tensor], Tensor],
        query: Tensor,
        reference: Tensor,
        *triplets: Tensor,  # 3 x (T,)
    ) -> Tensor:
        """(T,)."""
        ctx.margin = margin
        ctx.save_for_backward(query, reference, *triplets)
        return torch.cat([margin(*rows) for _, rows in _chunks(query, reference, *triplets)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the query and the reference embeddings."""
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


class SquaredMargins(torch.autograd.Function):
    """||q - p||^2 - ||q - n||^2 of each triplet, from the products of all queries with all references.

    Faster than `TripletMargins` where there are many triplets for the size of that (B, M) matrix. Differences of large
    numbers lose digits: for embeddings of unit norm.
    """

    @staticmethod
    def worth_it(query: Tensor, reference: Tensor, triplets: int) -> bool:
        """Whether the matrix takes about as much memory as gathered rows would, and less time."""
        return len(query) * len(reference) <= _ENTRIES_PER_TRIPLET * triplets

    @staticmethod
    def forward(ctx: Any, query: Tensor, reference: Tensor, *triplets: Tensor) -> Tensor:
        """(B, D), (M, D), 3 x (T,) -> (T,)."""
        ctx.save_for_backward(query, reference, *triplets)
        anchors, positives, negatives = triplets
        with torch.autocast(query.device.type, enabled=False):
            products = (query @ reference.T).flatten()
        rows = anchors * len(reference)
        inner = products.index_select(0, rows + negatives) - products.index_select(0, rows + positives)
        squares = reference.square().sum(1)
        return squares.index_select(0, positives) - squares.index_select(0, negatives) + 2 * inner

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the query and the reference embeddings."""
        query, reference, anchors, positives, negatives = ctx.saved_tensors
        double, rows = 2 * grad_output, anchors * len(reference)
        of_products = query.new_zeros(len(query) * len(reference))
        of_products.index_add_(0, rows + negatives, double).index_add_(0, rows + positives, -double)
        of_products = of_products.view(len(query), len(reference))
        grad_query = grad_reference = None
        with torch.autocast(query.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                grad_query = of_products @ reference
            if ctx.needs_input_grad[1]:
                of_squares = query.new_zeros(len(reference))
                of_squares.index_add_(0, positives, double).index_add_(0, negatives, -double)
                grad_reference = (of_products.T @ query).add_(of_squares.unsqueeze(1) * reference)
        return grad_query, grad_reference, None, None, None


def _chunks(query: Tensor, reference: Tensor, *triplets: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices of the triplets, each with its rows of query, positive and negative, 3 x (chunk, D)."""
    elements = _CHUNK_ELEMENTS if query.device.type == "cpu" else _GPU_CHUNK_ELEMENTS
    size = max(1, elements // max(1, query.shape[1]))
    sources = (query, reference, reference)
    for start in range(0, len(triplets[0]), size):
        part = slice(start, start + size)
        rows = [
            source.index_select(0, indices[part]) for source, indices in zip(sources, triplets, strict=True)
        ]
        yield part, rows


class WideLoss(BaseMetricLossFunction):
    """Base of losses that take half precision embeddings to float32 first, and the references with them."""

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
        wide = at_least_float32(embeddings)
        reference = wide if ref_emb is embeddings else None if ref_emb is None else at_least_float32(ref_emb)
        loss: Tensor = super().forward(wide, labels, indices_tuple, reference, ref_labels)
        return loss


def as_triplets(
    indices_tuple: tuple[Tensor, ...] | None,
    labels: Tensor | None,
    ref_labels: Tensor | None,
    embeddings: Tensor,
    ref_emb: Tensor,
    *,
    wait: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The triplets meant: those given, pairs joined on their anchor, or all of the labels.

    Args:
        wait: Check the range of indices on an accelerator too, for which the host has to wait. Without, the
            accelerator's own error tells of one out of range. Those on the CPU are always checked.
    Shape:
        3 x (T,) long, on the embeddings' device.
    Raises:
        ValueError: if the indices are of several lengths, no integers or out of range, there are neither labels nor
            indices, or too many combinations would have to be looked through.
    """
    if indices_tuple is None:
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        if labels is None or ref_labels is None:
            raise ValueError("got ref_emb without ref_labels and no indices_tuple, expected one of these two")
        pairings = len(labels) * len(ref_labels) ** 2
    else:
        pairings = check_lengths(indices_tuple)
    if pairings > _MAX_PAIRINGS:
        raise ValueError(
            f"indices_tuple: got {'none' if indices_tuple is None else 'pairs'}, whose triplets would be "
            f"sought among {pairings:,} combinations, expected at most {_MAX_PAIRINGS:,}; give triplets, "
            "from a miner such as UniformTripletMiner"
        )
    triplets = lmu.convert_to_triplets(indices_tuple, labels, ref_labels, t_per_anchor="all")
    if indices_tuple is not None:
        for indices, rows in zip(triplets, (embeddings, ref_emb, ref_emb), strict=True):
            _check_indices(indices, len(rows), wait)
    # int32 is an index for some operations only, and uint8 a mask for some.
    anchors, positives, negatives = (indices.to(embeddings.device, torch.long) for indices in triplets)
    return anchors, positives, negatives


def check_lengths(indices_tuple: tuple[Tensor, ...]) -> int:
    """How many combinations of pairs are meant, 0 by triplets; ValueError if they are neither."""
    lengths = [len(indices) for indices in indices_tuple]
    if len(lengths) == 3 and len(set(lengths)) == 1:
        return 0
    if len(lengths) != 4 or lengths[0] != lengths[1] or lengths[2] != lengths[3]:
        raise ValueError(f"indices_tuple: got lengths {lengths}, expected 3 of one length, or 4 as pairs")
    return lengths[0] * lengths[2]


def _check_indices(indices: Tensor, count: int, wait: bool) -> None:
    if len(indices) == 0:
        return
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"indices_tuple: got {indices.dtype}, expected integers: the places of embeddings")
    if wait or indices.device.type == "cpu":
        low, high = (int(end) for end in torch.aminmax(indices))
        if low < 0 or high >= count:
            raise ValueError(
                f"indices_tuple: got an index {low if low < 0 else high}, expected 0 to {count - 1}, of the "
                "embeddings (ref_emb, for positives and negatives, where it is given)"
            )
