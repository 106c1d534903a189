"""The relevance of a run: computed from the images that are trained on, once, and kept beside the packed images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch

from dr_plugin.datasets import PackedImages
from dr_plugin.metrics import concordance, concordance_score
from dr_plugin.triplets import Relevance

from . import build
from .cache import derived_folder
from .recipe import Recipe

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class RunRelevance:
    """The recipe's relevance over the images that are trained on.

    Attributes:
        fitted: What the recipe's slot made of the images.
        stored: The same numbers class by class on disk, from which training draws; or ``fitted`` itself where it has
            no fingerprint by which a stored one could be known again.
    """

    fitted: Any
    stored: Relevance

    @property
    def knows_new_images(self) -> bool:
        """Whether it can say how relevant a new image is to those it was fitted to."""
        return hasattr(self.fitted, "cross")


def load_relevance(
    recipe: Recipe, images: PackedImages, progress: Progress | None = None
) -> RunRelevance | None:
    """Fit the recipe's relevance to these images; None where the recipe has none.

    Raises:
        RecipeError: if the slot's class refuses its arguments.
        ValueError: from the class, if the images do not suit it.
    """
    if recipe.relevance is None:
        return None
    from dr_plugin.relevance import StoredRelevance

    folder = derived_folder(recipe, "relevance")
    unfitted = build.build_relevance(recipe, folder / "features")
    fitted = unfitted.fit(images, images.labels, progress=progress)
    if (
        getattr(fitted, "fingerprint", lambda: None)() is None
    ):  # nothing tells whether what is stored still holds
        return RunRelevance(fitted, fitted)
    return RunRelevance(fitted, StoredRelevance.build(fitted, folder / "classes", progress=progress))


@dataclass(frozen=True)
class WantedOrder:
    """How relevant the training images of each query's class are to it: the order that a model is measured by.

    Attributes:
        classes: For each class of the queries: their places, the places of the class in the gallery, and r (q, n).
    """

    classes: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, relevance: RunRelevance, queries: PackedImages, gallery: PackedImages) -> Self:
        """Compute it; ``gallery`` holds the images that the relevance was fitted to."""
        classes = []
        for label in queries.labels.unique():
            rows, columns = ((images.labels == label).nonzero().flatten() for images in (queries, gallery))
            wanted = relevance.fitted.cross(queries.subset(rows), columns.numpy())
            classes.append((rows, columns, torch.as_tensor(wanted)))
        return cls(classes)

    def figures(self, query: torch.Tensor, gallery: torch.Tensor, k: int) -> tuple[float, float]:
        """Does a model rank the more relevant image of the query's class first?

        The score's pool is the query's class, as the paper's is what was found for the same text query.

        Args:
            query: Embeddings (Q, D).
            gallery: Embeddings (N, D).
            k: The score counts pairs with an image among the query's k nearest of its class.
        Returns:
            The mean concordance and the mean concordance score over the queries that have an order to find; see
            `dr_plugin.metrics.concordance`.
        """
        figures: list[torch.Tensor] = []
        for rows, columns, wanted in self.classes:
            near, far = query[rows.to(query.device)], gallery[columns.to(gallery.device)]
            distances = torch.cdist(near.double(), far.double()).cpu()
            radius = distances.kthvalue(min(k, distances.shape[1]), dim=1).values
            score = concordance_score(distances, wanted, radius)
            figures.append(torch.stack((concordance(distances, wanted), score)))
        values = torch.cat(figures, dim=1)
        means = values[:, ~values[0].isnan()].mean(dim=1).tolist()
        return means[0], means[1]
