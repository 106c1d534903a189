"""One stage of a recipe: its trainer, and the hooks that report, evaluate and save while it trains."""

import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from dr_plugin import distributed
from dr_plugin.atomic import give_name
from dr_plugin.trunks import ConvNetEmbedding

from . import checkpoint
from .assemble import build_trainer, planned_steps, stage_seed
from .context import Context
from .evaluate import rank
from .interrupts import Interrupts
from .memory import PeakMemory
from .recipe import SoftmaxStage
from .trainer import StageTrainer


class StageRun:
    """Trains one stage; afterwards the trunk holds the weights that the stage hands on.

    These are the best by precision on the selection images, or the last ones where nothing was evaluated.
    """

    def __init__(
        self, context: Context, index: int, trunk: nn.Module, finished: list[dict[str, Any]]
    ) -> None:
        self.context, self.index, self.trunk = context, index, trunk
        self.stage = context.recipe.stages[index]
        self.figure = f"precision_at_{context.recipe.evaluation.k}"
        self.finished = finished  # the summaries of the stages before
        self.best: dict[str, Any] | None = None
        self.train_seconds, self._mark = 0.0, 0.0
        self.memory = PeakMemory(context.device)
        self.interrupts = Interrupts()
        checkpoint.seed_everything(stage_seed(context.recipe, index))
        self.trainer = build_trainer(context, index, trunk)
        self.trainer.end_of_iteration_hook, self.trainer.end_of_epoch_hook = (
            self._after_step,
            self._after_epoch,
        )
        self.total_steps = planned_steps(self.trainer, self.stage)
        # On an accelerator a reading of the loss waits for the device.
        self.log_every = max(self.trainer.check_every, self.trainer.steps_per_epoch // 20)

    def run(self, state: dict[str, Any] | None = None) -> dict[str, Any]:
        """Train to the end, from ``state`` where there is one; gives the stage's summary."""
        if state is not None:
            self.trainer.load_state_dict(state)
            self.best, self.train_seconds = state["best"], state["train_seconds"]
            self.memory.mib = state.get("peak_memory_mib")  # an earlier version wrote none
            distributed.done_by_first(self._find_best)
        gc.collect()  # what an earlier stage or run left in reference cycles would count as this one's memory
        self.memory.start()
        self._mark = time.perf_counter()
        with self.interrupts:
            self.trainer.train(num_epochs=self.stage.epochs)
        return self._finish()

    # -- hooks -----------------------------------------------------------------------------------------------------

    def _after_step(self, trainer: StageTrainer) -> None:
        recipe = self.context.recipe
        if trainer.steps_done % self.log_every == 0 or trainer.batches_done == len(trainer.batches):
            self._log(trainer)
        every = recipe.checkpoint.every_steps
        in_the_middle = trainer.batches_done < len(trainer.batches) and not trainer.out_of_budget
        if every is not None and trainer.steps_done % every == 0 and in_the_middle:
            with self._clock_stopped():
                self._save()
        # The budget's last step is saved when evaluated.
        if self._interrupted(trainer) and not trainer.out_of_budget:
            self.context.reporter.note(f"interrupted after step {trainer.steps_done}: writing the checkpoint")
            with self._clock_stopped():
                self._save()
            raise KeyboardInterrupt

    def _after_epoch(self, trainer: StageTrainer) -> None:
        every = self.stage.evaluate_every
        last = trainer.epochs_done == self.stage.epochs or trainer.out_of_budget
        with self._clock_stopped(), self.interrupts.at_once():
            due = every and len(self.context.data.selection) and (last or trainer.epochs_done % every == 0)
            better = due and self._evaluate(trainer)
            self._save()
            if better:  # only now: best.pt is never ahead of last.pt, which can make it good after a kill
                self._save_best()

    def _log(self, trainer: StageTrainer) -> None:
        loss = trainer.mean_loss()
        self._read_clock()
        speed = trainer.images_seen / max(self.train_seconds, 1e-9)
        record = {
            "event": "train",
            **self._position(trainer),
            "loss": loss,
            "learning_rate": trainer.learning_rate(),
            "images_per_s": round(speed, 1),
        }
        if counters := trainer.triplet_counters:
            record["triplets"] = counters
        self.context.journal.write(record)
        self.context.reporter.update(
            self.stage.name,
            trainer.steps_done,
            self.total_steps,
            loss=loss,
            images_per_s=speed,
            epoch=trainer.epoch,
        )

    def _evaluate(self, trainer: StageTrainer) -> bool:
        """Rank the selection; whether this is the best so far."""
        data, embed = self.context.data, self.context.embedder(divided=True)
        embeddings = embed(self._embedding_model(), data.train, "embed selection and gallery")
        query, gallery = (embeddings[part.to(embeddings.device)] for part in (data.selection, data.fit))
        labels = data.train.labels
        figures = distributed.done_by_first(
            lambda: (
                rank(
                    query, labels[data.selection], gallery, labels[data.fit], self.context.recipe.evaluation
                ).figures
            )
        )
        self.context.journal.write({"event": "evaluate", **self._position(trainer), **figures})
        value = figures[self.figure]
        self.context.reporter.note(
            f"{self.stage.name} epoch {trainer.epochs_done}: selection {self.figure} {value:.4f}"
        )
        if self.best is not None and value <= self.best[self.figure]:
            return False
        self.best = {"stage": self.stage.name, "epoch": trainer.epochs_done, **figures}
        return True

    # -- saving ----------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        state = {**self.trainer.state_dict(), "best": self.best, "train_seconds": self.train_seconds}
        state["peak_memory_mib"] = self.memory.mib
        self.context.save(self.index, self.finished, state)

    def _save_best(self) -> None:
        self.context.save_best(self._weights(), self.best)

    def _find_best(self) -> None:
        """See that best.pt is the one that the checkpoint speaks of.

        It is the one before where the run was killed between the two, and a later one where the run goes on from the
        checkpoint before the last.

        Raises:
            ValueError: if there is none.
        """
        best, trainer = self.best, self.trainer
        if best is None or _holds(self.context.best, best):
            return
        if best["epoch"] == trainer.epochs_done and not trainer.batches_done:
            self._save_best()  # what was evaluated is what was just loaded
        elif _holds(self.context.previous_best, best):
            give_name(self.context.previous_best, self.context.best)
        else:
            raise ValueError(
                f"{self.context.best}: missing, damaged or of another run, expected the weights of stage "
                f"{best['stage']}, epoch {best['epoch']}; put them back, or start anew in another folder"
            )

    def _finish(self) -> dict[str, Any]:
        if self.best is None:
            self._save_best()
        self.trunk.load_state_dict(self.context.load_best()["trunk"])
        summary = {
            "name": self.stage.name,
            "epochs": self.trainer.epochs_done,
            "steps": self.trainer.steps_done,
            "images_seen": self.trainer.images_seen,
            "wall_time_s": round(self.train_seconds, 1),
            "images_per_s": round(self.trainer.images_seen / max(self.train_seconds, 1e-9), 1),
            "peak_memory_mib": self.memory.mib,
            "selection": self.best,
        }
        if counters := self.trainer.triplet_counters:
            summary["triplets"] = counters
        self.finished.append(summary)
        self.context.save(self.index + 1, self.finished, {"models": {"trunk": self.trunk.state_dict()}})
        return summary

    def _weights(self) -> dict[str, Any]:
        """The trunk's weights to keep, and those of the loss where it has some: a unit is of use after training."""
        loss = self.trainer.loss_funcs.get("metric_loss")
        weights = {"trunk": self.trainer.best_weights().state_dict()}
        if loss is not None and any(True for _ in loss.parameters()):
            weights["loss"] = loss.state_dict()
        return weights

    def _interrupted(self, trainer: StageTrainer) -> bool:
        """Whether the run was asked to end; several processes, which hear of it one by one, agree on a step."""
        if distributed.world_size() > 1 and trainer.steps_done % trainer.check_every:
            return False
        return distributed.any_of(self.interrupts.asked)

    # -- details ---------------------------------------------------------------------------------------------------

    def _position(self, trainer: StageTrainer) -> dict[str, Any]:
        return {
            "stage": self.stage.name,
            "epoch": trainer.epoch,
            "step": trainer.steps_done,
            "images_seen": trainer.images_seen,
        }

    def _read_clock(self) -> None:
        """Bring ``train_seconds`` up to date."""
        now = time.perf_counter()
        self.train_seconds += now - self._mark
        self._mark = now

    @contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        """Evaluating and saving are no training: neither their time nor their memory counts."""
        self._read_clock()
        self.memory.stop()
        yield
        self.memory.start()
        self._mark = time.perf_counter()

    def _embedding_model(self) -> nn.Module:
        model = self.trainer.best_weights()
        if isinstance(self.stage, SoftmaxStage) and self.stage.features == "convnet":
            return ConvNetEmbedding(model.get_submodule("convnet"))
        return model


def _holds(path: Path, best: dict[str, Any]) -> bool:
    """Whether a file holds the weights of this evaluation."""
    try:
        found = checkpoint.load(path)["best"]
    except (ValueError, KeyError):
        return False
    return json.dumps(found, sort_keys=True) == json.dumps(best, sort_keys=True)  # where NaN is NaN
