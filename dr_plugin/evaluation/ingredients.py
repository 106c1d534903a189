"""What a table's rows are: features of the rated and of the learning images, how they compare, what they have seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dr_plugin.relevance.rated_folds import OutOfFoldGolden

from .data import RatedData
from .human import FeatureDistances, HeldDistances, TripletDistances

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Ingredient:
    """A row, as other rows may build on it.

    Attributes:
        distances: Among the rated images.
        seen: What was learned from, in words.
        how: How its features compare; None where it has none, as a golden row.
        features: Of the rated images (N, F); None as above.
        learned: Of the images that are learned from (M, F); None where no row asks for them.
    """

    distances: TripletDistances
    seen: str
    how: Any = None
    features: Any = None
    learned: Any = None

    @classmethod
    def of_features(
        cls, how: Any, features: Array, data: RatedData, seen: str, learned: Array | None = None
    ) -> "Ingredient":
        """Of features that compare by ``how``."""
        distances = FeatureDistances(how, features, data.triplets)
        return cls(HeldDistances(distances, data.triplets, len(features)), seen, how, features, learned)

    @property
    def distance(self) -> str:
        """How it compares, in a word."""
        if self.how is None:
            return "weighted sum"
        return self.how if isinstance(self.how, str) else type(self.how).__name__


class GoldenDistances:
    """Several rows' similarities, weighted by what the ratings of the other folds taught.

    Args:
        parts: The rows' distances; similarity is their negative.
        data: The rated triplets.
        folds: How many.
        seed: Of the folds.
    Attributes:
        golden: The fitted weights, fold by fold.
    """

    def __init__(self, parts: Sequence[TripletDistances], data: RatedData, *, folds: int, seed: int) -> None:
        self.parts = parts
        pairs = [part.of_triplets() for part in parts]
        positive, negative = (-np.stack([pair[side] for pair in pairs], axis=1) for side in (0, 1))
        # Groups, not text queries: they also hold together what copies of one image join.
        groups = [str(group) for group in data.groups.tolist()]
        self.golden = OutOfFoldGolden(n_folds=folds, seed=seed)
        self.golden.fit(positive, negative, groups, data.triplets.numpy())
        self._fold_of_image = torch.full((len(data.images),), -1)
        self._fold_of_image[data.triplets.flatten()] = torch.from_numpy(self.golden.folds_).repeat_interleave(
            3
        )

    def of_triplets(self) -> tuple[Array, Array]:
        """Query to positive and query to negative, (T,) each; the margin is all that is known of a pair."""
        margins = self.golden.margins_
        return np.zeros_like(margins), margins

    def of_queries(self, queries: Tensor) -> Tensor:
        """Of these images (q,) to all: (q, N)."""
        similarities = -np.stack([part.of_queries(queries).numpy() for part in self.parts], axis=2)
        found = self.golden.distances(similarities, self._fold_of_image[queries].numpy())
        return torch.from_numpy(found)


def joined(*seen: str) -> str:
    """What several have learned from, each kind once.

    Example:
        >>> joined("nothing", "class labels", "class labels; unrated relevance")
        'class labels; unrated relevance'
    """
    kinds = dict.fromkeys(kind for text in seen for kind in text.split("; ") if kind != "nothing")
    return "; ".join(kinds) or "nothing"
