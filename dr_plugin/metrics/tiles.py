"""The candidates of a nearest-neighbour search, tile by tile: in torch on any device, or through faiss."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from dr_plugin.checks import shown

Progress = Callable[[str, int, int | None], None]

# What a tile and the two blocks of embeddings that make it may take together.
TILE_BYTES = 256 * 2**20


def chunk_rows(dimension: int, itemsize: int = 4) -> int:
    """Rows c of a tile for which c x c distances and two blocks of c x dimension fill TILE_BYTES."""
    return max(1, int(math.sqrt(dimension**2 + TILE_BYTES / itemsize) - dimension))


class Tiles:
    """Query and gallery, handed out in blocks on the computing device and in the computing precision."""

    def __init__(
        self, query: Tensor, gallery: Tensor, chunk: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.query, self.gallery = query, gallery
        self.chunk, self.device, self.dtype = chunk, device, dtype

    def starts(self, embeddings: Tensor) -> range:
        """First rows of the blocks."""
        return range(0, len(embeddings), self.chunk)

    def block(self, embeddings: Tensor, start: int) -> Tensor:
        """The block that starts there; maybe a view."""
        return embeddings[start : start + self.chunk].to(self.device, self.dtype)

    def centred(self, embeddings: Tensor, start: int, centre: Tensor, out: Tensor | None = None) -> Tensor:
        """A copy of the block relative to the centre, in the first rows of ``out`` if that is given."""
        rows = self.block(embeddings, start)
        return torch.sub(rows, centre, out=None if out is None else out[: len(rows)])

    def empty(self, rows: int, columns: int) -> Tensor:
        """Room for results, taken once: fresh memory for every tile would cost page faults."""
        return torch.empty((rows, columns), device=self.device, dtype=self.dtype)

    def centre(self) -> Tensor:
        """A point amid the embeddings. Distances do not depend on it, but their rounding does."""
        return self.block(self.gallery, 0).mean(0)


# (tiles, how many, largest, progress) -> indices (Q, how many) of the best candidates, in no order
Search = Callable[[Tiles, int, bool, Progress | None], Tensor]


def checked_device(device: torch.device | str) -> torch.device:
    """The device of this name; ValueError if there can be none."""
    try:
        if isinstance(device, torch.device | str):
            return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: got {device!r}, expected one such as 'cpu' or 'cuda:0'") from error
    raise ValueError(f"device: got {shown(device)}, expected a device, its name or None")


def candidate_search(backend: str, largest: bool, device: torch.device | None) -> Search:
    """The search of a backend, or an error if the backend cannot do what is asked for."""
    if not isinstance(backend, str) or backend not in ("torch", "faiss"):
        raise ValueError(f"got backend={shown(backend)}, expected 'torch' or 'faiss'")
    if backend == "torch":
        return _torch_candidates
    if largest:
        raise ValueError(
            "got largest=True with backend='faiss', which finds only the nearest: use backend='torch'"
        )
    if device is not None and device.type != "cpu":
        raise ValueError(
            f"got device={str(device)!r} with backend='faiss', expected the CPU: use backend='torch'"
        )
    faiss = import_faiss("backend='faiss'", "use backend='torch'")
    return lambda tiles, wide, _, progress: _faiss_candidates(faiss, tiles, wide, progress)


def import_faiss(what: str, instead: str) -> Any:
    """faiss, or an error that says what needs it and what there is instead."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(f"{what} needs faiss: pip install faiss-cpu, or {instead}") from error
    return faiss


def _torch_candidates(tiles: Tiles, wide: int, largest: bool, progress: Progress | None) -> Tensor:
    """Ranked by |g|^2 - 2 q.g, which lacks only the query's own |q|^2; negated for the farthest."""
    query, gallery = tiles.query, tiles.gallery
    sign = -1 if largest else 1
    centre = tiles.centre()
    best = torch.full((len(query), wide), math.inf, device=tiles.device, dtype=tiles.dtype)
    indices = torch.zeros((len(query), wide), device=tiles.device, dtype=torch.long)
    # The best so far stand in a tile's first columns: one topk both selects and merges.
    rows, columns = min(tiles.chunk, len(query)), min(tiles.chunk, len(gallery))
    buffer = tiles.empty(rows, wide + columns)
    parts, blocks = tiles.empty(rows, query.shape[1]), tiles.empty(columns, query.shape[1])
    total, done = len(tiles.starts(query)) * len(tiles.starts(gallery)), 0
    for start in tiles.starts(gallery):
        block = tiles.centred(gallery, start, centre, blocks)
        squares = torch.linalg.vector_norm(block, dim=1).square() * sign
        for first in tiles.starts(query):
            part = tiles.centred(query, first, centre, parts)
            these = slice(first, first + len(part))
            tile = buffer[: len(part), : wide + len(block)]
            tile[:, :wide] = best[these]
            # With out=, autocast leaves the product alone.
            torch.addmm(squares, part, block.T, alpha=-2 * sign, out=tile[:, wide:])
            best[these], column = tile.topk(wide, dim=1, largest=False, sorted=False)
            before = indices[these].gather(1, column.clamp(max=wide - 1))
            indices[these] = torch.where(column < wide, before, column - wide + start)
            done += 1
            if progress is not None:
                progress("nearest neighbours", done, total)
    return indices


def _faiss_candidates(faiss: Any, tiles: Tiles, wide: int, progress: Progress | None) -> Tensor:
    """Ranked by faiss, relative to the same centre."""
    centre = tiles.centre()
    index = faiss.IndexFlatL2(tiles.gallery.shape[1])
    for start in tiles.starts(tiles.gallery):
        index.add(tiles.centred(tiles.gallery, start, centre).float().numpy())
    parts = []
    for done, first in enumerate(tiles.starts(tiles.query), start=1):
        part = tiles.centred(tiles.query, first, centre).float().numpy()
        parts.append(torch.from_numpy(index.search(part, wide)[1]))
        if progress is not None:
            progress("nearest neighbours", done, len(tiles.starts(tiles.query)))
    return torch.cat(parts)


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 in float32: no TF32 or bfloat16 rounding.

    What the caller has set is global, and is put back afterwards.
    """
    with ExitStack() as stack:
        cuda: Any = torch.backends.cuda
        mkldnn: Any = torch.backends.mkldnn
        if hasattr(cuda.matmul, "fp32_precision"):  # torch 2.9 and later: one setting for each backend
            for backend in (cuda.matmul, mkldnn.matmul):
                stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "ieee"
        else:
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        yield
