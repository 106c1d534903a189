"""The end of a run: the protocol's figures, the baselines beside them, ``metrics.json`` and the report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dr_plugin import distributed
from dr_plugin.atomic import write_json
from dr_plugin.trunks import DeepRankingTrunk

from .assemble import initial_trunk, trained_unit
from .context import Context
from .evaluate import Ranked, hog, pixels, rank, reranked
from .examples import ranked_examples
from .journal import read_journal
from .memory import peak_of
from .relevance import WantedOrder
from .report import ReportData, write_report

_MOST_CONFUSED = 2000  # classes of which the report tells what they are taken for


@dataclass(frozen=True)
class Result:
    """Where a finished run's report lies, and its figures (the content of ``metrics.json``)."""

    report: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class _Features:
    """Val and, where it is ranked or ranks, train, on the device."""

    val: torch.Tensor
    train: torch.Tensor | None


def conclude(context: Context, trunk: nn.Module, stages: list[dict[str, Any]]) -> Result:
    """Measure the trained trunk, write ``metrics.json`` and the report.

    Of several processes all embed, each its share of the images; rank 0 does the rest.

    Args:
        context: The run.
        trunk: The trained trunk.
        stages: The summaries of the stages.
    """
    features = _embedded(context, trunk, "embed", train=context.recipe.evaluation.train, divided=True)
    return distributed.done_by_first(lambda: _measured(context, trunk, stages, features))


def _measured(
    context: Context, trunk: nn.Module, stages: list[dict[str, Any]], features: _Features
) -> Result:
    """The figures and the report."""
    recipe, data, settings = context.recipe, context.data, context.recipe.evaluation
    _note_lone_images(context)
    ranked = _rank_val(context, features, at_least=settings.rerank or 1)
    metrics: dict[str, Any] = {"name": recipe.name, "k": settings.k}
    if settings.gallery == "val":
        metrics |= {
            "gallery": "val",
            "classes": {"train": data.num_classes, "val": len(data.val.class_names)},
        }
    metrics["val"] = ranked.figures
    if settings.rerank is not None:
        metrics["rerank"] = settings.rerank
        metrics["val_reranked"] = _rerank_val(context, trunk, features, ranked).figures
    if settings.train and features.train is not None:
        labels = data.train.labels
        metrics["train"] = rank(
            features.train,
            labels,
            features.train,
            labels,
            settings,
            exclude_self=True,
            progress=context.reporter.update,
        ).figures
    metrics["selection"] = stages[-1]["selection"]
    metrics |= _compared(context, features)
    metrics["stages"] = [
        {key: value for key, value in stage.items() if key != "selection"} for stage in stages
    ]
    metrics["wall_time_s"] = round(context.journal.seconds, 1)
    metrics |= peak_of(stages, context.device)
    write_json(context.folder / "metrics.json", metrics)
    report = write_report(context.folder / "report", _report_data(context, metrics, ranked, trunk, features))
    return Result(report, metrics)


def _embedded(
    context: Context, trunk: nn.Module, task: str, *, train: bool, divided: bool = False
) -> _Features:
    """What the trunk makes of val, and of train where val ranks it or it is asked for."""
    embed, data = context.embedder(divided=divided), context.data
    trunk = trunk.to(context.device)
    val = embed(trunk, data.val, f"{task} val")
    if not train and context.recipe.evaluation.gallery == "val":
        return _Features(val, None)
    return _Features(val, embed(trunk, data.train, f"{task} train"))


def _gallery(context: Context, features: _Features) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """What val ranks: its features, its labels, and whether it is val itself."""
    data, own = context.data, context.recipe.evaluation.gallery == "val"
    if own or features.train is None:
        return features.val, data.val.labels, own
    return features.train, data.train.labels, own


def _rank_val(context: Context, features: _Features, at_least: int = 1) -> Ranked:
    """Val against the recipe's gallery."""
    gallery, labels, own = _gallery(context, features)
    return rank(
        features.val,
        context.data.val.labels,
        gallery,
        labels,
        context.recipe.evaluation,
        exclude_self=own,
        at_least=at_least,
        progress=context.reporter.update,
    )


def _rerank_val(context: Context, trunk: nn.Module, features: _Features, ranked: Ranked) -> Ranked:
    """The same with the nearest ordered anew by the unit that was trained with the trunk."""
    gallery, labels, _ = _gallery(context, features)
    unit = trained_unit(context, trunk)
    own = context.data.val.labels
    return reranked(ranked, features.val, own, gallery, labels, unit, context.recipe.evaluation)


def _compared(context: Context, features: _Features) -> dict[str, Any]:
    """The baselines' figures, and the order within the classes of all where a relevance tells what it should be."""
    order = _wanted_order(context)
    in_class = _in_class(context, order, features)
    found: dict[str, Any] = {"baselines": {}}
    for name in context.recipe.evaluation.baselines:
        other = _baseline(name, context)
        found["baselines"][name] = _rank_val(context, other).figures
        in_class.setdefault("baselines", {})[name] = _in_class(context, order, other)
    return found if order is None else {**found, "in_class": in_class}


def _baseline(name: str, context: Context) -> _Features:
    """Val and its gallery under features that were not trained here."""
    data, update = context.data, context.reporter.update
    if name == "untrained":
        return _embedded(context, initial_trunk(context.recipe), "embed untrained", train=False)
    images = [data.val] if context.recipe.evaluation.gallery == "val" else [data.val, data.train]
    found = [pixels(some) if name == "pixels" else hog(some, update) for some in images]
    found = [some.to(context.device) for some in found]
    return _Features(found[0], found[1] if len(found) > 1 else None)


def _wanted_order(context: Context) -> WantedOrder | None:
    """The order within the classes, val against the images trained on.

    None where no relevance tells, or where val has other classes, of which no image was trained on.
    """
    data = context.data
    if data.relevance is None or not data.relevance.knows_new_images:
        return None
    if context.recipe.evaluation.gallery == "val":
        return None
    return WantedOrder.of(data.relevance, data.val, data.train.subset(data.fit))


def _in_class(context: Context, order: WantedOrder | None, features: _Features) -> dict[str, Any]:
    """How well these embeddings' order within the classes agrees with the recipe's relevance."""
    if order is None or features.train is None:
        return {}
    k, gallery = context.recipe.evaluation.k, features.train[context.data.fit.to(features.train.device)]
    right, score = order.figures(features.val, gallery, k)
    return {"concordance": right, f"score_at_top_{k}": score}


def _note_lone_images(context: Context) -> None:
    """Say that a class of one image cannot be found, where val is its own gallery."""
    lone = int((torch.bincount(context.data.val.labels) == 1).sum())
    if context.recipe.evaluation.gallery == "val" and lone:
        context.reporter.note(
            f"{lone} val images are the only ones of their class: nothing can be found for them, which counts as a miss"
        )


def _report_data(
    context: Context, metrics: dict[str, Any], ranked: Ranked, trunk: nn.Module, features: _Features
) -> ReportData:
    data, (gallery, _, own) = context.data, _gallery(context, features)
    class_names = data.val.class_names if own else data.class_names
    precision, confusion = _by_class(data.val.labels, ranked.neighbor_labels, len(class_names))
    filters = trunk.first_filters() if isinstance(trunk, DeepRankingTrunk) else {}
    return ReportData(
        name=context.recipe.name,
        recipe_text=(context.folder / "recipe.yaml").read_text(),
        environment=json.loads((context.folder / "environment.json").read_text()),
        metrics=metrics,
        history=read_journal(context.folder),
        class_names=class_names,
        examples=ranked_examples(context, features.val, gallery),
        filters={name: weights.detach().float().cpu().numpy() for name, weights in filters.items()},
        class_precision=precision.numpy(),
        confusion=confusion.numpy(),
    )


def _by_class(
    query_labels: torch.Tensor, neighbor_labels: torch.Tensor, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Precision of each class's queries (C,), NaN where it has none, and the confusion (C, C).

    That is the share of the column's class among the neighbours of the row's; empty of more than `_MOST_CONFUSED`
    classes, as its memory grows with their square.
    """
    right = (neighbor_labels == query_labels[:, None]).double().mean(1)
    sums = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, query_labels, right)
    precision = sums / torch.bincount(query_labels, minlength=num_classes)
    if num_classes > _MOST_CONFUSED:
        return precision, torch.empty(0)
    pairs = (query_labels[:, None] * num_classes + neighbor_labels).flatten()
    counts = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).double()
    return precision, counts / counts.sum(1, keepdim=True)
