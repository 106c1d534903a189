"""From a stage of a recipe to its trainer: models, miner, loss, optimizers and schedules put together."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.transforms import v2

from dr_plugin import distributed

from . import build, checkpoint
from .budget import max_steps
from .context import Context
from .data import batch_augment
from .ranking import RankingTrainer
from .recipe import RankingStage, Recipe, RecipeError, SoftmaxStage, Stage
from .softmax import SoftmaxTrainer
from .streaming import StreamTrainer, open_stream
from .trainer import StageTrainer


def build_trainer(context: Context, index: int, trunk: nn.Module) -> StageTrainer:
    """The trainer of stage ``index``, on the run's device, without hooks.

    Raises:
        RecipeError: if the trunk lacks what the stage asks for.
    """
    recipe, stage = context.recipe, context.recipe.stages[index]
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    trunk = trunk.to(context.device).to(memory_format=layout)
    if recipe.sync_batchnorm and distributed.world_size() > 1:
        trunk = nn.SyncBatchNorm.convert_sync_batchnorm(trunk)
    common: dict[str, Any] = {
        "augment": batch_augment(recipe, stage.augment),
        "seed": stage_seed(recipe, index),
        "precision": recipe.precision,
        "gradient_clip": stage.gradient_clip,
        "averaged_decay": stage.averaged_weights.decay if stage.averaged_weights else None,
        "max_steps": max_steps(recipe, stage),
        "freeze_trunk_batchnorm": stage.freeze_batchnorm,
        "batch_size": stage.batch_size,
        "dataset": context.data.train.subset(context.data.fit),
        "data_device": context.device,
    }
    if isinstance(stage, RankingStage):
        trainer = _ranking_trainer(context, stage, trunk, common)
    else:
        trainer = _softmax_trainer(context, stage, trunk, common)
    _add_schedulers(trainer, stage)
    return trainer


def initial_trunk(recipe: Recipe) -> nn.Module:
    """The trunk as training finds it; the same weights at each call."""
    checkpoint.seed_everything(recipe.seed)
    return build.build_trunk(recipe)


def stage_seed(recipe: Recipe, index: int) -> int:
    """A seed of its own for each stage of each recipe."""
    return int(np.random.SeedSequence([recipe.seed, index]).generate_state(1)[0])


def planned_steps(trainer: StageTrainer, stage: Stage) -> int:
    """Steps that the stage will take, limits included."""
    whole = stage.epochs * trainer.steps_per_epoch
    return whole if trainer.max_steps is None else min(whole, trainer.max_steps)


def _ranking_trainer(
    context: Context, stage: RankingStage, trunk: nn.Module, common: dict[str, Any]
) -> StageTrainer:
    recipe, dataset = context.recipe, common["dataset"]
    size = _output_size(trunk, common["augment"].image_size, context.device)
    loss = build.build_loss(stage, num_classes=context.data.num_classes, embedding_size=size).to(
        context.device
    )
    optimizers = {"trunk_optimizer": build.build_optimizer(stage.optimizer, trunk.parameters())}
    if any(True for _ in loss.parameters()):
        slot = stage.loss_optimizer or stage.optimizer
        optimizers["metric_loss_optimizer"] = build.build_optimizer(slot, loss.parameters())
    relevance = context.data.relevance.stored if context.data.relevance is not None else None
    unit = _unit(context, stage, loss)
    miner = build.build_miner(stage, recipe, relevance, unit)
    if recipe.compile:
        trunk.compile()
    parts = {
        "models": {"trunk": trunk},
        "optimizers": optimizers,
        "loss_funcs": {"metric_loss": loss},
        "mining_funcs": {} if miner is None else {"tuple_miner": miner},
        **common,
    }
    if stage.stream is not None:
        return StreamTrainer(
            stream=open_stream(recipe, stage, dataset, relevance, context.reporter.update), **parts
        )
    sampler = build.build_sampler(stage, dataset.labels, recipe, relevance, context.data.triplets)
    return RankingTrainer(sampler=sampler, **parts)


def _unit(context: Context, stage: RankingStage, loss: nn.Module) -> nn.Module | None:
    """The similarity unit of the stage's loss, seen to be there where the end of the run will need it."""
    unit = build.unit_of(loss)[1]
    wanted = context.recipe.evaluation.rerank
    if unit is None and wanted is not None and stage is context.recipe.stages[-1]:
        raise RecipeError(f"evaluation.rerank: {build.no_unit(wanted, stage.loss.type)}")
    return unit


def trained_unit(context: Context, trunk: nn.Module) -> nn.Module:
    """The similarity unit of the last stage's loss, with the weights that were kept with the best trunk.

    Raises:
        ValueError: if there is none: the stage's loss has no unit, or the checkpoint was written without one.
    """
    stage = context.recipe.stages[-1]
    weights = checkpoint.load(context.best)["models"].get("loss", {})
    if isinstance(stage, RankingStage):
        size = _output_size(trunk, context.recipe.data.image_size, context.device)
        loss = build.build_loss(stage, num_classes=context.data.num_classes, embedding_size=size)
        name, unit = build.unit_of(loss)
        if unit is not None and weights:
            start = f"{name}."
            unit.load_state_dict(
                {key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}
            )
            return unit.to(context.device).eval()
    raise ValueError(
        f"evaluation.rerank: got {context.recipe.evaluation.rerank}, but {context.best} holds no similarity unit"
    )


def _softmax_trainer(
    context: Context, stage: SoftmaxStage, trunk: nn.Module, common: dict[str, Any]
) -> StageTrainer:
    features = trunk
    if stage.features == "convnet":
        if not isinstance(getattr(trunk, "convnet", None), nn.Module):
            raise RecipeError(
                f"stages.{stage.name}.features: got convnet, but {type(trunk).__name__} has no part of that name; "
                "set features: embedding"
            )
        features = trunk.get_submodule("convnet")
    size = _output_size(features, common["augment"].image_size, context.device)
    classifier = nn.Linear(size, context.data.num_classes).to(context.device)
    parameters = [*trunk.parameters(), *classifier.parameters()]
    if context.recipe.compile:
        features.compile()
    return SoftmaxTrainer(
        features=features,
        mix=_mix(stage, context.data.num_classes),
        models={"trunk": trunk, "classifier": classifier},
        optimizers={"trunk_optimizer": build.build_optimizer(stage.optimizer, parameters)},
        loss_funcs={"classifier_loss": nn.CrossEntropyLoss(label_smoothing=stage.label_smoothing)},
        **common,
    )


def _mix(stage: SoftmaxStage, num_classes: int) -> nn.Module | None:
    """CutMix, MixUp or, where both are asked for, one of them drawn for each batch."""
    kinds: list[nn.Module] = []
    if stage.cutmix is not None:
        kinds.append(v2.CutMix(num_classes=num_classes, alpha=stage.cutmix))
    if stage.mixup is not None:
        kinds.append(v2.MixUp(num_classes=num_classes, alpha=stage.mixup))
    if not kinds:
        return None
    mix: nn.Module = kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)
    return mix


def _add_schedulers(trainer: StageTrainer, stage: Stage) -> None:
    """One schedule an optimizer, under the keys that PML steps by iteration or by epoch."""
    if stage.scheduler is None:
        return
    by_step = stage.scheduler_interval == "step"
    suffix = "_scheduler_by_iteration" if by_step else "_scheduler_by_epoch"
    total = planned_steps(trainer, stage)
    if not by_step:
        total = math.ceil(total / trainer.steps_per_epoch)
    for key, optimizer in trainer.optimizers.items():
        name = key.removesuffix("_optimizer") + suffix
        trainer.lr_schedulers[name] = build.build_scheduler(stage.scheduler, optimizer, total)


@torch.no_grad()
def _output_size(module: nn.Module, image_size: int, device: torch.device) -> int:
    """D of the vectors (B, D) that a module gives for the run's images."""
    was_training = module.training
    size = int(module.eval()(torch.zeros(1, 3, image_size, image_size, device=device)).shape[1])
    module.train(was_training)
    return size
