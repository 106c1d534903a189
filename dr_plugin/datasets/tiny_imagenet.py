"""Tiny ImageNet in its official layout."""

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from dr_plugin.checks import check_path

from .archive import Progress
from .base import LabelledImages, Transform, first_few
from .download import fetch_archive, progress_bar

_AGAIN = "remove the folder tiny-imagenet-200, then unpack the archive again or pass download=True"


class TinyImageNet(LabelledImages):
    """Tiny ImageNet: 200 classes of 64 x 64 images, 100,000 to train on and 10,000 to validate.

    ``root`` holds, or will hold, ``tiny-imagenet-200/`` in the official layout::

        train/<class id>/images/*.JPEG       (and train/<class id>/<class id>_boxes.txt)
        val/images/*.JPEG, val/val_annotations.txt
        wnids.txt, words.txt

    - The layout is checked before use. The lists (wnids.txt, val_annotations.txt, and the boxes files where
      there are any) and the image files must name each other exactly, so a half-copied folder is not taken
      for whole.
    - Labels are the ranks of the class ids, as ``ImageFolder`` gives them on ``train/``, and the training
      images come in ``ImageFolder``'s order; the validation images in the order of their annotations.
    - The split "test" is refused: its images carry no labels.
    - ``download=True`` does nothing where ``tiny-imagenet-200/`` is not empty. An archive that was put into
      ``root`` by hand is checked and unpacked, and stays; one that was downloaded is removed afterwards, as
      PML's data sets do.

    Args:
        root: The folder that holds tiny-imagenet-200/.
        split: "train" or "val".
        transform: Applied to each RGB PIL image.
        target_transform: Applied to each label.
        download: Fetch and unpack the official archive (248 MB; 0.5 GB unpacked) unless it is there already.
        progress: Called as ``progress(task, done, total)`` during a download; None shows a tqdm bar on
            stderr, as PML's own data sets do.
    Raises:
        ValueError: if the split is unknown or the folder is missing, incomplete or contradicts itself.
        DownloadError: if the archive cannot be had or is not the official one.
    Example:
        >>> train = TinyImageNet("data", split="train", download=True)  # doctest: +SKIP
        >>> image, label = train[0]  # doctest: +SKIP
        >>> train.class_names[label]  # doctest: +SKIP
        'goldfish, Carassius auratus'
    """

    FOLDER = "tiny-imagenet-200"
    DOWNLOAD_URL = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
    ARCHIVE_SIZE = 248_100_043
    ARCHIVE_SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.check_split(split)
        self.root = check_path("root", root).expanduser()
        if download:
            self.download_and_remove(progress)
        elif not (self.root / self.FOLDER).is_dir():
            raise ValueError(self._missing())
        super().__init__(root, split, transform, target_transform)

    def check_split(self, split: str) -> None:
        """Raise ``ValueError`` unless ``split`` is "train" or "val"; "test" has no labels."""
        if isinstance(split, str) and split == "test":
            raise ValueError(
                "TinyImageNet: got split='test', whose images carry no labels; expected 'train' or 'val'"
            )
        super().check_split(split)

    def download_and_remove(self, progress: Progress | None = None) -> None:
        """Unless the folder is there: fetch the archive, check and unpack it, and remove it again."""
        with progress_bar() if progress is None else nullcontext(progress) as report:
            fetch_archive(
                self.DOWNLOAD_URL,
                self.root,
                folder=self.FOLDER,
                size=self.ARCHIVE_SIZE,
                sha256=self.ARCHIVE_SHA256,
                progress=report,
            )

    def generate_split(self) -> None:
        """Read the lists, check them against the image files, and fill paths, labels and names."""
        folder = self.root / self.FOLDER
        self.class_ids = sorted(_read(folder / "wnids.txt").split())
        _refuse("class ids that occur twice in wnids.txt", _twice(self.class_ids))
        if len(self.class_ids) < 2:
            raise ValueError(
                f"{folder / 'wnids.txt'}: got {len(self.class_ids)} class ids, expected at least 2"
            )
        self.class_names = _class_names(folder / "words.txt", self.class_ids)
        read_split = _train if self.split == "train" else _val
        self.paths, self.labels = read_split(folder / self.split, self.class_ids)

    def _missing(self) -> str:
        archive = self.root / self.DOWNLOAD_URL.rpartition("/")[2]
        if archive.is_file():
            return f"{self.root} holds no {self.FOLDER}/ yet: download=True checks and unpacks {archive.name}"
        return (
            f"{self.root} holds no {self.FOLDER}/: pass the folder that holds it, or download=True to fetch "
            f"{self.DOWNLOAD_URL}, or put that archive at {archive} by hand and pass download=True"
        )


def _class_names(words: Path, class_ids: list[str]) -> list[str]:
    lines = (line.partition("\t") for line in _read(words).splitlines())
    names = {class_id: name.strip() for class_id, _, name in lines}
    _refuse(f"class ids without a name in {words}", [c for c in class_ids if not names.get(c)])
    return [names[class_id] for class_id in class_ids]


def _train(folder: Path, class_ids: list[str]) -> tuple[list[str], list[int]]:
    _check_folder(folder)
    with os.scandir(folder) as entries:
        found = {entry.name for entry in entries if entry.is_dir()}
    _compare("class folders", folder, found, "wnids.txt", class_ids)
    paths: list[str] = []
    labels: list[int] = []
    for label, class_id in enumerate(class_ids):
        images = folder / class_id / "images"
        names = _image_names(images)
        boxes = folder / class_id / f"{class_id}_boxes.txt"
        if boxes.is_file():
            listed = [line.split("\t", 1)[0] for line in _read(boxes).splitlines()]
            _compare("images", images, names, boxes.name, listed)
        paths += [f"{images}{os.sep}{name}" for name in names]
        labels += [label] * len(names)
    return paths, labels


def _val(folder: Path, class_ids: list[str]) -> tuple[list[str], list[int]]:
    annotations = folder / "val_annotations.txt"
    rows = [line.split("\t") for line in _read(annotations).splitlines()]
    short = [f"line {number}" for number, row in enumerate(rows, start=1) if len(row) < 2]
    _refuse(f"lines of {annotations} that are not 'file<TAB>class id'", short)
    names = [row[0] for row in rows]
    _refuse(f"images annotated twice in {annotations}", _twice(names))
    label_of = {class_id: label for label, class_id in enumerate(class_ids)}
    unknown = [f"{row[1]} (for {row[0]})" for row in rows if row[1] not in label_of]
    _refuse(f"class ids in {annotations} that wnids.txt does not list", unknown)
    images = folder / "images"
    _compare("images", images, _image_names(images), annotations.name, names)
    return [f"{images}{os.sep}{name}" for name in names], [label_of[row[1]] for row in rows]


def _image_names(folder: Path) -> list[str]:
    """List a folder's images; sorted by name, as ``ImageFolder`` does."""
    _check_folder(folder)
    names = sorted(name for name in os.listdir(folder) if name.endswith(".JPEG"))
    if not names:
        raise ValueError(f"{folder} holds no .JPEG image: {_AGAIN}")
    return names


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} is missing: {_AGAIN}")


def _read(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"the file {path} is missing: {_AGAIN}")
    return path.read_text(encoding="utf-8")


def _compare(what: str, folder: Path, found: Iterable[str], file: str, listed: Iterable[str]) -> None:
    """Raise unless the names found in a folder are the names listed in a file."""
    found, listed = set(found), set(listed)
    _refuse(f"{what} in {folder} that {file} does not list", sorted(found - listed))
    _refuse(f"{what} that {file} lists and {folder} lacks", sorted(listed - found))


def _refuse(what: str, names: list[str]) -> None:
    if names:
        raise ValueError(f"got {len(names)} {what}: {first_few(names)}; expected none: {_AGAIN}")


def _twice(names: list[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)
