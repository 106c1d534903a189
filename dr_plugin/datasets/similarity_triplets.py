"""Triplets of images that people, or other triplet files, rank: query, positive, negative."""

import copy
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torchvision.transforms import Resize

from dr_plugin.checks import as_number, check_flag, check_whole, shown
from dr_plugin.triplets.groups import triplet_groups

from . import rated
from .base import LabelledImages, Transform
from .packed import PackedImages
from .triplet_files import TripletRow, file_of, given_triplets
from .triplet_hold_out import held_out
from .triplet_images import ImageFiles, Images, LocatedTriplet, content_ids, locate, missing_images

Progress = Callable[[str, int, int | None], None]
Indices = npt.NDArray[np.int64]
Triplets = str | os.PathLike[str] | npt.NDArray[Any] | Tensor | list[list[str | int]]

_NAMED = 10  # how many unreadable images an error names


class SimilarityTriplets(LabelledImages):
    """The distinct images of a file of triplets, and the triplets as indices of these images.

    Item i is image i as RGB and, as its label, the number of the text query under which it first occurs (in
    the sorted ``class_ids``). The triplets are one of:

    - ``root/triplets.csv``, or another csv: a header with text_query, query, positive, negative in any order
      (other columns are not read), then one triplet a line, by paths relative to ``images``, or else to
      ``root`` or to the csv's own folder. A csv of query, positive and negative alone has no text queries:
      each query is then its own.
    - ``root/query_and_triplets.txt``, or another .txt, as the paper published its triplets: repeating four
      lines, a text query and the URLs of query, positive and negative. ``images`` maps the URLs to files, or is
      the folder of downloaded ones (None: root/images, or else root), found at any depth by name: the hex
      SHA-1, SHA-256 or MD5 of the URL, with any ending, or the URL's last part where no other URL ends in the same.
    - Rows at hand: [text query,] query, positive, negative, by paths or, where ``images`` are numbered paths
      (another data set's ``paths``), by their numbers; a csv may hold such numbers too.

    Files count as one image if their paths are the same. Files of the same bytes stay two images, but repeated
    and degenerate triplets are found by bytes. The paper's own triplets are for evaluation only: ``rated`` says
    which of these are, and a recipe that trains on one is refused.

    Args:
        root: The folder of images and triplets.
        split: "all", or "train" and "val": ``val_fraction`` of the text queries are held out, those that share
            an image (by bytes) together, so that no text query and no image is in both.
        transform: Applied to each RGB PIL image.
        target_transform: Applied to each label.
        triplets: The file (relative to the working directory, or else to ``root``) or the rows; None: the file
            in ``root``.
        images: Where the images are: see above.
        missing: What to do about images without a file: "raise", or "skip" to leave out their triplets, which
            ``counts`` reports.
        leave_out_degenerate: Leave out the triplets that ``degenerate`` would name.
        leave_out_duplicates: Leave out the triplets that ``duplicates`` would name.
        check_images: Decode all images now, to name those that cannot be read.
        val_fraction: Share of the text queries held out, in (0, 1).
        seed: Chooses the text queries held out; which ones depends on their names alone.
        progress: Called as ``progress("checking images", done, images)``.
    Attributes:
        triplets: (T, 3) int64: query, positive, negative, indices of images.
        text_queries: The text query of each triplet.
        class_ids: All text queries of the file, sorted, whatever the split.
    Raises:
        ValueError: if an argument is out of range; if the file lacks columns, lines or all triplets (the file
            and line are named); if images have no file (the first are named, all counted) or, with
            ``check_images``, cannot be read.
    Example:
        >>> data = SimilarityTriplets("similarity-triplets", leave_out_degenerate=True)  # doctest: +SKIP
        >>> images = data.pack("cache/triplets", size=128)  # doctest: +SKIP
        >>> query, positive, negative = data.triplets.T  # doctest: +SKIP
    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 6.2.
    """

    triplets: Indices
    text_queries: list[str]

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "all",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        *,
        triplets: Triplets | None = None,
        images: Images | None = None,
        missing: Literal["raise", "skip"] = "raise",
        leave_out_degenerate: bool = False,
        leave_out_duplicates: bool = False,
        check_images: bool = False,
        val_fraction: float = 0.1,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        if not isinstance(missing, str) or missing not in ("raise", "skip"):
            raise ValueError(f'missing: got {shown(missing)}, expected "raise" or "skip"')
        if not 0 < as_number(val_fraction) < 1:
            raise ValueError(f"val_fraction: got {shown(val_fraction)}, expected a number between 0 and 1")
        self.val_fraction, self.seed = val_fraction, seed
        self._source = triplets, images, missing
        self._leave_out = (
            check_flag("leave_out_degenerate", leave_out_degenerate),
            check_flag("leave_out_duplicates", leave_out_duplicates),
        )
        super().__init__(root, split, transform, target_transform)
        if check_flag("check_images", check_images):
            self.check_images(progress)

    def get_available_splits(self) -> list[str]:
        """Return the splits that this data set has."""
        return ["all", "train", "val"]

    def generate_split(self) -> None:
        """Read the triplets, find their images, and keep what was asked for."""
        triplets, images, missing = self._source
        rows, self._published = given_triplets(self.root, triplets)
        found, absent = locate(rows, self._files(rows, images))
        if absent and (missing == "raise" or not found):
            distinct = {name for row in rows for name in row.names}
            raise ValueError(f"SimilarityTriplets: {missing_images(absent, len(distinct))}")
        self._content = content_ids(sorted({path for row in found for path in row.paths}))
        self.class_ids = self.class_names = sorted({row.text_query for row in found})
        self._counted = {"missing_images": len(absent), "triplets_without_images": len(rows) - len(found)}
        self._arrange(found)
        for name, wanted in zip(("degenerate", "duplicates"), self._leave_out, strict=True):
            chosen = getattr(self, name) if wanted else np.empty(0, dtype=np.int64)
            self._counted[f"left_out_{name}"] = len(chosen)
            self._arrange(self._rest(chosen))
        if self.split != "all":
            out = held_out(self.groups, self.text_queries, self.val_fraction, self.seed)
            self._arrange(self._rest(np.flatnonzero(out if self.split == "train" else ~out)))

    @property
    def pools(self) -> dict[str, Indices]:
        """For each text query the indices of its distinct images, ascending."""
        members: dict[str, set[int]] = {}
        for text, triplet in zip(self.text_queries, self.triplets.tolist(), strict=True):
            members.setdefault(text, set()).update(triplet)
        return {text: np.array(sorted(images), dtype=np.int64) for text, images in members.items()}

    @property
    def duplicates(self) -> Indices:
        """Triplets that repeat an earlier one, the same three images by bytes, in the same roles."""
        seen: set[tuple[int, ...]] = set()
        repeated = []
        for index, triplet in enumerate(map(tuple, self._contents().tolist())):
            if triplet in seen:
                repeated.append(index)
            seen.add(triplet)
        return np.array(repeated, dtype=np.int64)

    @property
    def degenerate(self) -> Indices:
        """Triplets in which two of query, positive and negative are one image, by path or by bytes."""
        query, positive, negative = self._contents().T
        return np.flatnonzero((query == positive) | (query == negative) | (positive == negative))

    @property
    def images_in_several_queries(self) -> Indices:
        """Images that occur under more than one text query."""
        times = Counter(int(image) for pool in self.pools.values() for image in pool)
        return np.array(sorted(image for image, count in times.items() if count > 1), dtype=np.int64)

    @property
    def groups(self) -> Indices:
        """(T,) A number for each triplet, the same for those that share a text query or an image (by bytes)."""
        return triplet_groups(self.text_queries, self._contents())

    @functools.cached_property
    def rated(self) -> Indices:
        """Triplets of the paper's rated evaluation set, by what the images show; all of a published list."""
        if self._published:
            return np.arange(len(self.triplets))
        return rated.rated_triplets(self.load_image, self.triplets)

    @property
    def is_rated(self) -> bool:
        """Whether any triplet is of the paper's rated evaluation set, and so not to be trained on."""
        return len(self.rated) > 0

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each kind, and how many were left out when the data set was made."""
        return {
            "triplets": len(self.triplets),
            "images": len(self),
            "text_queries": len(set(self.text_queries)),
            "duplicates": len(self.duplicates),
            "degenerate": len(self.degenerate),
            "images_in_several_queries": len(self.images_in_several_queries),
            **self._counted,
        }

    def refuse_rated(self) -> None:
        """Raise ``RatedTripletsError`` if any triplet is of the paper's rated evaluation set."""
        if self.is_rated:
            first = int(self.rated[0])
            names = ", ".join(os.path.basename(path) for path in self._rows[first].paths)
            rated.refuse(
                self.rated, len(self.triplets), f"at index {first} ({self.text_queries[first]}: {names})"
            )

    def without(self, indices: Iterable[int]) -> Self:
        """The data set without these triplets, and without the images that only they use; labels stay."""
        rows = self._rest(np.fromiter((int(index) for index in indices), dtype=np.int64))
        rest = copy.copy(self)
        rest.__dict__.pop("rated", None)
        rest._arrange(rows)
        return rest

    def check_images(self, progress: Progress | None = None) -> None:
        """Decode every image, in threads.

        Raises:
            ValueError: if some cannot be read: the first ten are named, all counted.
        """
        failures: list[str] = []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for done, failure in enumerate(pool.map(self._failure, range(len(self))), start=1):
                failures += [failure] if failure else []
                if progress is not None:
                    progress("checking images", done, len(self))
        if failures:
            more = f"; and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
            raise ValueError(
                f"got {len(failures)} of {len(self)} images that cannot be read: "
                f"{'; '.join(failures[:_NAMED])}{more}; expected whole images: replace them or their triplets"
            )

    def pack(
        self, folder: str | os.PathLike[str], size: int = 128, progress: Progress | None = None
    ) -> PackedImages:
        """The images as `PackedImages`, each squashed whole to a square: the raters saw all of it.

        Args:
            folder: One pack a folder; made, or found made.
            size: Pixels a side; antialiased.
            progress: Called as ``progress("packing images", done, images)``.
        """
        size = check_whole("size", size, minimum=1, below=2**31)
        squashed = copy.copy(self)
        squashed.transform, squashed.target_transform = Resize((size, size)), None
        return PackedImages.build(squashed, folder, progress=progress)

    def _failure(self, index: int) -> str | None:
        try:
            self.load_image(index)
        except Exception as error:  # decoders raise what they like on damaged bytes
            text = str(error)
            return text if self.paths[index] in text else f"{self.paths[index]}: {text}"
        return None

    def _files(self, rows: list[TripletRow], images: Images | None) -> ImageFiles:
        folders = [self.root]
        if self._published:
            if images is None and (self.root / "images").is_dir():
                images = self.root / "images"
            return ImageFiles(images, folders, [name for row in rows for name in row.names])
        source = file_of(self.root, self._source[0])
        return ImageFiles(images, folders if source is None else [*folders, source.parent])

    def _contents(self) -> Indices:
        """(T, 3) Numbers that are the same for the same bytes."""
        of_image = np.array([self._content[path] for path in self.paths], dtype=np.int64)
        return of_image[self.triplets]

    def _rest(self, left_out: Indices) -> list[LocatedTriplet]:
        count = len(self.triplets)
        if outside := [int(index) for index in left_out if not 0 <= index < count]:
            raise ValueError(f"indices: got {outside[0]}, expected triplets, 0 to {count - 1}")
        drop = set(left_out.tolist())
        return [row for index, row in enumerate(self._rows) if index not in drop]

    def _arrange(self, rows: list[LocatedTriplet]) -> None:
        """Number the images in the order in which the triplets first name them."""
        if not rows:
            raise ValueError("SimilarityTriplets: got no triplet that is not left out, expected at least one")
        label_of = {text: label for label, text in enumerate(self.class_ids)}
        labels: dict[str, int] = {}
        for row in rows:
            for path in row.paths:
                labels.setdefault(path, label_of[row.text_query])
        number = {path: index for index, path in enumerate(labels)}
        self._rows = rows
        self.paths, self.labels = list(labels), list(labels.values())
        self.triplets = np.array([[number[path] for path in row.paths] for row in rows], dtype=np.int64)
        self.text_queries = [row.text_query for row in rows]
