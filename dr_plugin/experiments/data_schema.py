"""What a recipe may say of its images: which, of what size, and how they are changed at random."""

from typing import Annotated

from pydantic import PlainValidator, Strict, WithJsonSchema, field_validator

from dr_plugin.datasets.augment import IMAGENET_MEAN, IMAGENET_STD

from .schema_base import Channels, Pair, Positive, Section, Side, Slot, Text, Whole


class RandomResizedCrop(Section):
    """A random part of the image, scaled to the whole: its share of the area and its width to height."""

    scale: Pair = (0.08, 1.0)
    """Smallest and largest share of the image's area."""
    ratio: Pair = (0.75, 4 / 3)
    """Smallest and largest width to height."""

    @field_validator("scale", "ratio")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the smaller number first")
        return value

    @field_validator("scale")
    @classmethod
    def _shares(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("shares of the image's area, at most 1")
        return value


class Augment(Section):
    """Random changes of each training image."""

    pixel_shift: Whole = 0
    """Shift by up to so many pixels each way (section 6.1 of the paper)."""
    horizontal_flip: bool = False
    """Mirror left to right, with probability 1/2."""
    random_resized_crop: RandomResizedCrop | None = None
    """Cut out a part and scale it to the whole; null: the whole image."""


class Normalize(Section):
    """Channel means and deviations of images in 0..1; ImageNet's unless given."""

    mean: Channels = IMAGENET_MEAN
    """Of red, green and blue."""
    std: Annotated[tuple[Positive, Positive, Positive], Strict(False)] = IMAGENET_STD
    """Of red, green and blue."""


# For the recipe reference: a plain validator says nothing of what it takes.
_CLASSES = {
    "anyOf": [{"type": "null"}, {"type": "integer"}, {"type": "array", "items": {"type": "string"}}],
}


def _classes(value: object) -> object:
    is_number = isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 100_000
    if value is None or is_number:
        return value
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(name, str) for name in value):
        raise ValueError("null for all, a number from 2 to 100000, or a list of at least 2 class ids (text)")
    if len(set(value)) < len(value):
        raise ValueError("each class id once")
    return value


class Data(Section):
    """The images; train and val both come from the one data set slot."""

    dataset: Slot
    """The data set, of which the run takes the splits train and val."""
    classes: Annotated[int | list[str] | None, PlainValidator(_classes), WithJsonSchema(_CLASSES)] = None
    """null: all; a number: the first so many labels; a list: these class ids."""
    unseen_classes: Annotated[int | list[str] | None, PlainValidator(_classes), WithJsonSchema(_CLASSES)] = (
        None
    )
    """With `evaluation.gallery: val`, which of the classes not trained on: null: all; a number; a list of ids."""
    selection: Whole = 10
    """Images a class set apart from train to choose checkpoints by; val is only reported."""
    image_size: Side
    """Side in pixels of what the network sees."""
    packed_size: Side | None = None
    """Side that images are stored at; null: they have one size and are stored as they are."""
    cache: Text | None = None
    """Folder for the stored images; null: the user's cache folder."""
    augment: Augment = Augment()
    """Random changes of each training image."""
    normalize: Normalize = Normalize()
    """Channel means and deviations that images are normalised with."""
