"""What a search keeps beside its run: a gallery's embeddings, and their index for faiss.

A store is a folder `<gallery>-<fingerprint>` with `embeddings.npy`, `files.json` and, where faiss is installed,
`index.faiss`. The fingerprint is of the gallery and the model. A store takes its name when it is whole, so a build
that is killed leaves nothing that counts.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dr_plugin.atomic import locked, replacing, settle, write_json
from dr_plugin.metrics import nearest
from dr_plugin.metrics.approximate_knn import approximate_recall
from dr_plugin.metrics.faiss_index import Kind, build_index, load_index, save_index, search_index

from .model import Model
from .search_gallery import Gallery

Progress = Callable[[str, int, int | None], None]
Embeddings = npt.NDArray[np.float32]  # (N, D)

FLAT = 200_000  # images up to which the search is exact
_FORMAT = 1  # part of the fingerprint: to be raised when the files or the way that images are prepared change
_MANY = 8  # queries from which on torch's exact search is faster than faiss's, to the same result
_NAMED = 10  # how many unreadable files an error names
_PROBED = 200  # images by which the recall of an approximate index is measured, at _RECALL_AT neighbours
_RECALL_AT = 10


class GalleryIndex:
    """A gallery's embeddings on disk, and the search in them; `build` makes the store or finds it made.

    Args:
        folder: A whole store.
    Attributes:
        rows: Index in the gallery of each embedding, (N,).
        unreadable: Name -> reason, of the gallery's images that have no embedding.
        recall: Share of the true 10 nearest that the index finds, measured when it was made; None: it is exact.
    Raises:
        ValueError: if the folder holds no whole store.
    """

    def __init__(self, folder: Path) -> None:
        try:
            meta = json.loads((folder / "files.json").read_text())
            self.embeddings: Embeddings = np.load(
                folder / "embeddings.npy", mmap_mode="r", allow_pickle=False
            )
            whole = meta["format"] == _FORMAT and self.embeddings.shape == tuple(meta["shape"])
            self.unreadable: dict[str, str] = meta["unreadable"]
            self.recall: float | None = meta["recall"]
            self.rows = np.array(meta["rows"], np.int64)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder}: got no whole gallery index ({error}): remove it, and search again"
            ) from error
        if not whole or len(self.rows) != len(self.embeddings):
            raise ValueError(
                f"{folder}: got a damaged gallery index or another format: remove it, and search again"
            )
        self.folder = folder

    @classmethod
    def build(cls, model: Model, gallery: Gallery, folder: Path, *, progress: Progress | None = None) -> Self:
        """The gallery's store in ``folder``; embeds the gallery unless that was done, and replaces an older store.

        Processes that build at once wait for one another.

        Raises:
            ValueError: if fewer than two images can be read, or the model gives anything but one row of finite numbers
                an image.
        """
        about = [_FORMAT, model.fingerprint, gallery.fingerprint, gallery.image_size]
        name = f"{gallery.key}-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}"
        store = cls._built(folder / name)
        if store is None or not store.ready:
            with locked(folder, f".{gallery.key}.lock"):
                store = cls._built(folder / name)  # by another process, while this one waited?
                if store is None:
                    _write(folder / name, model, gallery, progress)
                    store = cls(folder / name)
                if not store.ready:
                    store._make_index()
        return store

    @classmethod
    def _built(cls, folder: Path) -> Self | None:
        try:
            return cls(folder)
        except ValueError:
            return None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def exact(self) -> bool:
        """Whether the search is exact: it is approximate in a large gallery, through faiss."""
        return self.index is None or self.recall is None

    @property
    def ready(self) -> bool:
        """Whether the index can be opened, or there is no need of one."""
        return not has_faiss() or self.index is not None

    @cached_property
    def index(self) -> Any:
        """The faiss index; None without faiss, or where there is no index that can be read."""
        if not has_faiss():
            return None
        try:
            return load_index(self.folder / "index.faiss")
        except (OSError, ValueError):
            return None

    def search(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k images of the gallery nearest to each query by Euclidean distance, nearest first.

        Ties go to the lower index, and the distance of the same embedding is exactly 0.

        Shape:
            (Q, D) -> distances (Q, k) float32, indices in the gallery (Q, k) long.
        Raises:
            ValueError: if k does not fit the gallery, or the query is not finite or of another D.
        """
        if not 1 <= k <= len(self):
            raise ValueError(
                f"k: got {k}, expected 1 to {len(self)}, the images of the gallery that can be read"
            )
        query = query.detach().float().cpu()
        if self.index is None or (self.exact and len(query) >= _MANY):
            distances, found = nearest(query, self._in_memory, k)
        else:
            distances, found = search_index(self.index, query, k)
        return distances, torch.from_numpy(self.rows)[found]

    @cached_property
    def _in_memory(self) -> Tensor:
        return torch.from_numpy(np.array(self.embeddings))

    def _make_index(self) -> None:
        """Write index.faiss; the caller holds the lock."""
        kind: Kind = "flat" if len(self) <= FLAT else "hnsw"
        index = build_index(self._in_memory, kind)
        self.__dict__["index"] = index  # what was cached is that there is none
        if kind != "flat":
            self.recall = _recall(index, self._in_memory)
            meta = json.loads((self.folder / "files.json").read_text())
            write_json(self.folder / "files.json", {**meta, "recall": self.recall})
        save_index(index, self.folder / "index.faiss")  # last: it counts as made
        del self.__dict__["_in_memory"]


def _recall(index: Any, embeddings: Tensor) -> float:
    """Share of the true nearest that the index finds for images of the gallery, themselves not counted."""
    k = min(_RECALL_AT, len(embeddings) - 1)
    share = approximate_recall(index, embeddings, embeddings, k + 1, sample=_PROBED)
    return max(0.0, (share * (k + 1) - 1) / k)


def has_faiss() -> bool:
    """Whether faiss is installed."""
    return find_spec("faiss") is not None


def _write(store: Path, model: Model, gallery: Gallery, progress: Progress | None) -> None:
    """Embed the gallery and put the store in place of the gallery's others; the caller holds the lock."""
    partial = store.with_name(f".{gallery.key}.partial")  # one name: what a killed build left is found again
    shutil.rmtree(partial, ignore_errors=True)
    try:
        embeddings, rows = _embedded(model, gallery, progress)
        with replacing(partial / "embeddings.npy") as file:
            np.save(file, embeddings)
        unreadable = {gallery.names[index]: reason for index, reason in sorted(gallery.unreadable.items())}
        meta = {"format": _FORMAT, "model": model.name, "shape": embeddings.shape, "recall": None}
        names = [gallery.names[row] for row in rows.tolist()]
        write_json(
            partial / "files.json",
            {**meta, "unreadable": unreadable, "rows": rows.tolist(), "files": names},
        )
        shutil.rmtree(store, ignore_errors=True)  # a damaged one
        os.replace(partial, store)
        settle(store.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for other in store.parent.iterdir():
        if other.is_dir() and other != store and other.name.rpartition("-")[0] == gallery.key:
            shutil.rmtree(other)


def _embedded(
    model: Model, gallery: Gallery, progress: Progress | None
) -> tuple[Embeddings, npt.NDArray[np.int64]]:
    """The embeddings of the images that can be read, and their indices in the gallery."""
    given = model.embed(gallery.images, progress=progress)
    if given.ndim != 2 or len(given) != len(gallery) or 0 in given.shape:
        raise ValueError(
            f"{model.name}: got embeddings {tuple(given.shape)}, expected ({len(gallery)}, D), one row an image"
        )
    unreadable = gallery.unreadable
    if len(gallery) - len(unreadable) < 2:
        first = [f"{gallery.names[index]} ({reason})" for index, reason in sorted(unreadable.items())]
        raise ValueError(
            f"gallery: got {len(gallery) - len(unreadable)} images that can be read, expected at least 2; "
            f"unreadable: {'; '.join(first[:_NAMED]) or 'none'}"
        )
    rows = np.array([index for index in range(len(gallery)) if index not in unreadable], np.int64)
    embeddings: Embeddings = given.detach().float().cpu().numpy()[rows]
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{model.name}: got an embedding that is not finite for {gallery.names[rows[bad[0]]]} "
            f"({len(bad)} images in all), expected finite numbers: has the model diverged?"
        )
    return embeddings, rows
