"""Relevance from the labels that images share, where an image has several."""

import difflib
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from torch import Tensor

from dr_plugin.checks import shown
from dr_plugin.relevance.base import BaseRelevance, Values, digest
from dr_plugin.relevance.classes import Labels
from dr_plugin.triplets.relevances import Indices

MEASURES = ("jaccard", "overlap", "cosine")

Memberships = npt.NDArray[Any] | Tensor | Sequence[Iterable[Hashable]] | Any  # or a scipy.sparse array


class MultiLabelRelevance(BaseRelevance):
    """How large a part of their labels two images share, between 0 and 1; symmetric.

    For images i and j with label sets A and B, `measure` is one of:

    - jaccard: |A and B| / |A or B|.
    - overlap: |A and B| / min(|A|, |B|), 1 where one set holds the other.
    - cosine: |A and B| / sqrt(|A| |B|).

    An image without labels shares nothing: 0, with an image without labels too. All totals together take time
    in proportion to N^2 where `labels` is None.

    Args:
        memberships: Which labels each image has: a truth value (or 0 and 1) for each image and label, as array,
            tensor or scipy.sparse array; or a list with each image's set (or list) of label names or numbers.
        measure: One of the above.
        labels: Classes across which r is 0, any integers; None: there are none (graded relevance), so that
            out-of-class negatives are images that share no label.
    Shape:
        memberships (N, L), labels (N,).
    Raises:
        ValueError: if memberships are of another shape, or hold anything but truth values (lists: if an image's
            labels are a string, truth values, or one label twice, as a row of 0 and 1 would be); if labels do
            not match; if there is no such measure.
    Example:
        >>> relevance = MultiLabelRelevance([{"dog", "grass"}, {"dog"}, {"cat"}])
        >>> relevance.pairs([0, 0], [1, 2])
        array([0.5, 0. ], dtype=float32)
    """

    def __init__(
        self, memberships: Memberships, measure: str = "jaccard", labels: Labels | None = None
    ) -> None:
        if not isinstance(measure, str) or measure not in MEASURES:
            near = difflib.get_close_matches(str(measure), MEASURES, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"measure: got {shown(measure)}, expected one of {', '.join(MEASURES)}{hint}")
        self.memberships = _as_sparse(memberships)
        super().__init__(self.memberships.shape[0], labels)
        self.measure = measure
        self._sizes = np.diff(self.memberships.indptr).astype(np.float32)  # (N,) labels of each image

    def fingerprint(self) -> bytes | None:
        """Of memberships, measure and labels."""
        held = self.memberships
        shape = repr((self.measure, held.shape)).encode()
        indices = held.indices.astype(np.int64), held.indptr.astype(np.int64)
        return digest(b"MultiLabelRelevance", shape, *indices, self.classes.number)

    def _pairs(self, i: Indices, j: Indices) -> Values:
        shared = self.memberships[i].multiply(self.memberships[j]).sum(axis=1)
        return self._measured(np.asarray(shared, np.float32).ravel(), self._sizes[i], self._sizes[j])

    def _rectangle(self, i: Indices, j: Indices) -> Values:
        shared = (self.memberships[i] @ self.memberships[j].T).toarray()
        return self._measured(shared, self._sizes[i, None], self._sizes[j])

    def _measured(self, shared: Values, sizes: Values, others: Values) -> Values:
        if self.measure == "jaccard":
            whole = sizes + others - shared
        elif self.measure == "overlap":
            whole = np.minimum(sizes, others)
        else:
            whole = np.sqrt(sizes * others)
        values: Values = np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
        return values


def _as_sparse(memberships: Any) -> Any:
    """(N, L) csr_array of float32 ones."""
    if isinstance(memberships, Tensor):
        memberships = memberships.detach().cpu().numpy()
    if not isinstance(memberships, np.ndarray) and not sparse.issparse(memberships):
        return _of_sets(memberships)
    if memberships.ndim != 2 or memberships.dtype.kind not in "buif":
        raise ValueError(
            f"memberships: got {memberships.dtype} of shape {memberships.shape}, expected truth values of shape "
            "(N, L): one for each image and label"
        )
    held = sparse.csr_array(memberships, dtype=np.float32, copy=True)
    held.sum_duplicates()
    held.eliminate_zeros()
    if (held.data != 1).any():
        raise ValueError(
            f"memberships: got {held.data[held.data != 1][0]:g}, expected truth values, or 0 and 1"
        )
    return held


def _of_sets(sets: Any) -> Any:
    """Memberships from each image's labels."""
    if isinstance(sets, str | bytes) or not isinstance(sets, Sequence):
        raise ValueError(
            f"memberships: got {type(sets).__name__}, expected an array, or a list of label sets"
        )
    columns: dict[Hashable, int] = {}
    indices: list[int] = []
    ends = [0]
    for image, names in enumerate(sets):
        if isinstance(names, str | bytes) or not isinstance(names, Iterable):
            raise ValueError(f"memberships: image {image}: got {shown(names)}, expected a set of labels")
        names = list(names)
        if len(set(names)) < len(names) or any(isinstance(name, bool | np.bool_) for name in names):
            raise ValueError(
                f"memberships: image {image}: got truth values or a label twice in a list, expected different label "
                "names or numbers; truth values, or 0 and 1, go in an array: np.array(memberships)"
            )
        indices += sorted(columns.setdefault(name, len(columns)) for name in names)
        ends.append(len(indices))
    shape = (len(sets), max(1, len(columns)))
    return sparse.csr_array((np.ones(len(indices), np.float32), indices, ends), shape=shape)
