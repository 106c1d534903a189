"""All that can be known of a recipe before data is touched: its slots, and how its parts fit together."""

import inspect
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning.miners import EmbeddingsAlreadyPackagedAsTriplets
from pytorch_metric_learning.samplers import FixedSetOfTriplets
from torch import nn
from torch.utils.data import BatchSampler

from dr_plugin.datasets import SimilarityTriplets
from dr_plugin.losses.pddm_unit import PDDMUnit
from dr_plugin.samplers import OfflineTripletSampler
from dr_plugin.samplers.packaged import PackagedTripletSampler

from .build import (
    dataset_supply,
    loss_supply,
    miner_supply,
    no_unit,
    sampler_supply,
    scheduler_supply,
    stream_supply,
    trunk_supply,
    unit_of,
)
from .families import NotFoundError
from .problems import Key, Problem, got
from .schema import Augment, RankingStage, Recipe, Slot, Stage
from .slots import BuildError, Part, Supply, plan
from .stand_ins import StandInRelevance, relevance_of_samples

_STEPS = 1000  # a stand-in for the steps of a stage
_CLASSES, _EMBEDDING_SIZE = 4, 8  # stand-ins for what only the data and a foreign trunk can tell


def check(recipe: Recipe) -> list[Problem]:
    """All that is wrong with a recipe whose schema is met.

    Slots are checked by name, by type and, but for data sets and dotted paths, by building them with
    stand-ins for what the run gives: a few labels, a small tensor, and for the trunk tensors without memory.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of stand-ins; the run shows its own
        return _Check(recipe).all()


def slots_of(recipe: Recipe) -> Iterator[tuple[str, Key, Slot]]:
    """The outermost slots of a recipe, each with its kind and key."""
    yield "dataset", ("data", "dataset"), recipe.data.dataset
    if recipe.relevance is not None:
        yield "relevance", ("relevance",), recipe.relevance
    yield "trunk", ("trunk",), recipe.trunk
    for index, stage in enumerate(recipe.stages):
        for kind in ("stream", "sampler", "miner", "loss", "optimizer", "loss_optimizer", "scheduler"):
            slot = getattr(stage, kind, None)
            if slot is not None:
                yield kind.removeprefix("loss_"), ("stages", index, kind), slot


class _Check:
    """Collects a recipe's problems; a slot that is found wanting is left out of what follows from it."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.problems: list[Problem] = []
        self.brings_triplets = False
        self.unit: nn.Module | None = None  # of the loss of the last ranking stage that was looked at

    def all(self) -> list[Problem]:
        self._packages()
        self._sections()
        self._dataset()
        self._relevance()
        trunk = self._trunk()
        for index, stage in enumerate(self.recipe.stages):
            key: Key = ("stages", index)
            self._optimizer(stage, key, "optimizer")
            if isinstance(stage, RankingStage):
                self._ranking(stage, key, trunk)
            elif stage.features == "convnet" and trunk is not None and not hasattr(trunk, "convnet"):
                name = self.recipe.trunk.type
                self._add((*key, "features"), f'got "convnet", which {name} lacks, expected embedding')
        self._rerank()
        return self.problems

    def _add(self, key: Key, text: str) -> None:
        self.problems.append(Problem(key, text))

    def _packages(self) -> None:
        """Packages that only some recipes need."""
        if self.recipe.tensorboard and find_spec("tensorboard") is None:
            text = "got true, expected false, or TensorBoard installed: pip install 'dr-plugin[tensorboard]'"
            self._add(("tensorboard",), text)
        if self.recipe.evaluation.backend == "faiss" and find_spec("faiss") is None:
            text = 'got "faiss", expected torch, or faiss installed: pip install faiss-cpu'
            self._add(("evaluation", "backend"), text)

    def _sections(self) -> None:
        """Values that have to fit each other."""
        data, names = self.recipe.data, [stage.name for stage in self.recipe.stages]
        self._unseen()
        self._augment(("data", "augment"), data.augment)
        for index, stage in enumerate(self.recipe.stages):
            key = ("stages", index)
            if stage.augment is not None:
                self._augment((*key, "augment"), stage.augment)
            if stage.name in names[:index]:
                text = f"got {got(stage.name)} again, expected a name of its own for each stage"
                self._add((*key, "name"), text)
            if data.selection == 0 and stage.evaluate_every > 0:
                text = "expected 0, or data.selection of at least 1: there are no images to evaluate on"
                self._add((*key, "evaluate_every"), f"got {stage.evaluate_every}, {text}")
            if isinstance(stage, RankingStage) and stage.batch_size < 2:
                text = f"got {stage.batch_size}, expected at least 2: one image has no pair"
                self._add((*key, "batch_size"), text)

    def _unseen(self) -> None:
        """Classes to evaluate on that are not trained on."""
        classes, wanted = self.recipe.data.classes, self.recipe.data.unseen_classes
        if wanted is not None and self.recipe.evaluation.gallery != "val":
            text = f"got {got(wanted)}, expected null, or evaluation.gallery: val, which evaluates them"
            self._add(("data", "unseen_classes"), text)
        if isinstance(wanted, list) and isinstance(classes, list):
            for name in sorted({*wanted} & {*classes}):
                text = f"got {got(name)}, which data.classes trains on, expected other classes"
                self._add(("data", "unseen_classes"), text)

    def _rerank(self) -> None:
        """Re-ranking needs the unit of the last stage's loss."""
        rerank, stage = self.recipe.evaluation.rerank, self.recipe.stages[-1]
        loss = stage.loss.type if isinstance(stage, RankingStage) else "cross-entropy"
        if rerank is not None and (self.unit is None or loss == "cross-entropy"):
            self._add(("evaluation", "rerank"), no_unit(rerank, loss))

    def _augment(self, key: Key, augment: Augment) -> None:
        shift, size = augment.pixel_shift, self.recipe.data.image_size
        if shift >= size:
            self._add((*key, "pixel_shift"), f"got {shift}, expected less than data.image_size, {size}")

    def _dataset(self) -> None:
        slot, key = self.recipe.data.dataset, ("data", "dataset")
        try:
            supply = dataset_supply(slot, "train")
        except NotFoundError:  # planning finds it too, and says so
            supply = Supply()
        part = self._plan("dataset", slot, key, supply)
        self.brings_triplets = part is not None and issubclass(part.cls, SimilarityTriplets)
        if part is not None and not {"split", "train"} & part.arguments.keys():
            text = "which has no argument split or train, expected a data set that gives train and val apart"
            self._add((*key, "type"), f"got {got(slot.type)}, {text}")

    def _relevance(self) -> None:
        if self.recipe.relevance is not None:
            supply = Supply({"cache": Path(), "seed": self.recipe.seed})
            self._built(self._plan("relevance", self.recipe.relevance, ("relevance",), supply))

    def _trunk(self) -> nn.Module | None:
        slot, key = self.recipe.trunk, ("trunk",)
        part = self._plan("trunk", slot, key, trunk_supply(self.recipe))
        if part is None:
            return None
        if slot.arguments.get("weights") == "imagenet":  # would be downloaded
            if slot.arguments.get("convnet_stem", "standard") != "standard":
                text = "expected null or a file: ImageNet weights are of the standard stem"
                self._add((*key, "weights"), f'got "imagenet" beside another convnet_stem, {text}')
            part = replace(part, arguments=part.arguments | {"weights": None})
        with torch.device("meta"):
            trunk: nn.Module | None = self._built(part)
        return trunk

    def _ranking(self, stage: RankingStage, key: Key, trunk: nn.Module | None) -> None:
        sampler = self._sampler(stage, (*key, "sampler"))
        if stage.stream is not None:
            self._stream(stage, stage.stream, (*key, "stream"))
        packaged = sampler is not None and issubclass(sampler.cls, PackagedTripletSampler)
        if (packaged or stage.stream is not None) and (
            stage.miner is None
            or stage.miner.type.rpartition(".")[2] != EmbeddingsAlreadyPackagedAsTriplets.__name__
        ):
            given = "null" if stage.miner is None else got(stage.miner.type)
            wanted = EmbeddingsAlreadyPackagedAsTriplets.__name__
            self._add((*key, "miner"), f"got {given}, expected {wanted}: another leaves the triplets unread")
        loss = self._built(self._plan("loss", stage.loss, (*key, "loss"), self._loss_supply(trunk)))
        # A loss from a dotted path is not built before the run: its unit is not known.
        self.unit = unit_of(loss)[1] if loss is not None else PDDMUnit(_EMBEDDING_SIZE)
        if stage.miner is not None:
            supply = miner_supply(self.recipe, self._stand_in(), self.unit)
            miner = self._plan("miner", stage.miner, (*key, "miner"), supply)
            self._built(miner)
            if miner is not None and issubclass(miner.cls, EmbeddingsAlreadyPackagedAsTriplets):
                self._packaged(stage, key, sampler)
        self._optimizer(stage, key, "loss_optimizer")
        if loss is not None and stage.loss_optimizer is not None and not any(True for _ in loss.parameters()):
            text = f"got a slot, expected null: {stage.loss.type} has no weights to train"
            self._add((*key, "loss_optimizer"), text)

    def _loss_supply(self, trunk: nn.Module | None) -> Supply:
        """What is known already binds the recipe; stand-ins do not."""
        size = getattr(trunk, "embedding_size", None)
        known = {"num_classes": self._num_classes(), "embedding_size": size}
        supply = loss_supply(known["num_classes"] or _CLASSES, size or _EMBEDDING_SIZE)
        return replace(supply, binding={name: text for name, text in supply.binding.items() if known[name]})

    def _num_classes(self) -> int | None:
        classes = self.recipe.data.classes
        return len(classes) if isinstance(classes, list) else classes

    def _sampler(self, stage: RankingStage, key: Key) -> Part | None:
        if stage.sampler is None:
            return None
        # As many classes as a batch can need where the number is not known, and images for more than one batch.
        classes = self._num_classes() or max(stage.batch_size, 2)
        labels = torch.arange(classes).repeat(1 + math.ceil(stage.batch_size / classes))
        triplets = torch.arange(3 * (len(labels) // 3)).view(-1, 3)
        own = triplets if self.brings_triplets else None
        supply = sampler_supply(stage, labels, self.recipe, self._stand_in(), own)
        part = self._plan("sampler", stage.sampler, key, supply)
        if part is not None and isinstance(relevance := part.arguments.get("relevance"), StandInRelevance):
            part = replace(part, arguments=part.arguments | {"labels": relevance.labels})
        if part is not None and issubclass(part.cls, OfflineTripletSampler):
            stand_in = {"triplets": triplets, "weights": None}  # the file's own need the data
            part = replace(part, arguments=part.arguments | stand_in)
        if part is not None and isinstance(part.arguments.get("num_triplets"), int):
            # PML's FixedSetOfTriplets draws them all, one by one.
            part = replace(part, arguments=part.arguments | {"num_triplets": 1})
        self._built(part)
        return part

    def _stream(self, stage: RankingStage, slot: Slot, key: Key) -> None:
        supply = stream_supply(stage, self.recipe, list, self._stand_in() and relevance_of_samples)
        part = self._plan("stream", slot, key, supply)
        if part is not None:  # how long an epoch is by default, the shards say
            part = replace(part, arguments={"batches_per_epoch": 1} | part.arguments)
        self._built(part)
        if stage.sampler is not None:
            text = "got a slot beside stream, expected null: the stream gives the batches"
            self._add((*key[:-1], "sampler"), text)

    def _stand_in(self) -> "StandInRelevance | None":
        return None if self.recipe.relevance is None else StandInRelevance()

    def _packaged(self, stage: RankingStage, key: Key, sampler: Part | None) -> None:
        """PML's miner of packaged triplets takes each three images of any batch for a triplet."""
        if (stage.sampler is None and stage.stream is None) or (
            sampler is not None and not issubclass(sampler.cls, BatchSampler | FixedSetOfTriplets)
        ):
            given = "null" if stage.sampler is None else got(stage.sampler.type)
            text = "expected a sampler of triplets such as UniformTripletSampler, as the miner asks for"
            self._add((*key, "sampler"), f"got {given}, {text}")
        if stage.batch_size % 3:
            text = f"got {stage.batch_size}, expected a multiple of 3: the batch is packaged as triplets"
            self._add((*key, "batch_size"), text)

    def _optimizer(self, stage: Stage, key: Key, name: str) -> None:
        """An optimizer, and the stage's scheduler on it."""
        slot = getattr(stage, name)
        if slot is None:
            return
        parameters = [nn.Parameter(torch.zeros(2, 2))]
        optimizer = self._built(self._plan("optimizer", slot, (*key, name), Supply({"params": parameters})))
        if optimizer is not None:
            self._steps_alone(optimizer, (*key, name))
        if stage.scheduler is None:
            return
        # Without the optimizer, what the scheduler is called with can still be checked, but not built.
        supply = scheduler_supply(stage.scheduler, optimizer or torch.optim.SGD(parameters), _STEPS)
        part = self._plan("scheduler", stage.scheduler, (*key, "scheduler"), supply)
        scheduler = self._built(part) if optimizer is not None else None
        if scheduler is not None:
            self._steps_alone(scheduler, (*key, "scheduler"))

    def _steps_alone(self, stepper: Any, key: Key) -> None:
        """``step()`` has to work without arguments, which is how the trainer calls it."""
        parameters = inspect.signature(stepper.step).parameters.values()
        needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if needed:
            text = f"whose step needs {needed[0]}, expected one that needs nothing"
            self._add((*key, "type"), f"got {got(type(stepper).__name__)}, {text}")

    def _plan(self, kind: str, slot: Slot, key: Key, supply: Supply) -> Part | None:
        return plan(kind, {"type": slot.type, **slot.arguments}, key, supply, self.problems)

    def _built(self, part: Part | None) -> Any:
        """The object, or None if there is none; a class from a dotted path is not called before the run."""
        if part is None or not part.known:
            return None
        try:
            return part.build()
        except BuildError as error:
            self.problems.append(error.problem)
            return None
