"""How embeddings are judged: Euclidean neighbours and their figures, these re-ranked by a unit, and the baselines."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dr_plugin import distributed
from dr_plugin.datasets import BatchAugment, PackedImages
from dr_plugin.metrics import nearest, precision_at_k, recall_at_k, rerank
from dr_plugin.relevance.features import HOG
from dr_plugin.relevance.image_rows import ImageBatches

from .recipe import Evaluation
from .trainer import DTYPES

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Embedder:
    """Turns packed images into embeddings on the device: batches, no augmentation, no gradient.

    With ``divided``, each of several processes takes its share of the images through its copy of the model, which is
    rank 0's, and all get all embeddings; all of them must call it.
    """

    augment: BatchAugment
    device: torch.device
    precision: str
    batch_size: int
    progress: Progress | None = None
    divided: bool = False

    def __call__(self, model: nn.Module, images: ImageBatches, task: str = "embed") -> torch.Tensor:
        """Embeddings (N, D) float32 of all ``images``; the model's mode is put back as it was."""
        count = len(images)
        if not self.divided or count < distributed.world_size():
            return self._embed(model, images, slice(0, count), task)
        distributed.take_from_first(model)
        return distributed.gather_rows(
            self._embed(model, images, distributed.share(count), task), distributed.shares(count)
        )

    @torch.no_grad()
    def _embed(self, model: nn.Module, images: ImageBatches, part: slice, task: str) -> torch.Tensor:
        was_training = model.training
        model.eval()
        dtype = DTYPES[self.precision]
        parts = []
        for start in range(part.start, part.stop, self.batch_size):
            stop = min(start + self.batch_size, part.stop)
            batch, _ = images.batch(torch.arange(start, stop))
            batch = self.augment(batch.to(self.device), training=False)
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32):
                parts.append(model(batch).float())
            if self.progress is not None:
                self.progress(task, stop - part.start, part.stop - part.start)
        model.train(was_training)
        return torch.cat(parts)


@dataclass(frozen=True)
class Ranked:
    """A query set ranked against a gallery.

    Attributes:
        neighbor_labels: Labels of the k nearest (Q, k).
        figures: What they give.
        indices: Of the nearest in the gallery (Q, K), K the most that was asked for.
    """

    neighbor_labels: torch.Tensor
    figures: dict[str, float]
    indices: torch.Tensor


def rank(
    query: torch.Tensor,
    query_labels: torch.Tensor,
    gallery: torch.Tensor,
    gallery_labels: torch.Tensor,
    settings: Evaluation,
    *,
    exclude_self: bool = False,
    at_least: int = 1,
    progress: Progress | None = None,
) -> Ranked:
    """Rank the gallery for each query and give precision at k and the recalls that the recipe asks for.

    Args:
        query: Embeddings (Q, D).
        query_labels: (Q,).
        gallery: Embeddings (N, D).
        gallery_labels: (N,).
        settings: What is asked for.
        exclude_self: Query i is gallery[i] and is left out.
        at_least: Find so many neighbours even if no figure needs them.
        progress: Called as progress(task, done, total).
    Raises:
        ValueError: if k, or a recall's K, is larger than the gallery.
    """
    k = max([settings.k, *settings.recall_at, at_least])
    _, indices = nearest(
        query, gallery, k, exclude_self=exclude_self, backend=settings.backend, progress=progress
    )
    return _ranked(indices.cpu(), query_labels, gallery_labels, settings)


def reranked(
    ranked: Ranked,
    query: torch.Tensor,
    query_labels: torch.Tensor,
    gallery: torch.Tensor,
    gallery_labels: torch.Tensor,
    unit: Any,
    settings: Evaluation,
) -> Ranked:
    """The ``settings.rerank`` nearest of each query ordered anew by a loss's similarity unit; the rest stay.

    Args:
        ranked: The Euclidean ranking, of at least that many neighbours.
        query: Embeddings (Q, D).
        query_labels: (Q,).
        gallery: Embeddings (N, D).
        gallery_labels: (N,).
        unit: Two embeddings in, one similarity out, as `dr_plugin.losses.PDDMUnit`.
        settings: What is asked for.
    """
    first = ranked.indices[:, : settings.rerank]
    with torch.no_grad():
        similarities = unit.candidates(query, gallery, first.to(gallery.device))
    indices = rerank(ranked.indices, similarities.cpu())
    return _ranked(indices, query_labels, gallery_labels, settings)


def _ranked(
    indices: torch.Tensor, query_labels: torch.Tensor, gallery_labels: torch.Tensor, settings: Evaluation
) -> Ranked:
    neighbors = gallery_labels[indices]
    figures = {f"precision_at_{settings.k}": float(precision_at_k(neighbors, query_labels, settings.k))}
    for at in settings.recall_at:
        figures[f"recall_at_{at}"] = float(recall_at_k(neighbors, query_labels, at))
    return Ranked(neighbors[:, : settings.k], figures, indices)


def pixels(images: PackedImages) -> torch.Tensor:
    """The raw pixels as an embedding (N, 3 H W) uint8: the simplest baseline."""
    return images.batch(torch.arange(len(images)))[0].flatten(1)


def hog(images: PackedImages, progress: Progress | None = None) -> torch.Tensor:
    """Histograms of oriented gradients (N, F), ref. [4] of the paper, in the descriptor's usual setting."""
    descriptor = HOG(n_jobs=-1 if len(images) > 4096 else 1)  # processes pay only for many images
    everything, _ = images.batch(torch.arange(len(images)))
    return torch.from_numpy(
        descriptor.fit(everything[:1].numpy()).transform(everything.numpy(), progress=progress)
    )
