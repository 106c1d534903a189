"""What a report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Neighbor:
    """A gallery image beside its query."""

    image: NDArray[np.uint8]  # (H, W, 3)
    label: int
    distance: float


@dataclass(frozen=True, eq=False)
class RankedExample:
    """A query image, its nearest gallery images and its farthest ones, each in the order to show them."""

    image: NDArray[np.uint8]  # (H, W, 3)
    label: int
    nearest: Sequence[Neighbor]
    farthest: Sequence[Neighbor]


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that a report shows; what was not measured is left out of the mappings, or empty.

    Args:
        name: The experiment's name.
        recipe_text: The resolved recipe as YAML.
        environment: Versions and hardware; nested mappings are flattened to dotted keys.
        metrics: The content of metrics.json; only `k` is required.
        history: The records of metrics.jsonl, in order.
        class_names: The name of every label, 0..C-1.
        examples: Queries with their rankings.
        filters: First-layer weights (n, 3, h, w) of each path of the trunk, by the path's name.
        class_precision: (C,) precision at k of each class's queries; NaN for a class without queries.
        confusion: (C, C) share of the column's class among the k nearest of the row's class.
    Raises:
        ValueError: if a shape or a label does not fit the others.
    """

    name: str
    recipe_text: str
    environment: Mapping[str, Any]
    metrics: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    class_names: Sequence[str]
    examples: Sequence[RankedExample]
    filters: Mapping[str, NDArray[np.floating[Any]]]
    class_precision: NDArray[np.floating[Any]]
    confusion: NDArray[np.floating[Any]]

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        if "k" not in self.metrics:
            raise ValueError(f"metrics: got the keys {sorted(self.metrics)}, expected 'k' among them")
        _check_shape("class_precision", self.class_precision, (classes,))
        _check_shape("confusion", self.confusion, (classes, classes))
        for path, weight in self.filters.items():
            if weight.ndim != 4 or weight.shape[1] != 3 or not weight.size:
                raise ValueError(f"filters[{path!r}]: got shape {weight.shape}, expected (n, 3, h, w)")
            if not np.isfinite(weight).all():
                raise ValueError(f"filters[{path!r}]: got values that are not finite, expected finite ones")
        for example in self.examples:
            _check_image(example.image, example.label, classes)
            for neighbor in (*example.nearest, *example.farthest):
                _check_image(neighbor.image, neighbor.label, classes)


def _check_shape(key: str, values: NDArray[np.floating[Any]], shape: tuple[int, ...]) -> None:
    if values.size and values.shape != shape:
        raise ValueError(f"{key}: got shape {values.shape}, expected {shape} as in class_names, or empty")


def _check_image(image: NDArray[np.uint8], label: int, classes: int) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"examples: got an image {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
    if not 0 <= label < classes:
        raise ValueError(f"examples: got label {label}, expected one of the {classes} class_names")
