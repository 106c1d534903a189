"""Exact nearest neighbours within bounded memory, on any device or through faiss."""

import math
from typing import Literal

import torch
from torch import Tensor

from dr_plugin.checks import check_flag, check_whole_or_none
from dr_plugin.metrics.matches import check_k
from dr_plugin.metrics.tiles import (
    Progress,
    Tiles,
    candidate_search,
    checked_device,
    chunk_rows,
    full_precision,
)

# Candidates kept beyond k: the tiles rank by rounded distances, the last step by exact ones.
SPARE = 8
# Squares and sums of four such norms still fit float32.
LARGEST_NORM = 1e18


def nearest(
    query: Tensor,
    gallery: Tensor,
    k: int,
    *,
    exclude_self: bool = False,
    largest: bool = False,
    chunk_size: int | None = None,
    backend: Literal["torch", "faiss"] = "torch",
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """The k gallery rows nearest to each query, by Euclidean distance, nearest first.

    Tiles of |g|^2 - 2 q.g, with q and g taken relative to a common centre, give k + 8 candidates a query; the
    distances of these are then computed anew by differences, in the same precision, and ranked. So distances
    near 0 and far from the origin are right, and a duplicate's distance is exactly 0.

    - Ties go to the lower index, as long as no more than 8 images tie with the k-th.
    - Memory beyond input and result is bounded by ``chunk_size``: a tile of chunk_size x (chunk_size + k
      + 8), blocks of chunk_size embeddings, one query's k + 8 embeddings. There is never a Q x N matrix.
    - Computed in float32; in float64 where an input is float64 (but faiss finds its candidates in float32).
      float16, bfloat16 and uint8 (raw pixels) are widened block by block. A surrounding autocast and
      the TF32 setting do not reach the search.

    Args:
        query: Embeddings to search for.
        gallery: Embeddings to search in.
        k: Neighbours for each query; at most N, or N - 1 with ``exclude_self``.
        exclude_self: Query i is gallery[i] (train against train) and is left out by its index; other images
            at distance 0 stay.
        largest: The k farthest instead, farthest first. Only the torch backend can.
        chunk_size: Rows of query and of gallery in a tile; by default as many as 256 MiB allow.
        backend: "torch", or "faiss" (IndexFlatL2, on the CPU; holds a float32 copy of the gallery).
        device: Where to compute, blocks being moved there; by default where the gallery is.
        progress: Called as progress(task, tiles done, tiles in all).
    Shape:
        (Q, D) and (N, D) float or uint8 -> distances (Q, k) float32, indices (Q, k) long, where query is.
    Raises:
        ValueError: if k does not fit the gallery, shapes do not match, either side is empty, embeddings hold
            NaN or infinity (or norms above 1e18), or ``exclude_self`` comes with a query that is not the
            gallery's first rows.
        ImportError: if faiss is asked for and not installed.
    Example:
        >>> import torch
        >>> gallery = torch.tensor([[0.0], [1.0], [5.0]])
        >>> nearest(torch.tensor([[4.0]]), gallery, k=2)
        (tensor([[1., 3.]]), tensor([[2, 1]]))
        >>> nearest(gallery, gallery, k=1, exclude_self=True)[1].T
        tensor([[1, 0, 1]])
    """
    exclude_self, largest = check_flag("exclude_self", exclude_self), check_flag("largest", largest)
    device = None if device is None else checked_device(device)
    _check_arguments(query, gallery, exclude_self)
    less = ", its own row left out" if exclude_self else ""
    k = check_k(k, len(gallery) - int(exclude_self), f"the gallery holds {len(gallery)} rows{less}")
    chunk_size = check_whole_or_none("chunk_size", chunk_size, minimum=1)
    search = candidate_search(backend, largest, device)
    where = device or (gallery.device if backend == "torch" else torch.device("cpu"))
    dtype = torch.promote_types(torch.promote_types(query.dtype, gallery.dtype), torch.float32)
    chunk = chunk_size or chunk_rows(query.shape[1], dtype.itemsize)
    tiles = Tiles(query, gallery, chunk, where, dtype)
    with torch.no_grad(), full_precision():
        _check_values(tiles, exclude_self)
        wide = min(k + int(exclude_self) + SPARE, len(gallery))
        candidates = search(tiles, wide, largest, progress)
        distances, indices = _ranked(tiles, candidates, k, exclude_self, largest)
    return distances.to(query.device), indices.to(query.device)


class ExactKNN:
    """``nearest`` under the signature that PML's ``AccuracyCalculator`` expects of a ``knn_func``.

    ``ref_includes_query`` means what it means there: reference[:len(query)] is the query, and query i's own
    row is left out.

    Args:
        chunk_size: As in ``nearest``.
        backend: As in ``nearest``.
    Shape:
        query (Q, D), reference (N, D) -> distances (Q, k) float32, indices (Q, k) long.
    """

    def __init__(
        self, *, chunk_size: int | None = None, backend: Literal["torch", "faiss"] = "torch"
    ) -> None:
        self.chunk_size = chunk_size
        self.backend: Literal["torch", "faiss"] = backend

    def __call__(
        self, query: Tensor, k: int, reference: Tensor, ref_includes_query: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The k nearest of reference to each query."""
        return nearest(
            query,
            reference,
            k,
            exclude_self=check_flag("ref_includes_query", ref_includes_query),
            chunk_size=self.chunk_size,
            backend=self.backend,
        )


def _ranked(
    tiles: Tiles, candidates: Tensor, k: int, exclude_self: bool, largest: bool
) -> tuple[Tensor, Tensor]:
    """The best k of the candidates by distances computed from differences, ties by index."""
    wide = candidates.shape[1]
    candidates = candidates.sort(1).values  # a stable sort by distance then leaves ties in this order
    distances = torch.empty((len(candidates), k), device=tiles.device, dtype=torch.float32)
    indices = torch.empty((len(candidates), k), device=tiles.device, dtype=torch.long)
    step = max(1, tiles.chunk // wide)
    # Taken once: fresh memory for every step would cost more in page faults than the step itself.
    gathered = tiles.gallery.new_empty(min(step, len(candidates)) * wide, tiles.gallery.shape[1])
    for first in range(0, len(candidates), step):
        these = slice(first, first + step)
        ids = candidates[these]  # (rows, wide)
        rows = tiles.query[these].to(tiles.device, tiles.dtype)
        chosen = ids.flatten().to(gathered.device)
        found = torch.index_select(tiles.gallery, 0, chosen, out=gathered[: len(chosen)])
        found = found.to(tiles.device, tiles.dtype).view(*ids.shape, -1)  # (rows, wide, D)
        exact = torch.linalg.vector_norm(found.sub_(rows[:, None]), dim=2)
        if exclude_self:
            own = torch.arange(first, first + len(ids), device=tiles.device)[:, None]
            exact.masked_fill_(ids == own, -math.inf if largest else math.inf)
        exact, order = exact.sort(dim=1, stable=True, descending=largest)
        distances[these] = exact[:, :k].float()
        indices[these] = ids.gather(1, order[:, :k])
    return distances, indices


def _check_arguments(query: Tensor, gallery: Tensor, exclude_self: bool) -> None:
    shapes = f"query {tuple(query.shape)} and gallery {tuple(gallery.shape)}"
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"got {shapes}, expected (Q, D) and (N, D) with the same D")
    if 0 in query.shape or 0 in gallery.shape:
        raise ValueError(f"got {shapes}, expected at least one row and one column each")
    for name, embeddings in (("query", query), ("gallery", gallery)):
        if not embeddings.is_floating_point() and embeddings.dtype != torch.uint8:
            raise ValueError(f"got {name} of {embeddings.dtype}, expected a float type or uint8")
    if exclude_self and len(query) > len(gallery):
        raise ValueError(
            f"got exclude_self=True for {len(query)} queries and {len(gallery)} gallery rows, "
            "expected query i to be gallery[i]"
        )


def _check_values(tiles: Tiles, exclude_self: bool) -> None:
    """One pass over the embeddings before the search: all finite, and the same rows where they must be."""
    same = tiles.query is tiles.gallery
    sides = {"gallery": tiles.gallery} if same else {"query": tiles.query, "gallery": tiles.gallery}
    for name, embeddings in sides.items():
        for start in tiles.starts(embeddings):
            # NaN is bad too.
            bad = ~(torch.linalg.vector_norm(tiles.block(embeddings, start), dim=1) < LARGEST_NORM)
            if bad.any():
                row = start + int(bad.nonzero()[0, 0])
                raise ValueError(
                    f"got NaN, infinity or a norm above {LARGEST_NORM:g} in {name}[{row}], "
                    "expected finite embeddings: see what made them (a diverged model, float16 overflow)"
                )
    if not exclude_self or same:
        return
    for start in tiles.starts(tiles.query):
        rows = tiles.block(tiles.query, start)
        if not torch.equal(rows, tiles.block(tiles.gallery, start)[: len(rows)]):
            raise ValueError(
                "got exclude_self=True with a query that is not the gallery's first rows, expected query i "
                "to be gallery[i]: pass the same embeddings for both, in the same order"
            )
