"""The protocol of the course project (query val, gallery train, Euclidean, precision at k) and its baselines."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from dr_plugin.datasets import BatchAugment, PackedImages
from dr_plugin.metrics import nearest, precision_at_k, recall_at_k
from dr_plugin.relevance.features import HOG
from dr_plugin.relevance.image_rows import ImageBatches

from .recipe import Evaluation
from .trainer import DTYPES

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Embedder:
    """Turns packed images into embeddings on the device: batches, no augmentation, no gradient."""

    augment: BatchAugment
    device: torch.device
    precision: str
    batch_size: int
    progress: Progress | None = None

    @torch.no_grad()
    def __call__(self, model: nn.Module, images: ImageBatches, task: str = "embed") -> torch.Tensor:
        """Embeddings (N, D) float32 of all ``images``; the model's mode is put back as it was."""
        was_training = model.training
        model.eval()
        dtype = DTYPES[self.precision]
        parts = []
        for start in range(0, len(images), self.batch_size):
            stop = min(start + self.batch_size, len(images))
            batch, _ = images.batch(torch.arange(start, stop))
            batch = self.augment(batch.to(self.device), training=False)
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32):
                parts.append(model(batch).float())
            if self.progress is not None:
                self.progress(task, stop, len(images))
        model.train(was_training)
        return torch.cat(parts)


@dataclass(frozen=True)
class Ranked:
    """A query set ranked against a gallery: the labels of the k nearest (Q, k) and the figures they give."""

    neighbor_labels: torch.Tensor
    figures: dict[str, float]


def rank(
    query: torch.Tensor,
    query_labels: torch.Tensor,
    gallery: torch.Tensor,
    gallery_labels: torch.Tensor,
    settings: Evaluation,
    *,
    exclude_self: bool = False,
    progress: Progress | None = None,
) -> Ranked:
    """Rank the gallery for each query and give precision at k and the recalls that the recipe asks for.

    Shape:
        query (Q, D), query_labels (Q,), gallery (N, D), gallery_labels (N,).
    Raises:
        ValueError: if k, or a recall's K, is larger than the gallery.
    """
    k = max([settings.k, *settings.recall_at])
    _, indices = nearest(
        query, gallery, k, exclude_self=exclude_self, backend=settings.backend, progress=progress
    )
    neighbors = gallery_labels[indices.cpu()]
    figures = {f"precision_at_{settings.k}": float(precision_at_k(neighbors, query_labels, settings.k))}
    for at in settings.recall_at:
        figures[f"recall_at_{at}"] = float(recall_at_k(neighbors, query_labels, at))
    return Ranked(neighbors[:, : settings.k], figures)


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
