"""Mean average precision of whole or truncated rankings, with images that do not count."""

from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from dr_plugin.checks import shown

Convention = Literal["mean", "trapezoid"]
Without = Literal["left_out", "zero", "error"]

_CHUNK_ELEMENTS = 1 << 23  # of the rankings that are scored at a time


def mean_average_precision(
    relevant: Tensor | NDArray[Any],
    relevant_count: Tensor | NDArray[Any],
    *,
    ignored: Tensor | NDArray[Any] | None = None,
    convention: Convention = "mean",
    out_of: Literal["all", "reachable"] = "all",
    without_relevant: Without = "left_out",
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Average precision of each query's ranking, averaged over queries.

    AP = 1/R sum over the relevant images found of P(i), i the image's place, P(i) the share of relevant among the
    first i. With convention="trapezoid" (P(i-1) + P(i)) / 2 in place of P(i), P(0) = 1: the area under the
    precision-recall curve as the Oxford Buildings script has it, and with it the Oxford and Paris figures of papers.

    - R is the number of all relevant images, ``relevant_count``: those that a truncated ranking leaves out count as not
      found. out_of="reachable" divides by min(R, places of the ranking) instead, so that a truncated ranking can
      reach 1.
    - ``ignored`` images (Oxford's "junk", the query itself) are taken out before places are counted.
    - A query without any relevant image has no AP; ``without_relevant`` says what becomes of it.

    Args:
        relevant: Whether each of the query's neighbours is relevant, nearest first.
        relevant_count: Relevant images in the gallery for each query, ignored ones not counted; of a whole ranking
            ``relevant.sum(1)``.
        ignored: Which neighbours do not count, neither way.
        convention: "mean" of precisions, or "trapezoid".
        out_of: "all" relevant images, or those that are "reachable" within the ranking.
        without_relevant: Queries with a count of 0 are "left_out" of the mean (NaN with reduction="none"), count as
            "zero", or are an "error".
        reduction: "mean" over queries; "none", one value a query.
    Shape:
        relevant (Q, K) bool, relevant_count (Q,) integer, ignored (Q, K) bool -> () or (Q,) float32.
    Raises:
        ValueError: if shapes or types do not fit, Q or K is 0, an image is both relevant and ignored, a ranking holds
            more relevant images than ``relevant_count`` says, or no query has any.
    Example:
        >>> import torch
        >>> relevant = torch.tensor([[True, False, True, False]])
        >>> mean_average_precision(relevant, torch.tensor([2]))  # (1/1 + 2/3) / 2
        tensor(0.8333)
        >>> mean_average_precision(relevant, torch.tensor([2]), convention="trapezoid")  # (1 + (1/2 + 2/3)/2) / 2
        tensor(0.7917)
        >>> mean_average_precision(relevant, torch.tensor([2]), ignored=torch.tensor([[False, True, False, False]]))
        tensor(1.)

    References:
        Philbin et al., Object Retrieval with Large Vocabularies and Fast Spatial Matching, CVPR 2007 (compute_ap).
        Radenović et al., Revisiting Oxford and Paris, CVPR 2018.
    """
    for name, value, names in (
        ("convention", convention, ("mean", "trapezoid")),
        ("out_of", out_of, ("all", "reachable")),
        ("without_relevant", without_relevant, ("left_out", "zero", "error")),
        ("reduction", reduction, ("mean", "none")),
    ):
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"got {name}={shown(value)}, expected one of {names}")
    found, counts, junk = _checked(relevant, relevant_count, ignored)
    has_any = counts > 0
    _check_any(has_any, without_relevant, reduction)
    step = max(1, _CHUNK_ELEMENTS // found.shape[1])
    parts = [
        _precision_sums(
            found[start : start + step], None if junk is None else junk[start : start + step], convention
        )
        for start in range(0, len(found), step)
    ]
    places = found.shape[1] - (0 if junk is None else junk.sum(1))
    divisor = (
        counts if out_of == "all" else torch.minimum(counts, torch.as_tensor(places, device=counts.device))
    )
    values = torch.cat(parts) / divisor.clamp(min=1)  # 0 / 1 for a query without relevant images
    if reduction == "none":
        return values if without_relevant == "zero" else values.masked_fill(~has_any, float("nan"))
    return values.mean() if without_relevant == "zero" else values[has_any].mean()


def _precision_sums(relevant: Tensor, ignored: Tensor | None, convention: Convention) -> Tensor:
    """Sum of the (interpolated) precisions at each query's relevant images, (q,) float32."""
    # In the order of the rankings: (H,), H relevant images in all.
    query, column = relevant.nonzero(as_tuple=True)
    found = relevant.sum(1)
    hit = torch.arange(1, len(query) + 1, device=query.device) - (found.cumsum(0) - found)[query]
    place = column + 1
    if ignored is not None:
        place = place - ignored.cumsum(1)[query, column]
    precision = hit / place
    if convention == "trapezoid":
        before = torch.where(place > 1, (hit - 1) / (place - 1).clamp(min=1), 1.0)
        precision = (precision + before) / 2
    return precision.new_zeros(len(relevant)).index_add_(0, query, precision)


def _check_any(has_any: Tensor, without_relevant: Without, reduction: str) -> None:
    if without_relevant == "error" and not has_any.all():
        raise ValueError(
            f"got {int((~has_any).sum())} queries without any relevant image (the first: {int(has_any.int().argmin())})"
            ", expected one for each: leave them out, or choose without_relevant='left_out' or 'zero'"
        )
    if without_relevant == "left_out" and reduction == "mean" and not has_any.any():
        raise ValueError(
            "got no query with a relevant image, expected at least one: the mean of nothing is no number"
        )


def _checked(relevant: Any, relevant_count: Any, ignored: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    found = torch.as_tensor(relevant)
    counts = torch.as_tensor(relevant_count).to(found.device)
    junk = None if ignored is None else torch.as_tensor(ignored).to(found.device)
    if found.ndim != 2 or found.dtype != torch.bool or 0 in found.shape:
        raise ValueError(
            f"got relevant {tuple(found.shape)} of {found.dtype}, expected (Q, K) bool, Q and K at least 1"
        )
    if counts.shape != found.shape[:1] or counts.dtype == torch.bool or counts.is_floating_point():
        raise ValueError(
            f"got relevant_count {tuple(counts.shape)} of {counts.dtype}, expected ({len(found)},) integers"
        )
    if junk is not None and (junk.shape != found.shape or junk.dtype != torch.bool):
        raise ValueError(
            f"got ignored {tuple(junk.shape)} of {junk.dtype}, expected {tuple(found.shape)} bool, as relevant"
        )
    if junk is not None and (junk & found).any():
        query = int((junk & found).any(1).int().argmax())
        raise ValueError(f"query {query}: got an image both relevant and ignored, expected one or the other")
    over = found.sum(1) > counts
    if over.any():
        query = int(over.int().argmax())
        raise ValueError(
            f"query {query}: got {int(found[query].sum())} relevant images in its ranking, "
            f"expected at most its relevant_count, {int(counts[query])}"
        )
    return found, counts, junk
