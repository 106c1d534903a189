"""Ranking examples of several models side by side, as Fig. 7 of the paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from dr_plugin.relevance.image_rows import ImageBatches

from .picture_rows import SIDE, Picture, Row, rows_png
from .search_gallery import thumbnail

Ranking = Tensor | npt.NDArray[Any]


def ranking_examples(
    models: Sequence[tuple[str, Ranking]],
    images: ImageBatches | Sequence[str | Path],
    queries: Sequence[int],
    top: int = 10,
) -> bytes:
    """For each query one row a model: the query on the left, then the ``top`` images nearest to it, in order.

    - The query itself is left out of its rows, by its index; other images at distance 0 stay.
    - Of images at one distance, the lower index comes first.
    - Infinite distances are for images that may not be shown (of another pool, say).

    Args:
        models: Name of each model, and its distances or its neighbours.
        images: The images by index: their files, or an object with `batch` such as `PackedImages`.
        queries: Indices into ``images``.
        top: Images a row.
    Shape:
        Distances (Q, N) float, or neighbours (Q, K) integer, nearest first -> the bytes of a PNG.
    Raises:
        ValueError: if a shape does not fit the queries and images, an index is none of an image's, a distance is
            NaN, or fewer than ``top`` images can be shown in a row.
    Example:
        >>> png = ranking_examples([("ConvNet", a), ("DeepRanking", b)], packed, [3, 8])  # doctest: +SKIP
    """
    chosen = _checked_queries(models, images, queries, top)
    orders = [_order(name, ranking, chosen, len(images), top) for name, ranking in models]  # (Q, top) each
    rows: list[Row] = []
    for number, query in enumerate(chosen.tolist()):
        head: Picture | None = Picture(_picture(images, query), ("query",))
        for (name, _), order in zip(models, orders, strict=True):
            found = [Picture(_picture(images, index)) for index in order[number].tolist()]
            rows.append(Row(head, found, name))
            head = None  # stands once, beside its first row
    return rows_png(rows)


def _checked_queries(
    models: Sequence[tuple[str, Ranking]], images: Any, queries: Sequence[int], top: int
) -> npt.NDArray[np.int64]:
    if not models:
        raise ValueError("models: got none, expected at least one (name, distances or neighbours)")
    if not 1 <= top < len(images):
        raise ValueError(
            f"top: got {top} for {len(images)} images, expected 1 to {len(images) - 1}: all but the query itself"
        )
    chosen = np.asarray(queries)
    if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu":
        raise ValueError(f"queries: got {queries!r}, expected the index of at least one image")
    _check_indices("queries", chosen, len(images))
    return chosen.astype(np.int64)


def _order(
    name: str, ranking: Ranking, queries: npt.NDArray[np.int64], count: int, top: int
) -> npt.NDArray[np.int64]:
    """The top images of each query, (Q, top)."""
    given = ranking.detach().cpu().numpy() if isinstance(ranking, Tensor) else np.asarray(ranking)
    if given.ndim != 2 or len(given) != len(queries) or given.dtype.kind not in "iuf":
        raise ValueError(
            f"{name}: got {given.dtype} of shape {given.shape} for {len(queries)} queries, expected "
            f"distances ({len(queries)}, {count}) float or neighbours ({len(queries)}, K) integer"
        )
    if given.dtype.kind != "f":
        _check_indices(name, given, count)
        return np.stack([_first(name, row[row != q], top) for row, q in zip(given, queries, strict=True)])
    if given.shape[1] != count:
        raise ValueError(f"{name}: got distances to {given.shape[1]} images, expected to all {count}")
    if np.isnan(given).any():
        raise ValueError(f"{name}: got NaN among the distances, expected numbers")
    order = []
    for row, query in zip(given, queries, strict=True):
        ranked = np.argsort(row, kind="stable")
        order.append(_first(name, ranked[(ranked != query) & (row[ranked] < np.inf)], top))
    return np.stack(order)


def _first(name: str, ranked: npt.NDArray[Any], top: int) -> npt.NDArray[np.int64]:
    if len(ranked) < top:
        raise ValueError(
            f"{name}: got {len(ranked)} images to show for a query beside itself, expected at least top={top}"
        )
    return ranked[:top].astype(np.int64)


def _check_indices(name: str, indices: npt.NDArray[Any], count: int) -> None:
    outside = (indices < 0) | (indices >= count)
    if outside.any():
        raise ValueError(f"{name}: got index {indices[outside][0]}, expected 0 to {count - 1}")


def _picture(images: Any, index: int) -> Image.Image:
    if not hasattr(images, "batch"):
        return thumbnail(Path(images[index]), SIDE)
    pixels = images.batch([index])[0][0].numpy()  # (3, H, W)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
