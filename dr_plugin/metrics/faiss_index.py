"""Indexes for galleries too large to search exactly: built, kept in a file, and searched through faiss."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dr_plugin.atomic import replacing
from dr_plugin.checks import check_path, check_whole_or_none
from dr_plugin.metrics.index_settings import index_settings
from dr_plugin.metrics.knn import LARGEST_NORM, SPARE
from dr_plugin.metrics.matches import check_k
from dr_plugin.metrics.tiles import Progress, import_faiss

Kind = Literal["flat", "ivf", "hnsw"]
Embeddings = Tensor | NDArray[Any]

_CHUNK_ELEMENTS = 1 << 24  # of the embeddings that are copied at a time
_TRAINED_ON = 256  # embeddings for each list, as many as faiss takes at most


def build_index(
    embeddings: Embeddings,
    kind: Kind = "flat",
    *,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: int,
) -> Any:
    """A faiss index of the embeddings, for the Euclidean distance.

    flat compares with all. ivf shares the gallery out to the nearest of ``lists`` k-means centres and compares with
    the ``probes`` lists nearest to the query. hnsw walks a graph of near neighbours.

    - Embeddings are held relative to their mean (the index is a faiss IndexPreTransform), which no distance depends
      on, but rounding does. All of them are held in float32.
    - The same embeddings, settings and seed give the same index on one thread; with more, faiss adds to the hnsw graph
      in whatever order its threads come.

    Args:
        embeddings: The gallery.
        kind: "flat", "ivf" or "hnsw".
        seed: Of the ivf's training and of the hnsw's levels.
        progress: Called as progress(task, embeddings done, embeddings in all).
        settings: ivf: ``lists`` (default 4 sqrt(N), but at most N / 39: faiss asks for 39 images to train a list by; a
            gallery of less than 78 gets one list, which is an exact search) and ``probes`` (default 1/16 of the
            lists, but at least 8). hnsw: ``links`` of each image (32), ``build_effort`` (100), ``search_effort``
            (128): candidates kept while building and while searching. flat: none.
    Shape:
        (N, D) float or uint8.
    Raises:
        ValueError: if the embeddings are no finite (N, D), the kind is unknown, or a setting is unknown or does not
            fit: ``lists`` above N / 39 too, which faiss could not train well.
        ImportError: if faiss is not installed.
    Example:
        >>> import torch
        >>> index = build_index(torch.tensor([[0.0], [1.0], [5.0]]))
        >>> search_index(index, torch.tensor([[4.0]]), k=2)
        (tensor([[1., 3.]]), tensor([[2, 1]]))

    References:
        Jégou et al., Product Quantization for Nearest Neighbor Search, PAMI 2011, section IV (ivf).
        Malkov, Yashunin, Efficient and Robust Approximate Nearest Neighbor Search Using HNSW Graphs, PAMI 2020.
    """
    gallery = _embeddings("embeddings", embeddings)
    values = index_settings(kind, len(gallery), seed, settings)
    seed = int(seed)  # faiss takes no numpy integer
    faiss = import_faiss("an index", "use dr_plugin.metrics.nearest")
    centre = _checked_mean("embeddings", gallery)
    transform = faiss.CenteringTransform(gallery.shape[1])
    faiss.copy_array_to_vector(centre, transform.mean)
    transform.is_trained = True
    inner = _EMPTY[kind](faiss, gallery.shape[1], seed, values)
    if kind == "ivf":
        chosen = np.random.default_rng(seed).permutation(len(gallery))[: _TRAINED_ON * values["lists"]]
        rows = gallery[torch.from_numpy(np.sort(chosen)).to(gallery.device)]
        inner.train(_float32(rows) - centre)
    index = faiss.IndexPreTransform(transform, inner)
    index.is_trained = True
    for done, block in _blocks(gallery):
        index.add(_float32(block))
        if progress is not None:
            progress("indexing", done, len(gallery))
    return index


def search_index(
    index: Any, query: Embeddings, k: int, *, effort: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest that the index finds for each query, nearest first.

    k + 8 candidates are ranked anew by differences, as in ``nearest``: distances near 0 are right, and ties go to the
    lower index where both were found.

    - A query for which fewer than k are found is searched again with twice the effort, as often as it takes: with all
      lists an ivf finds everything. An hnsw graph may fall apart (many equal images): that is an error, never a -1.
    - The index's own effort is set while a search goes on: one search at a time.

    Args:
        index: From ``build_index`` or ``load_index``.
        query: Embeddings to search for.
        k: Neighbours for each query, at most as many as the index holds.
        effort: In place of the index's ``probes`` or ``search_effort`` for this search.
    Shape:
        (Q, D) float or uint8 -> distances (Q, k) float32, Euclidean, not squared, and indices (Q, k) long; where the
        query is.
    Raises:
        ValueError: if the shapes do not fit, k is not in 1..N, the query is not finite, or fewer than k are found.
    """
    faiss = import_faiss("an index", "use dr_plugin.metrics.nearest")
    centre, inner = _parts(faiss, index)
    rows = _embeddings("query", query)
    if rows.shape[1] != index.d:
        raise ValueError(f"got query {tuple(rows.shape)}, expected (Q, {index.d}) as the index holds")
    k = check_k(k, index.ntotal, f"the index holds {index.ntotal} rows")
    effort = check_whole_or_none("effort", effort, minimum=1, below=2**31)
    _checked_mean("query", rows)
    wide = min(k + SPARE, index.ntotal)
    found = [
        _search(faiss, inner, _float32(block) - centre, k, wide, effort)
        for _, block in _blocks(rows, elements=max(1, _CHUNK_ELEMENTS // wide))
    ]
    distances, indices = (torch.from_numpy(np.concatenate(part)) for part in zip(*found, strict=True))
    return distances.to(rows.device), indices.to(rows.device)


def save_index(index: Any, path: Path | str) -> None:
    """Write the index to a file, which is there whole or not at all.

    Raises:
        ValueError: if the index is none that ``build_index`` has made, or the path is a folder's.
    """
    faiss = import_faiss("an index", "use dr_plugin.metrics.nearest")
    _parts(faiss, index)
    path = check_path("path", path)
    if path.is_dir():
        raise ValueError(f"path: got the folder {str(path)!r}, expected a file")
    with replacing(path) as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def load_index(path: Path | str) -> Any:
    """The index that ``save_index`` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no index of ours.
    """
    faiss = import_faiss("an index", "use dr_plugin.metrics.nearest")
    path = check_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such index: build_index and save_index make one")
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: no faiss index, or a damaged one: build it anew") from error
    _parts(faiss, index)
    return index


def _flat(faiss: Any, dimension: int, seed: int, values: Mapping[str, int]) -> Any:
    return faiss.IndexFlatL2(dimension)


def _ivf(faiss: Any, dimension: int, seed: int, values: Mapping[str, int]) -> Any:
    inner = faiss.IndexIVFFlat(faiss.IndexFlatL2(dimension), dimension, values["lists"])
    inner.nprobe = values["probes"]
    inner.cp.seed = seed
    inner.cp.min_points_per_centroid = 1  # index_settings has seen to it that there are enough
    return inner


def _hnsw(faiss: Any, dimension: int, seed: int, values: Mapping[str, int]) -> Any:
    inner = faiss.IndexHNSWFlat(dimension, values["links"])
    inner.hnsw.rng = faiss.RandomGenerator(seed)
    inner.hnsw.efConstruction = values["build_effort"]
    inner.hnsw.efSearch = values["search_effort"]
    return inner


_EMPTY: dict[str, Callable[[Any, int, int, Mapping[str, int]], Any]] = {
    "flat": _flat,
    "ivf": _ivf,
    "hnsw": _hnsw,
}


def _search(
    faiss: Any, inner: Any, query: NDArray[np.float32], k: int, wide: int, effort: int | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best k of the wide that are found, by differences; with more effort for the queries that lack some."""
    with _effort(faiss, inner, effort, wide) as (now, most):
        _, indices, vectors = inner.search_and_reconstruct(query, wide)
    missing = indices < 0
    vectors -= query[:, None]
    exact = np.sqrt(np.einsum("qkd,qkd->qk", vectors, vectors))
    exact[missing] = np.inf
    order = np.lexsort((indices, exact), axis=1)[:, :k]
    distances, ids = np.take_along_axis(exact, order, 1), np.take_along_axis(indices, order, 1)
    short = missing.sum(1) > wide - k
    if short.any():
        if now >= most:
            raise ValueError(
                f"got fewer than k={k} neighbours for {int(short.sum())} of {len(query)} queries from an index of "
                f"{inner.ntotal} rows, searched with all effort: use kind='flat' or 'ivf', or an hnsw with more links"
            )
        distances[short], ids[short] = _search(faiss, inner, query[short], k, wide, 2 * now)
    return distances, ids


@contextmanager
def _effort(faiss: Any, inner: Any, effort: int | None, wide: int) -> Iterator[tuple[int, int]]:
    """The index with that effort, put back afterwards; gives the effort that is now and the most there can be."""
    if isinstance(inner, faiss.IndexFlatL2):
        yield 0, 0
        return
    if isinstance(inner, faiss.IndexIVFFlat):
        holder, name, least, most = inner, "nprobe", 1, inner.nlist
    else:
        holder, name, least, most = inner.hnsw, "efSearch", wide, inner.ntotal
    before = getattr(holder, name)
    now = min(max(before if effort is None else effort, least), most)
    setattr(holder, name, now)
    try:
        yield now, most
    finally:
        setattr(holder, name, before)


def _parts(faiss: Any, index: Any) -> tuple[NDArray[np.float32], Any]:
    """The mean that the index takes off, and the index beneath."""
    if type(index) is faiss.IndexPreTransform and index.chain.size() == 1:
        transform = faiss.downcast_VectorTransform(index.chain.at(0))
        inner = faiss.downcast_index(index.index)
        if type(transform) is faiss.CenteringTransform and type(inner) in (
            faiss.IndexFlatL2,
            faiss.IndexIVFFlat,
            faiss.IndexHNSWFlat,
        ):
            return faiss.vector_to_array(transform.mean), inner
    raise ValueError(f"got an index of type {type(index).__name__}, expected one that build_index has made")


def _embeddings(name: str, values: Embeddings) -> Tensor:
    rows = torch.as_tensor(values).detach()
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"got {name} {tuple(rows.shape)}, expected (rows, D), at least one of each")
    if not (rows.is_floating_point() or rows.dtype == torch.uint8):
        raise ValueError(f"got {name} of {rows.dtype}, expected a float type or uint8")
    return rows


def _blocks(rows: Tensor, elements: int = _CHUNK_ELEMENTS) -> Iterator[tuple[int, Tensor]]:
    """Some rows at a time, and how many have then been given."""
    step = max(1, elements // rows.shape[1])
    for start in range(0, len(rows), step):
        yield min(start + step, len(rows)), rows[start : start + step]


def _float32(block: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = block.float().cpu().contiguous().numpy()
    return values


def _checked_mean(name: str, rows: Tensor) -> NDArray[np.float32]:
    """The mean of the rows, all of which are finite."""
    total = np.zeros(rows.shape[1])
    for done, block in _blocks(rows):
        values = _float32(block)
        with np.errstate(over="ignore"):
            bad = ~(np.linalg.norm(values, axis=1) < LARGEST_NORM)  # NaN is bad too
        if bad.any():
            row = done - len(values) + int(bad.argmax())
            raise ValueError(
                f"got NaN, infinity or a norm above {LARGEST_NORM:g} in {name}[{row}], expected finite embeddings: "
                "see what made them (a diverged model, float16 overflow)"
            )
        total += values.sum(0, dtype=np.float64)
    return (total / len(rows)).astype(np.float32)
