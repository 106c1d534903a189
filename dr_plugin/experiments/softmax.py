"""The classification stage of section 6.1, on the trainer's loop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dr_plugin import distributed

from .trainer import StageTrainer


class SoftmaxTrainer(StageTrainer):
    """Stage 1 of section 6.1: cross-entropy on a classifier head that is thrown away afterwards.

    Args:
        features: The part of the trunk that the head stands on, images -> (B, F); the trunk's ConvNet in the paper.
        mix: Called with images and labels, gives images and soft labels (CutMix, MixUp); None for neither.
        stage: The arguments of ``StageTrainer``; ``models`` has "trunk" and "classifier", ``loss_funcs`` has
            "classifier_loss".
    """

    def __init__(
        self,
        *,
        features: nn.Module,
        mix: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
        **stage: Any,
    ) -> None:
        self.features, self.mix = features, mix
        super().__init__(**stage)

    def modify_schema(self) -> None:
        """Let PML's key check know the classifier and its loss."""
        super().modify_schema()
        self.schema["models"].keys += ["classifier"]
        self.schema["loss_funcs"].keys = ["classifier_loss"]

    def trained_part(self) -> nn.Module:
        """The part of the trunk that the head stands on, and the head."""
        return nn.Sequential(self.features, self.models["classifier"])

    def calculate_loss(self, curr_batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Cross-entropy of the head's logits (B, C) with the labels, hard (B,) or soft (B, C).

        Of several processes each has the loss of its own images, which are mixed among themselves; the processes'
        mean is that of the batch.
        """
        images, labels = curr_batch
        labels = labels[self.part].to(self.data_device, non_blocking=True)
        with self.noise():
            if self.mix is not None:
                images, labels = self.mix(images, labels)
            with self.autocast():
                logits = self.network(images)
        loss = self.loss_funcs["classifier_loss"](logits.float(), labels)
        share = len(images) * distributed.world_size() / self.batch_images
        self.losses["classifier_loss"] = loss if share == 1 else loss * share
