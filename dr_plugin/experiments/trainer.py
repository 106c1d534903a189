"""PML's trainer loop with mixed precision, averaged weights, and a state that resumes to the same numbers.

``StageTrainer`` is the base; ``RankingTrainer`` is PML's ``MetricLossOnly`` over it, ``softmax`` has the classification
stage's. Progress, evaluation, the journal and checkpoints hang on PML's two hooks.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from pytorch_metric_learning.trainers import BaseTrainer
from pytorch_metric_learning.utils import common_functions as c_f
from torch import nn

from dr_plugin import distributed
from dr_plugin.datasets import BatchAugment, PackedImages

from . import checkpoint, trainer_state
from .averaging import AveragedWeights
from .epoch_order import EpochOrder
from .prefetch import Prefetch
from .ranks import check_divisible, check_same_batches, noise_of_rank

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what is kept."""


class StageTrainer(BaseTrainer):
    """The loop that both stages share, as a PML trainer.

    Differs from PML's trainers in:
      - a batch is one index operation on ``PackedImages``, made one step ahead where an accelerator trains, and is
        augmented on the training device;
      - the sampler's whole epoch is drawn before its first step (see `EpochOrder`), so that a resume in the middle of
        an epoch needs nothing of the sampler;
      - nothing waits for the device within a step; the loss is read every ``check_every`` steps (every step on a
        CPU, where it is free) and a non-finite one stops the run;
      - schedules are stepped before ``end_of_iteration_hook``, so that a checkpoint made there holds the whole step;
      - the losses of the last step are still there in ``end_of_epoch_hook``;
      - there is no ``DataLoader``: its arguments are refused;
      - on several processes (torchrun), all draw the same batches and each takes its share of a batch's images through
        the network. A batch and its triplets are the same on any number of them.

    Args:
        augment: Turns a uint8 batch into the network's input.
        seed: Of the order of images (where there is no sampler) and of the augmentation.
        precision: "float32", "bfloat16" or "float16": autocast of the models; embeddings, mining and loss are float32.
        gradient_clip: Largest norm of each optimizer's gradient; None for no clipping.
        averaged_decay: Decay of the exponential average of the trunk's weights; None for none.
        max_steps: Stop after so many steps in all; None for no such limit.
        check_every: Steps between two readings of the loss on an accelerator.
        pml: The arguments of PML's ``BaseTrainer``; ``dataset`` is a ``PackedImages``.
    Raises:
        ValueError: if the precision is unknown, the data set or sampler gives not one whole batch, or an argument of
            a ``DataLoader`` is given.
    """

    dataset: PackedImages

    def __init__(
        self,
        *,
        augment: BatchAugment,
        seed: int = 0,
        precision: str = "float32",
        gradient_clip: float | None = None,
        averaged_decay: float | None = None,
        max_steps: int | None = None,
        check_every: int = 50,
        **pml: Any,
    ) -> None:
        if precision not in DTYPES:
            raise ValueError(f"precision: got {precision!r}, expected one of {', '.join(DTYPES)}")
        if unused := {"iterations_per_epoch", "collate_fn", "dataloader_num_workers"} & pml.keys():
            raise ValueError(
                f"{min(unused)}: expected nothing, as batches are taken from PackedImages directly"
            )
        self.augment = augment
        self.autocast_dtype = DTYPES[precision]
        self.gradient_clip = gradient_clip
        self.max_steps = max_steps
        self.seed = seed
        self.augment_generator = torch.Generator().manual_seed(seed + 1)
        self.batches: list[torch.Tensor] = []  # the running epoch's; empty between epochs
        self.epochs_done = self.batches_done = self.steps_done = self.images_seen = 0
        super().__init__(**pml)
        on_cpu = self.data_device.type == "cpu"
        self.check_every = 1 if on_cpu else check_every
        self.prefetch, self.reads_ahead = Prefetch(self.read_batch), not on_cpu
        self.scaler = torch.amp.GradScaler(self.data_device.type, enabled=precision == "float16")
        self.loss_sum, self.loss_count = torch.zeros((), device=self.data_device), 0
        trunk = self.models["trunk"]
        size = augment.image_size
        self.network = distributed.in_parallel(
            self.trained_part(), torch.zeros(2, 3, size, size, device=self.data_device)
        )
        self.averaged = AveragedWeights(trunk, averaged_decay) if averaged_decay is not None else None
        self.order = EpochOrder(self.sampler, len(self.dataset), int(self.batch_size), seed)
        self.steps_per_epoch = self.order.batches_per_epoch
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"got {len(self.dataset)} images and batch size {self.batch_size}, expected at least one whole batch; "
                "lower batch_size"
            )
        check_divisible(self.models, self.mining_funcs)

    def trained_part(self) -> nn.Module:
        """What maps images to what the loss looks at, and is trained."""
        trunk: nn.Module = self.models["trunk"]
        return trunk

    def modify_schema(self) -> None:
        """Keep PML from warning of what is meant: no embedder, one optimizer for trunk and classifier."""
        self.schema["models"].important = []
        self.schema["optimizers"].important = ["trunk_optimizer"]

    def train(self, start_epoch: int = 1, num_epochs: int = 1) -> None:
        """Train up to and including epoch ``num_epochs`` (PML's meaning), going on where a loaded state stood."""
        for epoch in range(max(start_epoch, self.epochs_done + 1), num_epochs + 1):
            if self.out_of_budget:
                break
            self.epoch = epoch
            self.set_to_train()
            if not self.batches:
                self.batches = self.order.batches(epoch)
            check_same_batches(self.batches, self.mining_funcs, self.data_device, epoch)
            self.iterations_per_epoch = len(self.batches)
            for iteration in range(self.batches_done, len(self.batches)):
                self.iteration = iteration
                self.forward_and_backward()
                self.step_lr_schedulers(end_of_epoch=False)
                self._account()
                if self.steps_done % self.check_every == 0 or self.batches_done == len(self.batches):
                    self.check_loss()
                self.end_of_iteration_hook(self)
                if self.out_of_budget:
                    break
            self.step_lr_schedulers(end_of_epoch=True)
            self.epochs_done, self.batches_done, self.batches = self.epoch, 0, []
            go_on = self.end_of_epoch_hook(self)
            self.zero_losses()
            if go_on is False:
                break

    @property
    def out_of_budget(self) -> bool:
        """Whether ``max_steps`` is reached."""
        return self.max_steps is not None and self.steps_done >= self.max_steps

    def get_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """This process's images of the step, augmented on the device (b, 3, S, S), and all labels (B,).

        The labels stay on the CPU, where a miner can read them without waiting for a GPU; PML's miners and losses
        move what they need. Only a subset miner's indices ask for them on the device.
        """
        images, labels = self.data_and_label_getter(self.take_batch())
        labels = c_f.process_label(labels, self.label_hierarchy_level, self.label_mapper)  # gives CPU labels
        images = images.to(self.data_device, non_blocking=True)
        if "subset_batch_miner" in self.mining_funcs:
            labels = labels.to(self.data_device)
        images = self.augment(
            images, self.augment_generator, training=True, part_of=(self.part.start, self.batch_images)
        )
        batch: tuple[torch.Tensor, torch.Tensor] = self.maybe_do_batch_mining(images, labels)
        return batch

    def take_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """This process's images of the step as they are stored, uint8 (b, 3, H, W), and all labels (B,)."""
        indices, *following = self.batches[self.iteration : self.iteration + 2]
        return self.prefetch.take(indices, *(following if self.reads_ahead else []))

    def read_batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `take_batch`, of the batch of these indices (B,)."""
        part = distributed.share(len(indices))
        # Pinned, so that the copy to a GPU does not hold up the host.
        images, labels = self.dataset.batch(indices[part], pin=self.data_device.type == "cuda")
        return images, labels if distributed.world_size() == 1 else self.dataset.labels[indices]

    @property
    def batch_images(self) -> int:
        """B, the images of the running step on all processes."""
        return len(self.batches[self.iteration])

    @property
    def part(self) -> slice:
        """Those of the running batch that this process takes through the network."""
        return distributed.share(self.batch_images)

    def autocast(self) -> AbstractContextManager[None]:
        """Autocast of the models' forward pass to the precision asked for."""
        enabled = self.autocast_dtype is not torch.float32
        return torch.autocast(self.data_device.type, dtype=self.autocast_dtype, enabled=enabled)

    def noise(self) -> AbstractContextManager[None]:
        """Random numbers of this process's own within a network, such as those of dropout."""
        return noise_of_rank(self.seed, self.steps_done, self.data_device)

    def get_trunk_output(self, data: torch.Tensor) -> torch.Tensor:
        """What the network makes of this process's images."""
        data = c_f.to_device(data, device=self.data_device, dtype=self.dtype)
        return self.network(data)  # type: ignore[no-any-return]

    def compute_embeddings(self, data: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of all processes' images in float32, whatever the precision of the forward pass."""
        with self.autocast(), self.noise():
            embeddings: torch.Tensor = super().compute_embeddings(data)
        return distributed.gather_rows(embeddings.float(), distributed.shares(self.batch_images))

    def backward(self) -> None:
        """Gradients of the total loss, scaled under float16; those of a loss's own weights alike on all processes."""
        self.scaler.scale(self.losses["total_loss"]).backward()
        for loss in self.loss_funcs.values():
            distributed.average_gradients(loss.parameters())

    def clip_gradients(self) -> None:
        """Clip each optimizer's gradient to ``gradient_clip``, then PML's own clippers."""
        if self.gradient_clip is not None or self.gradient_clippers:
            for optimizer in self._active_optimizers():
                self.scaler.unscale_(optimizer)
        if self.gradient_clip is not None:
            for optimizer in self._active_optimizers():
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
        super().clip_gradients()

    def step_optimizers(self) -> None:
        """One step of every optimizer that is not frozen, and of the averaged weights."""
        for optimizer in self._active_optimizers():
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update(self.models["trunk"])

    def check_loss(self) -> float:
        """Wait for the device and see that no loss since the last ``mean_loss`` was infinite or not a number.

        Gives their sum.

        Raises:
            TrainingError: if one was.
        """
        total = float(distributed.averaged(self.loss_sum))
        if not math.isfinite(total):
            first = self.steps_done - self.loss_count + 1
            raise TrainingError(
                f"the loss became {total} in steps {first} to {self.steps_done}, expected a finite number; the last "
                "good checkpoint is kept. Lower the learning rate, set gradient_clip, or use precision: float32"
            )
        return total

    def mean_loss(self) -> float:
        """The mean total loss since the last call, seen by ``check_loss`` to be finite."""
        mean = self.check_loss() / max(1, self.loss_count)
        self.loss_sum, self.loss_count = torch.zeros_like(self.loss_sum), 0
        return mean

    def best_weights(self) -> nn.Module:
        """The trunk to evaluate and keep: the averaged one where there is one."""
        return self.averaged.module if self.averaged is not None else self.models["trunk"]

    def learning_rate(self) -> float:
        """The trunk's present learning rate."""
        return float(self.optimizers["trunk_optimizer"].param_groups[0]["lr"])

    @property
    def triplet_counters(self) -> dict[str, int]:
        """What was counted of the triplets since the stage began; nothing here."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on from here to the same numbers, on any number of processes.

        Raises:
            TrainingError: if a weight is not finite, so that no bad checkpoint replaces a good one.
        """
        if (name := checkpoint.not_finite([*self.models.items(), *self.loss_funcs.items()])) is not None:
            raise TrainingError(
                f"{name} is not finite after step {self.steps_done}; the last good checkpoint is kept. "
                "Lower the learning rate or set gradient_clip"
            )
        return trainer_state.state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; the trainer must have been built from the same recipe."""
        trainer_state.restore(self, state)

    def _account(self) -> None:
        """Count the step and add up its loss on the device."""
        self.batches_done = self.iteration + 1
        self.steps_done += 1
        self.images_seen += self.batch_images
        self.loss_sum = self.loss_sum + self.losses["total_loss"].detach()
        self.loss_count += 1

    def _active_optimizers(self) -> Iterator[torch.optim.Optimizer]:
        for key, optimizer in self.optimizers.items():
            if key.removesuffix("_optimizer") not in self.freeze_these:
                yield optimizer
