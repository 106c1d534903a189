"""Ranking metrics inside pytorch-metric-learning's AccuracyCalculator."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator, nan_accuracy
from torch import Tensor

from dr_plugin.checks import check_flag, check_whole, check_wholes, shown
from dr_plugin.metrics.knn import ExactKNN
from dr_plugin.metrics.matches import Reduction, averaged, right_neighbors
from dr_plugin.metrics.mean_average_precision import mean_average_precision
from dr_plugin.metrics.precision_at_k import precision_at_k
from dr_plugin.metrics.recall_at_k import recall_at_k
from dr_plugin.metrics.tiles import checked_device

KNNFunction = Callable[[Tensor, int, Tensor, bool], tuple[Tensor, Tensor]]
Array = Tensor | np.ndarray[Any, Any]


class RankingAccuracyCalculator(AccuracyCalculator):
    """PML's AccuracyCalculator with our metrics at k, less its silent errors.

    ``precision_at_<k>``, ``recall_at_<m>`` (which is the hit rate) and ``mean_average_precision_at_<m>``.

    The metric's name carries its k (``precision_at_30``), so testers and hooks show what was measured.
    A query whose class the reference does not hold is left out of the mean, as in PML's own metrics
    (``dr_plugin.metrics.precision_at_k`` alone counts it as 0).

    Differs from PML's calculator, where it would return a wrong number or fail late:

    - k larger than the reference (less the query itself, where it is part of it) is a ValueError; PML reads
      faiss's -1 ids as the last label. A ``knn_func`` that returns ids outside the reference is refused too, and so
      is one that gives a query as its own neighbour.
    - Labels are renumbered 0..C-1 before PML casts them to float32, which merges ids above 2^24.
    - P@k cannot be had from fewer than k neighbours; r_precision and mean_average_precision_at_r are refused
      where k is smaller than the largest class; unknown names in ``get_accuracy(include=...)`` are refused.
    - By default only this class's metrics are computed; PML's, slow clustering among them, are there by name.
    - Neighbours come from ``ExactKNN``, so faiss is not needed; ``device`` may be a string.

    Args:
        k: The k of precision_at_k.
        recall_at: The k of each recall_at_k; may exceed k (the search then asks for more neighbours, which
            PML's mean_average_precision and mean_reciprocal_rank see as well).
        map_at: The k of each mean_average_precision_at_k, over the k nearest, out of the most that a class could have
            there (min of k and its images in the reference), so that 1 can be reached; may exceed k too.
        include: Names of the metrics to compute, ours and PML's; by default all of ours.
        exclude: Names to leave out.
        avg_of_avgs: Average over classes of the averages over each class's queries.
        return_per_class: A list, one value for each class that has such queries, in the order of the labels.
        device: Where to compute; by default CUDA where there is one.
        knn_func: Called as knn_func(query, k, reference, ref_includes_query); default ``ExactKNN()``.
        kmeans_func: As in PML; only used for AMI and NMI.
    Raises:
        ValueError: if k, recall_at or map_at are not positive integers, or include or exclude hold an unknown name.
    Example:
        >>> import torch
        >>> calculator = RankingAccuracyCalculator(k=2, recall_at=(1,), device="cpu")
        >>> embeddings, labels = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([5, 5, 5, 8])
        >>> calculator.get_accuracy(embeddings[:1], labels[:1], embeddings[1:], labels[1:])
        {'precision_at_2': 1.0, 'recall_at_1': 1.0}
    """

    def __init__(
        self,
        k: int = 30,
        *,
        recall_at: Sequence[int] = (),
        map_at: Sequence[int] = (),
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        avg_of_avgs: bool = False,
        return_per_class: bool = False,
        device: torch.device | str | None = None,
        knn_func: KNNFunction | None = None,
        kmeans_func: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        k = check_whole("k", k, minimum=1, below=2**31)
        recall_at = check_wholes("recall_at", recall_at, minimum=1)
        map_at = check_wholes("map_at", map_at, minimum=1)
        if knn_func is not None and not callable(knn_func):
            raise ValueError(f"knn_func: got {shown(knn_func)}, expected a function, or None")
        metrics = {f"precision_at_{k}": partial(self._metric, precision_at_k, k)}
        metrics |= {f"recall_at_{m}": partial(self._metric, recall_at_k, m) for m in recall_at}
        metrics |= {f"mean_average_precision_at_{m}": partial(self._average_precision, m) for m in map_at}
        self._ranking_metrics = tuple(metrics)
        for name, metric in metrics.items():
            setattr(self, f"calculate_{name}", metric)  # PML finds its metrics by this prefix
        super().__init__(
            include=_names("include", include) or self._ranking_metrics,
            exclude=_names("exclude", exclude),
            avg_of_avgs=check_flag("avg_of_avgs", avg_of_avgs),
            return_per_class=check_flag("return_per_class", return_per_class),
            k=max((k, *recall_at, *map_at)),
            device=None if device is None else checked_device(device),
            knn_func=ExactKNN() if knn_func is None else _CheckedKNN(knn_func),
            kmeans_func=kmeans_func,
        )

    def requires_knn(self) -> list[str]:
        """Names of the metrics that need neighbours; PML's own list misses mean_reciprocal_rank."""
        return [*super().requires_knn(), "mean_reciprocal_rank", *self._ranking_metrics]

    def get_accuracy(
        self,
        query: Array,
        query_labels: Array,
        reference: Array | None = None,
        reference_labels: Array | None = None,
        ref_includes_query: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The metrics of query against reference, by name; arguments as in PML's AccuracyCalculator."""
        include, exclude = _names("include", include), _names("exclude", exclude)
        check_flag("ref_includes_query", ref_includes_query)
        self.check_primary_metrics(include, exclude)
        if (reference is None) != (reference_labels is None):
            raise ValueError("got only one of reference and reference_labels, expected both or neither")
        if reference_labels is None:
            query_labels = self._dense(query_labels)
        else:
            query_labels, reference_labels = self._dense(query_labels, reference_labels).split(
                [len(query_labels), len(reference_labels)]
            )
        accuracies: dict[str, Any] = super().get_accuracy(
            query, query_labels, reference, reference_labels, ref_includes_query, include, exclude
        )
        return accuracies

    def determine_k(self, bin_counts: Tensor, num_reference_embeddings: int, ref_includes_query: bool) -> int:
        """The number of neighbours to search for; a ValueError where the reference cannot give as many."""
        own = int(ref_includes_query)
        k: int = self.k
        if k > num_reference_embeddings - own:
            less = " without the query itself" if own else ""
            raise ValueError(
                f"got k={k} neighbours, expected at most the {num_reference_embeddings - own} images of the "
                f"reference{less}: lower k, recall_at and map_at, or use a larger reference"
            )
        largest_class = int(bin_counts.max()) - own
        whole_class = {"r_precision", "mean_average_precision_at_r"}.intersection(self.get_curr_metrics())
        if whole_class and k < largest_class:
            raise ValueError(
                f"got k={k} for {sorted(whole_class)}, which look at as many neighbours as the largest class "
                f"has images: expected k >= {largest_class}"
            )
        return k

    def _dense(self, *labels: Array) -> Tensor:
        """All labels in one (N,) tensor, renumbered 0..C-1 in their order."""
        tensors = [torch.as_tensor(each, device=self.device) for each in labels]
        for tensor in tensors:
            if tensor.ndim != 1 or len(tensor) == 0 or tensor.is_floating_point() or tensor.is_complex():
                raise ValueError(
                    f"got labels {tuple(tensor.shape)} of {tensor.dtype}, expected (N,) integers, N at least 1"
                )
        dense: Tensor = torch.unique(torch.cat(tensors), return_inverse=True)[1]
        return dense

    def _metric(
        self,
        function: Callable[..., Tensor],
        k: int,
        *,
        knn_labels: Tensor,
        query_labels: Tensor,
        not_lone_query_mask: Tensor,
        label_counts: tuple[Tensor, Tensor],
        **_: Any,
    ) -> float | list[float]:
        """One of our functions on what PML hands to every metric."""
        if not not_lone_query_mask.any():
            nothing: float | list[float] = nan_accuracy(label_counts[0], self.return_per_class)
            return nothing
        values = function(
            knn_labels[not_lone_query_mask].long(),  # PML made them float32; dense labels survive that
            query_labels[not_lone_query_mask].long(),
            k,
            reduction=self._reduction(),
        )
        return values.tolist() if self.return_per_class else values.mean().item()

    def _average_precision(
        self, k: int, *, label_counts: tuple[Tensor, Tensor], ref_includes_query: bool, **kwargs: Any
    ) -> float | list[float]:
        """Average precision over the first k, of as many images as the query's class has in the reference."""
        sizes = dict(zip(*(each.long().tolist() for each in label_counts), strict=True))
        own = int(ref_includes_query)

        def function(neighbors: Tensor, queries: Tensor, k: int, *, reduction: Reduction) -> Tensor:
            counts = torch.tensor([sizes[label] - own for label in queries.tolist()], device=queries.device)
            values = mean_average_precision(
                right_neighbors(neighbors, queries, k), counts, out_of="reachable", reduction="none"
            )
            return averaged(values, 1, queries, reduction)

        return self._metric(function, k, label_counts=label_counts, **kwargs)

    def _reduction(self) -> Reduction:
        return "class" if self.avg_of_avgs or self.return_per_class else "mean"


def _names(argument: str, names: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{argument}: got {shown(names)}, expected names of metrics in a list or a tuple")
    return tuple(names)


class _CheckedKNN:
    """A user's ``knn_func`` whose ids are looked at before labels are read by them."""

    def __init__(self, knn_func: KNNFunction) -> None:
        self.knn_func = knn_func

    def __call__(
        self, query: Tensor, k: int, reference: Tensor, ref_includes_query: bool
    ) -> tuple[Tensor, Tensor]:
        distances, indices = self.knn_func(query, k, reference, ref_includes_query)
        if indices.shape != (len(query), k):
            raise ValueError(
                f"got neighbours {tuple(indices.shape)} from knn_func, expected {(len(query), k)}"
            )
        if indices.min() < 0 or indices.max() >= len(reference):
            raise ValueError(
                f"got neighbour ids {int(indices.min())}..{int(indices.max())} from knn_func, expected "
                f"0..{len(reference) - 1}: an approximate index found fewer than k={k}: raise its effort"
            )
        if ref_includes_query:
            own = (indices == torch.arange(len(query), device=indices.device)[:, None]).any(1)
            if own.any():
                raise ValueError(
                    f"got {int(own.sum())} queries as their own neighbour from knn_func (the first: "
                    f"{int(own.int().argmax())}), expected none: where ref_includes_query is true, leave out row i for "
                    "query i, by its index, as ExactKNN does"
                )
        return distances, indices
