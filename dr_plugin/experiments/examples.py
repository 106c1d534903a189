"""The queries that a report shows, with their nearest and farthest images."""

import torch

from dr_plugin.datasets import PackedImages
from dr_plugin.metrics import nearest

from .context import Context
from .report_data import Neighbor, RankedExample


def ranked_examples(context: Context, val: torch.Tensor, gallery: torch.Tensor) -> list[RankedExample]:
    """Val images of different classes, drawn from the seed, with the nearest and farthest images of the gallery.

    Shape:
        val (Q, D) and gallery (N, D), the embeddings of all images of both.
    """
    data, settings = context.data, context.recipe.report
    if settings.queries == 0:
        return []
    own = context.recipe.evaluation.gallery == "val"
    images = data.val if own else data.train
    generator = torch.Generator().manual_seed(context.recipe.seed)
    present = data.val.labels.unique()  # not every class need have a val image
    classes = present[torch.randperm(len(present), generator=generator)[: settings.queries]]
    queries = torch.stack(
        [_draw(torch.nonzero(data.val.labels == label).flatten(), generator) for label in classes]
    )
    sides: list[list[list[Neighbor]]] = []
    for number, largest in ((settings.top, False), (settings.bottom, True)):
        number = min(number, len(images) - own)
        if number == 0:
            sides.append([[] for _ in queries])
            continue
        distances, indices = nearest(val[queries.to(val.device)], gallery, number + own, largest=largest)
        distances, indices = distances.cpu(), indices.cpu()
        if own:
            distances, indices = _without(queries, distances, indices)
        sides.append([_neighbors(images, *pair) for pair in zip(distances, indices, strict=True)])
    shown, labels = data.val.batch(queries)
    return [
        RankedExample(image.permute(1, 2, 0).numpy(), int(label), near, far)
        for image, label, near, far in zip(shown, labels, *sides, strict=True)
    ]


def _without(
    queries: torch.Tensor, distances: torch.Tensor, indices: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One image less of each query: itself, or else the last one."""
    keep = indices != queries[:, None]
    keep[:, -1] &= ~keep.all(dim=1)
    rows = (len(queries), -1)
    return distances[keep].view(rows), indices[keep].view(rows)


def _neighbors(images: PackedImages, distances: torch.Tensor, indices: torch.Tensor) -> list[Neighbor]:
    shown, labels = images.batch(indices)
    return [
        Neighbor(image.permute(1, 2, 0).numpy(), int(label), float(distance))
        for image, label, distance in zip(shown, labels, distances, strict=True)
    ]


def _draw(members: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return members[torch.randint(len(members), (), generator=generator)]
