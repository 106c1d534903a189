"""scikit-learn's handwritten digits as RGB images: a data set that needs no files and no network."""

from importlib.resources import files

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from dr_plugin.checks import as_number, check_whole, shown

from .base import LabelledImages, Transform


class Digits(LabelledImages):
    """1,797 handwritten digits of 8 x 8 pixels, 10 classes, split with equal shares of each digit.

    The pixels' 0..16 become 0..255, and grey becomes RGB. The images come with scikit-learn, so there is no
    ``root`` to give and there are no ``paths``; ``images`` holds the pixels instead, (N, 8, 8) uint8.

    Args:
        split: "train" or "val".
        transform: Applied to each RGB PIL image.
        target_transform: Applied to each label.
        val_fraction: Share of each digit held out, in (0, 1).
        seed: Chooses the images held out.
    Raises:
        ValueError: if the split is unknown or ``val_fraction`` leaves a split without some digit.
    Example:
        >>> len(Digits(split="train")), len(Digits(split="val"))
        (1437, 360)
    """

    def __init__(
        self,
        split: str = "train",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        val_fraction: float = 0.2,
        seed: int = 0,
    ) -> None:
        if not 0 < as_number(val_fraction) < 1:
            raise ValueError(
                f"Digits: got val_fraction={shown(val_fraction)}, expected a number between 0 and 1"
            )
        self.val_fraction = float(val_fraction)
        self.seed = check_whole("seed", seed, minimum=0, below=2**32)
        super().__init__(str(files("sklearn.datasets") / "data"), split, transform, target_transform)

    def generate_split(self) -> None:
        """Take the split's share of each digit."""
        digits = load_digits()
        train, val = train_test_split(
            np.arange(len(digits.target)),
            test_size=self.val_fraction,
            stratify=digits.target,
            random_state=self.seed,
        )
        chosen = np.sort(train if self.split == "train" else val)
        self.images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
        self.labels = digits.target[chosen].tolist()
        self.class_ids = [str(digit) for digit in range(10)]
        self.class_names = self.class_ids

    def load_image(self, index: int) -> Image.Image:
        """Return image ``index`` as RGB, before ``transform``."""
        return Image.fromarray(self.images[index]).convert("RGB")
