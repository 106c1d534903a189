"""The end of a run: the protocol's figures, the baselines beside them, ``metrics.json`` and the report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dr_plugin.atomic import write_json
from dr_plugin.metrics import nearest
from dr_plugin.trunks import DeepRankingTrunk

from .assemble import initial_trunk
from .context import Context
from .data import RunData
from .evaluate import Ranked, hog, pixels, rank
from .journal import read_journal
from .relevance import WantedOrder
from .report import Neighbor, RankedExample, ReportData, write_report


@dataclass(frozen=True)
class Result:
    """Where a finished run's report lies, and its figures (the content of ``metrics.json``)."""

    report: Path
    metrics: dict[str, Any]


def conclude(context: Context, trunk: nn.Module, stages: list[dict[str, Any]]) -> Result:
    """Measure the trained trunk, write ``metrics.json`` and the report.

    Args:
        context: The run.
        trunk: The trained trunk.
        stages: The summaries of the stages.
    """
    recipe, data, settings = context.recipe, context.data, context.recipe.evaluation
    embed = context.embedder()
    trunk = trunk.to(context.device)
    val, train = embed(trunk, data.val, "embed val"), embed(trunk, data.train, "embed train")
    update = context.reporter.update
    ranked = rank(val, data.val.labels, train, data.train.labels, settings, progress=update)
    metrics: dict[str, Any] = {"name": recipe.name, "k": settings.k, "val": ranked.figures}
    if settings.train:
        metrics["train"] = rank(
            train, data.train.labels, train, data.train.labels, settings, exclude_self=True, progress=update
        ).figures
    metrics["selection"] = stages[-1]["selection"]
    metrics["baselines"] = {}
    order = _wanted_order(context)
    in_class = _in_class(context, order, val, train)
    for name in settings.baselines:
        features = _baseline(name, context)
        labels = (data.val.labels, data.train.labels)
        metrics["baselines"][name] = rank(
            features[0], labels[0], features[1], labels[1], settings, progress=update
        ).figures
        in_class.setdefault("baselines", {})[name] = _in_class(context, order, *features)
    if order is not None:
        metrics["in_class"] = in_class
    metrics["stages"] = [
        {key: value for key, value in stage.items() if key != "selection"} for stage in stages
    ]
    metrics["wall_time_s"] = round(context.journal.seconds, 1)
    write_json(context.folder / "metrics.json", metrics)
    report = write_report(
        context.folder / "report", _report_data(context, metrics, ranked, trunk, val, train)
    )
    return Result(report, metrics)


def _baseline(name: str, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """Val and train under features that were not trained here."""
    data, update = context.data, context.reporter.update
    if name == "untrained":
        trunk = initial_trunk(context.recipe).to(context.device)
        embed = context.embedder()
        val, train = (embed(trunk, images, "embed untrained") for images in (data.val, data.train))
    elif name == "pixels":
        val, train = pixels(data.val), pixels(data.train)
    else:
        val, train = hog(data.val, update), hog(data.train, update)
    return val.to(context.device), train.to(context.device)


def _wanted_order(context: Context) -> WantedOrder | None:
    """The order within the classes, val against the images trained on; None where no relevance tells."""
    data = context.data
    if data.relevance is None or not data.relevance.knows_new_images:
        return None
    return WantedOrder.of(data.relevance, data.val, data.train.subset(data.fit))


def _in_class(
    context: Context, order: WantedOrder | None, val: torch.Tensor, train: torch.Tensor
) -> dict[str, Any]:
    """How well these embeddings' order within the classes agrees with the recipe's relevance."""
    if order is None:
        return {}
    k, gallery = context.recipe.evaluation.k, train[context.data.fit.to(train.device)]
    right, score = order.figures(val, gallery, k)
    return {"concordance": right, f"score_at_top_{k}": score}


def _report_data(
    context: Context,
    metrics: dict[str, Any],
    ranked: Ranked,
    trunk: nn.Module,
    val: torch.Tensor,
    train: torch.Tensor,
) -> ReportData:
    data = context.data
    confusion = _confusion(data.val.labels, ranked.neighbor_labels, data.num_classes)
    filters = trunk.first_filters() if isinstance(trunk, DeepRankingTrunk) else {}
    return ReportData(
        name=context.recipe.name,
        recipe_text=(context.folder / "recipe.yaml").read_text(),
        environment=json.loads((context.folder / "environment.json").read_text()),
        metrics=metrics,
        history=read_journal(context.folder),
        class_names=data.class_names,
        examples=_examples(context, val, train),
        filters={name: weights.detach().float().cpu().numpy() for name, weights in filters.items()},
        class_precision=confusion.diagonal().numpy(),
        confusion=confusion.numpy(),
    )


def _confusion(query_labels: torch.Tensor, neighbor_labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(C, C) share of the column's class among the neighbours of the row's; NaN for a class without queries."""
    pairs = query_labels[:, None] * num_classes + neighbor_labels
    counts = torch.bincount(pairs.flatten(), minlength=num_classes**2).view(num_classes, num_classes).double()
    return counts / counts.sum(1, keepdim=True)


def _examples(context: Context, val: torch.Tensor, train: torch.Tensor) -> list[RankedExample]:
    """Val images of different classes, drawn from the seed, with their nearest and farthest training images."""
    data, settings = context.data, context.recipe.report
    if settings.queries == 0:
        return []
    generator = torch.Generator().manual_seed(context.recipe.seed)
    present = data.val.labels.unique()  # not every class need have a val image
    classes = present[torch.randperm(len(present), generator=generator)[: settings.queries]]
    queries = torch.stack(
        [_draw(torch.nonzero(data.val.labels == label).flatten(), generator) for label in classes]
    )
    sides: list[list[list[Neighbor]]] = []
    for number, largest in ((settings.top, False), (settings.bottom, True)):
        if number == 0:
            sides.append([[] for _ in queries])
            continue
        number = min(number, len(data.train))
        distances, indices = nearest(val[queries.to(val.device)], train, number, largest=largest)
        sides.append([_neighbors(data, *pair) for pair in zip(distances.cpu(), indices.cpu(), strict=True)])
    images, labels = data.val.batch(queries)
    return [
        RankedExample(image.permute(1, 2, 0).numpy(), int(label), near, far)
        for image, label, near, far in zip(images, labels, *sides, strict=True)
    ]


def _neighbors(data: RunData, distances: torch.Tensor, indices: torch.Tensor) -> list[Neighbor]:
    images, labels = data.train.batch(indices)
    return [
        Neighbor(image.permute(1, 2, 0).numpy(), int(label), float(distance))
        for image, label, distance in zip(images, labels, distances, strict=True)
    ]


def _draw(members: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return members[torch.randint(len(members), (), generator=generator)]
