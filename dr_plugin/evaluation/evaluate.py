"""Every metric that a data set allows, of any model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dr_plugin.checks import check_whole
from dr_plugin.metrics import mean_average_precision, nearest, precision_at_k, recall_at_k
from dr_plugin.relevance.distances import feature_distances

from .data import LabelledData, RatedData
from .human import FeatureDistances, judge
from .model import Model

Progress = Callable[[str, int, int | None], None]

RECALL_AT = (1, 2, 4, 8, 16, 32)
_APART = (
    "here val ranks train, over all classes of the data set; the run's own figures, in its metrics.json, are of val "
    "against val on classes that it was not trained on"
)
_ROWS = 64  # queries whose distances to the whole gallery are held at once


def evaluate(
    model: Model,
    data: LabelledData | RatedData,
    *,
    k: int = 30,
    resamples: int = 10_000,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The figures of a model on a data set, as plain numbers.

    - Labelled images: each of val ranks all of train (also for a run that keeps the classes of val apart, whose own
      figures are others: a ``note`` says so); precision and mean average precision at k (of
      min(k, images of the class)), recall at 1, 2, 4, ... 32 (those that the gallery allows; the hit rates).
    - Rated triplets: similarity precision with its interval, and the scores at top k; see `judge`.

    A feature that learns does so from the gallery's images, or from the triplets' own, without labels and ratings.

    Args:
        model: As `open_model` gives it.
        data: As `open_data` gives it.
        k: Neighbours.
        resamples: Of the interval's bootstrap.
        seed: Of the bootstrap.
        progress: Called as progress(task, done, total).
    Raises:
        ValueError: if k is no whole number from 1 to the gallery's size, or the model gives no embeddings.
    """
    k = check_whole("k", k, minimum=1)
    about = {"model": model.name, "data": data.name, "k": k}
    if isinstance(data, RatedData):
        model.fit(data.images, progress=progress)
        features = model.embed(data.images, progress=progress).numpy()
        distances = FeatureDistances(model.distance, features, data.triplets)
        judged = judge(distances, data, k=k, resamples=resamples, seed=seed)
        return {**about, "rated": data.counts, **judged.figures}
    if k > len(data.gallery):
        raise ValueError(f"k: got {k}, expected at most {len(data.gallery)}, the images of the gallery")
    model.fit(data.gallery, progress=progress)
    query, gallery = (model.embed(images, progress=progress) for images in (data.query, data.gallery))
    figures = _class_figures(model.distance, query, gallery, data, k, progress)
    if model.recipe is not None and model.recipe.evaluation.gallery == "val":
        figures["note"] = _APART
    return {**about, **figures}


def _class_figures(
    how: Any, query: Tensor, gallery: Tensor, data: LabelledData, k: int, progress: Progress | None
) -> dict[str, Any]:
    recalls = [at for at in RECALL_AT if at <= len(gallery)]
    neighbors = _neighbors(how, query, gallery, max(k, *recalls), progress)
    labels, found = data.query.labels, data.gallery.labels[neighbors]
    figures: dict[str, Any] = {"queries": len(query), "gallery": len(gallery)}
    figures[f"precision_at_{k}"] = float(precision_at_k(found, labels, k))
    figures[f"mean_average_precision_at_{k}"] = float(
        mean_average_precision(
            found[:, :k] == labels[:, None], _of_class(labels, data.gallery.labels), out_of="reachable"
        )
    )
    figures |= {f"recall_at_{at}": float(recall_at_k(found, labels, at)) for at in recalls}
    return figures


def _of_class(labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """How many images of the gallery are of each query's class (Q,)."""
    counts = torch.bincount(gallery_labels, minlength=int(labels.max()) + 1)
    return counts[labels]


def _neighbors(how: Any, query: Tensor, gallery: Tensor, k: int, progress: Progress | None) -> Tensor:
    """Indices of the k nearest of the gallery, (Q, k), by whatever distance."""
    if how == "euclidean":
        return nearest(query, gallery, k, progress=progress)[1]
    parts = []
    for start in range(0, len(query), _ROWS):
        distances = feature_distances(how, query[start : start + _ROWS].numpy(), gallery.numpy())
        parts.append(np.argsort(distances, axis=1, kind="stable")[:, :k])
        if progress is not None:
            progress("rank", min(start + _ROWS, len(query)), len(query))
    return torch.from_numpy(np.concatenate(parts))


def summary(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures as rows of a table: what, and how much."""
    rows = []
    for name, value in figures.items():
        if isinstance(value, float):
            rows.append((name, f"{value:.4f}"))
        elif isinstance(value, dict) and "value" in value:
            between = "" if value["low"] is None else f"95% {value['low']:.4f} to {value['high']:.4f}; "
            rows.append((name, f"{value['value']:.4f} ({between}{value['tied']} ties)"))
        elif isinstance(value, dict) and "score" in value:
            shown = f"{value['score']:,} ({value['counted']} of {value['triplets']} triplets counted, pools "
            shown += "{:,} / {:,.0f} / {:,})".format(*value["pool_size"])
            rows.append((name, shown))
    return rows
