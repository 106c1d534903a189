"""Images most like a user's own, by a trained model: `dr search`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dr_plugin.atomic import replacing
from dr_plugin.datasets.base import open_rgb

from .model import Model, open_model
from .picture_rows import SIDE, Picture, Row, rows_png
from .search_gallery import Gallery, fitted, folder_gallery, run_gallery, thumbnail
from .search_index import FLAT, GalleryIndex, has_faiss

Progress = Callable[[str, int, int | None], None]

MOST_ROWS, MOST_COLUMNS = 100, 20  # that a picture shows
_NAMED = 3  # unreadable files that a note names


@dataclass(frozen=True)
class Neighbor:
    """One image that was found: its index and name in the gallery, its class if it has one, its distance."""

    index: int
    name: str
    class_name: str | None
    distance: float


@dataclass(frozen=True)
class SearchResult:
    """What `search` found.

    Attributes:
        queries: As they were given.
        neighbors: For each query the k nearest, nearest first.
        images: How many images were searched.
        picture: The PNG file.
        notes: What the user should know of: files left out, an approximate search.
    """

    queries: list[str]
    neighbors: list[list[Neighbor]]
    images: int
    picture: Path
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Query:
    """A query as the model takes it (3, H, W), and as people see it."""

    name: str
    pixels: Any
    shown: Image.Image


def search_run(
    run: Path,
    queries: Sequence[str],
    *,
    gallery: Path | None = None,
    k: int = 10,
    output: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> SearchResult:
    """Search the run's own images, or a folder of images, by the run's model; what is kept is in ``run/search``.

    Args:
        run: The folder of a finished run.
        queries: Image files, or names of images of the gallery.
        gallery: A folder of images, looked through at any depth; None: the run's training images or, under
            ``evaluation.gallery: val``, the images of the classes that it was not trained on.
        k: Images for each query.
        output: The picture; by default ``run/search/<query>.png``.
        device: As of `open_model`.
        progress: Called as progress(task, done, total).
    Raises:
        ValueError: if the run, gallery, k, output or a query is none; the message says what is expected.
    """
    _check_k(k, None)
    if not run.is_dir():
        raise ValueError(f"RUN: got {run}, expected the folder of a finished run")
    model = open_model(str(run), device=device)
    kept = run / "search"
    if gallery is not None:
        images = folder_gallery(gallery, model.image_size, leave_out=kept)
    elif model.recipe is not None:
        images = run_gallery(model.recipe, progress)
    else:
        raise ValueError(
            f"gallery: got none for {model.name}, expected a folder: only a run has images of its own"
        )
    return search(model, images, queries, kept, k=k, output=output, progress=progress)


def search(
    model: Model,
    gallery: Gallery,
    queries: Sequence[str],
    folder: Path,
    *,
    k: int = 10,
    output: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """The k images of the gallery nearest to each query, as a list and as a picture.

    An image of the gallery, or its copy, is a query like any other: it finds itself first.

    Args:
        model: What embeds the images; its distance is the Euclidean one.
        gallery: Embedded once, and again when it or the model changes.
        queries: Image files, or names of images of the gallery.
        folder: Where the embeddings are kept.
        k: Images for each query.
        output: The picture; by default in ``folder``, named by the queries.
        progress: Called as progress(task, done, total).
    Raises:
        ValueError: if an argument is out of range or an image cannot be read; raised before the gallery is embedded,
            where that is not needed to know.
    """
    if model.distance != "euclidean":
        raise ValueError(
            f"{model.name}: got a model with distance={model.distance!r}, expected 'euclidean', the index's only one"
        )
    if len(gallery) < 2:
        raise ValueError(f"gallery: got {len(gallery)} image, expected at least 2: there is nothing to rank")
    _check_k(k, len(gallery))
    picture = _picture_file(queries, folder, output)
    asked = [_query(text, gallery) for text in queries]
    index = GalleryIndex.build(model, gallery, folder, progress=progress)
    embedded = model.embed(np.stack([query.pixels for query in asked]))
    distances, found = index.search(embedded, k)
    neighbors = [
        [_neighbor(gallery, *pair) for pair in zip(*row, strict=True)]
        for row in zip(found.tolist(), distances.tolist(), strict=True)
    ]
    with replacing(picture) as file:
        file.write(_drawn(gallery, asked, neighbors))
    return SearchResult(list(queries), neighbors, len(index), picture, _notes(index, len(asked), k))


def _check_k(k: int, images: int | None) -> None:
    if k < 1 or (images is not None and k > images):
        most = "" if images is None else f" to {images}, the images of the gallery"
        raise ValueError(f"k: got {k}, expected 1{most or ' or more'}")


def _picture_file(queries: Sequence[str], folder: Path, output: Path | None) -> Path:
    if not queries:
        raise ValueError("query: got none, expected at least one image file")
    if output is None:
        more = f"-and-{len(queries) - 1}-more" if len(queries) > 1 else ""
        return folder / f"{Path(queries[0]).stem[:80]}{more}.png"
    if output.suffix.lower() != ".png" or output.is_dir():
        raise ValueError(f"output: got {output}, expected a file name that ends in .png")
    return output


def _query(text: str, gallery: Gallery) -> _Query:
    """The image file of that name, else the gallery's image of that name."""
    path = Path(text).expanduser()
    if path.is_file():
        try:
            return _Query(text, fitted(open_rgb(str(path)), gallery.image_size), thumbnail(path, SIDE))
        except Exception as error:  # decoders raise what they like; the file is named to the user
            reason = error.__cause__ or error  # open_rgb names the file a second time
            raise ValueError(f"query: got {text}, expected an image file: {reason}") from error
    if (index := gallery.places.get(text)) is None:
        some = ", ".join(gallery.names[:2])
        what = "a folder" if path.is_dir() else "no file of that name"
        raise ValueError(
            f"query: got {text}, {what}; expected an image file, or the name of an image of the gallery such as {some}"
        )
    try:
        return _Query(text, gallery.pixels(index), gallery.thumbnail(index, SIDE))
    except ValueError as error:
        raise ValueError(f"query: {error}, expected an image") from error


def _neighbor(gallery: Gallery, index: int, distance: float) -> Neighbor:
    class_name = None if gallery.classes is None else gallery.classes[index]
    return Neighbor(index, gallery.names[index], class_name, distance)


def _drawn(gallery: Gallery, queries: Sequence[_Query], neighbors: Sequence[Sequence[Neighbor]]) -> bytes:
    rows = []
    for query, found in zip(queries[:MOST_ROWS], neighbors, strict=False):
        pictures = [
            Picture(
                gallery.thumbnail(one.index, SIDE),
                (one.class_name or one.name.rpartition("/")[2], f"{one.distance:.4f}"),
            )
            for one in found[:MOST_COLUMNS]
        ]
        rows.append(Row(Picture(query.shown, (Path(query.name).name, "query")), pictures))
    return rows_png(rows)


def _notes(index: GalleryIndex, queries: int, k: int) -> list[str]:
    notes = []
    if index.unreadable:
        named = "; ".join(f"{name} ({reason})" for name, reason in list(index.unreadable.items())[:_NAMED])
        more = f"; and {len(index.unreadable) - _NAMED} more" if len(index.unreadable) > _NAMED else ""
        plural = "files" if len(index.unreadable) > 1 else "file"
        notes.append(f"{len(index.unreadable)} unreadable {plural} of the gallery left out: {named}{more}")
    if not has_faiss():
        notes.append(
            "faiss is not installed: searched with torch, to the same result (pip install faiss-cpu)"
        )
    elif not index.exact:
        notes.append(
            f"more than {FLAT:,} images: the search is approximate, {index.recall:.1%} of the true 10 nearest are found"
        )
    if queries > MOST_ROWS or k > MOST_COLUMNS:
        notes.append(f"the picture shows the first {MOST_ROWS} queries and {MOST_COLUMNS} images of each")
    return notes
