"""What the data sets of this package share: RGB images, labels 0..C-1, and names for them."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageOps
from pytorch_metric_learning.datasets.base_dataset import BaseDataset

from dr_plugin.checks import check_path, shown

Transform = Callable[[Any], Any]


class LabelledImages(BaseDataset):
    """A PML ``BaseDataset`` of RGB images, with labels 0..C-1 in sorted order of the class ids.

    Differs from PML's base class in: the split is checked before anything is downloaded, what is in ``root``
    (and not whether ``root`` is empty) decides whether there is data, and every image is converted to RGB. A
    subclass writes ``generate_split``, which fills the attributes below from ``self.root`` and
    ``self.split``.

    Attributes:
        paths: One file a image.
        labels: One int a image, an index into ``class_ids``.
        class_ids: The classes' folder names, sorted.
        class_names: The classes' names for people, in the order of ``class_ids``.
    """

    paths: list[str]
    labels: list[int]
    class_ids: list[str]
    class_names: list[str]

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
    ) -> None:
        self.check_split(split)
        root = check_path("root", root).expanduser()
        if not root.is_dir():
            raise ValueError(f"{type(self).__name__}: got root={str(root)!r}, expected an existing folder")
        super().__init__(root, split, transform, target_transform, download=False)

    def check_split(self, split: str) -> None:
        """Raise ``ValueError`` unless ``split`` is one of ``get_available_splits()``."""
        if not isinstance(split, str) or split not in self.get_available_splits():
            expected = " or ".join(repr(name) for name in self.get_available_splits())
            raise ValueError(f"{type(self).__name__}: got split={shown(split)}, expected {expected}")

    def get_available_splits(self) -> list[str]:
        """Return the splits that this data set has."""
        return ["train", "val"]

    def download_and_remove(self) -> None:
        """Refuse: a data set that can be downloaded overrides this."""
        raise ValueError(f"{type(self).__name__} has nothing to download: put the images into {self.root}")

    def load_image(self, index: int) -> Image.Image:
        """Return image ``index`` as RGB, before ``transform``."""
        return open_rgb(self.paths[index])

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image: Any = self.load_image(index)
        label: Any = self.labels[index]
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label


def open_rgb(path: str) -> Image.Image:
    """Decode one image file to 8-bit RGB, turned as its EXIF says; greyscale becomes three equal channels.

    Raises:
        OSError: if the file cannot be read or is no whole image; the message names it.
        ValueError: if a pixel holds more than 8 bits a channel, which a conversion to RGB would clip.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            if not mode.startswith(("I", "F")):
                return ImageOps.exif_transpose(image).convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes raise SyntaxError, struct.error, zlib.error and others, too
        raise OSError(f"cannot read image {path}: {str(error) or type(error).__name__}") from error
    raise ValueError(f"{path}: got {mode!r} pixels, expected 8 bits a channel: convert the file first")


def first_few(names: Sequence[str], limit: int = 3) -> str:
    """Name the first few of a list in an error message: ``a, b, c and 7 more``."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
