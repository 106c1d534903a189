"""A folder of class folders as a data set."""

import hashlib
import os
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from dr_plugin.checks import as_number, shown

from .base import LabelledImages, Transform, first_few


class ClassFolders(LabelledImages):
    """Images in one folder a class, split by folders or by a seeded hold-out.

    - Where ``root`` holds both ``train/`` and ``val/``, these are the splits: ``root/train/<class>/**`` and
      ``root/val/<class>/**``, which must hold the same classes. Other folders beside them are not looked at.
    - Where it holds neither, ``root/<class>/**`` is split for each class: ``round(val_fraction x images)`` of
      them, at least 1 and at most all but 1, are the validation images; an image that is the only one of its
      class is for training. Which ones depends on the seed and on their names inside ``root`` alone (a hash
      ranks them), so both splits agree on every machine, and adding images moves few of the others.
    - Images are found at any depth, by torchvision's ``IMG_EXTENSIONS``; names that start with a dot are left
      out. Their order and labels are ``ImageFolder``'s.

    Args:
        root: The folder of class folders, or of train/ and val/.
        split: "train" or "val".
        transform: Applied to each RGB PIL image.
        target_transform: Applied to each label.
        val_fraction: Share of each class held out, in (0, 1); unused where train/ and val/ exist.
        seed: Chooses the images held out; unused where train/ and val/ exist.
    Raises:
        ValueError: if an argument is out of range, there are fewer than two classes, a class has no image,
            only one of train/ and val/ exists, or their classes differ.
    Example:
        >>> flowers = ClassFolders("flowers", split="val", val_fraction=0.2)  # doctest: +SKIP
        >>> flowers.class_names  # doctest: +SKIP
        ['daisy', 'rose', 'tulip']
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        if not 0 < as_number(val_fraction) < 1:
            raise ValueError(
                f"ClassFolders: got val_fraction={shown(val_fraction)}, expected a number between 0 and 1"
            )
        self.val_fraction = val_fraction
        self.seed = seed
        super().__init__(root, split, transform, target_transform)

    def generate_split(self) -> None:
        """Find the classes and images, and keep those of the split."""
        present = [name for name in ("train", "val") if (self.root / name).is_dir()]
        if len(present) == 1:
            raise ValueError(
                f"got {self.root} with {present[0]}/ only, expected both train/ and val/, or class "
                "folders alone (of which none may be called train or val)"
            )
        folder = self.root / self.split if present else self.root
        self.class_ids = _class_ids(folder)
        self.class_names = self.class_ids
        if present:
            self._check_same_classes()
        samples = _samples(folder, self.class_ids)
        if not present:
            held_out = self._held_out(samples)
            samples = [sample for sample in samples if (sample[0] in held_out) == (self.split == "val")]
        self.paths = [path for path, _ in samples]
        self.labels = [label for _, label in samples]

    def _check_same_classes(self) -> None:
        train, val = (set(_class_ids(self.root / name)) for name in ("train", "val"))
        if train != val:
            raise ValueError(
                f"{self.root}: got different classes in train/ and val/, expected the same; "
                f"only in train/: {first_few(sorted(train - val)) or 'none'}; "
                f"only in val/: {first_few(sorted(val - train)) or 'none'}"
            )

    def _held_out(self, samples: list[tuple[str, int]]) -> set[str]:
        of_class: list[list[str]] = [[] for _ in self.class_ids]
        for path, label in samples:
            of_class[label].append(path)
        held_out: set[str] = set()
        for paths in of_class:
            count = min(max(1, round(self.val_fraction * len(paths))), len(paths) - 1)
            held_out.update(sorted(paths, key=self._rank)[:count])
        return held_out

    def _rank(self, path: str) -> bytes:
        name = path.removeprefix(str(self.root)).replace(os.sep, "/")  # the same wherever root lies
        return hashlib.sha256(f"{self.seed}{name}".encode()).digest()


def _class_ids(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        class_ids = sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )
    if len(class_ids) < 2:
        raise ValueError(
            f"got {len(class_ids)} class folders in {folder} ({first_few(class_ids) or 'none'}), "
            "expected at least 2"
        )
    return class_ids


def _samples(folder: Path, class_ids: list[str]) -> list[tuple[str, int]]:
    label_of = {class_id: label for label, class_id in enumerate(class_ids)}
    found = make_dataset(str(folder), label_of, extensions=IMG_EXTENSIONS, allow_empty=True)
    samples = [(path, label) for path, label in found if not os.path.basename(path).startswith(".")]
    empty = sorted(set(class_ids) - {class_ids[label] for _, label in samples})
    if empty:
        raise ValueError(
            f"got {len(empty)} class folders without an image in {folder}: {first_few(empty)}; "
            f"expected at least one file each that ends in {', '.join(IMG_EXTENSIONS)}"
        )
    return samples
