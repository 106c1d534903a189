"""What all parts of a run share: its recipe, folder, data, device, journal and reporter."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dr_plugin import distributed

from . import checkpoint
from .data import RunData, batch_augment
from .evaluate import Embedder
from .journal import Journal, Reporter, SilentJournal
from .recipe import Recipe

LAST, PREVIOUS, PREVIOUS_BEST = "last.pt", "previous.pt", "previous_best.pt"  # in checkpoint/


@dataclass
class Context:
    """What all stages of a run share."""

    recipe: Recipe
    folder: Path
    data: RunData
    device: torch.device
    reporter: Reporter
    journal: Journal | SilentJournal

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / "checkpoint" / LAST

    @property
    def previous(self) -> Path:
        """The one before."""
        return self.folder / "checkpoint" / PREVIOUS

    @property
    def best(self) -> Path:
        """The best trunk by selection precision, of the present stage."""
        return self.folder / "checkpoint" / "best.pt"

    @property
    def previous_best(self) -> Path:
        """The one before, which a run needs that goes on from the checkpoint before the last."""
        return self.folder / "checkpoint" / PREVIOUS_BEST

    def embedder(self, *, divided: bool = False) -> Embedder:
        """Embeds packed images as the recipe's evaluation asks, ``divided`` among all processes or on this one."""
        return Embedder(
            batch_augment(self.recipe),
            self.device,
            self.recipe.precision,
            self.recipe.evaluation.batch_size,
            self.reporter.update,
            divided,
        )

    def save_best(self, weights: dict[str, Any], best: dict[str, Any] | None) -> None:
        """Write ``best.pt``: the weights to keep and what they reached, None where nothing was evaluated.

        The file before is ``previous_best.pt`` from then on.
        """
        if distributed.is_first():
            checkpoint.save(self.best, {"models": weights, "best": best}, keep=self.previous_best)

    def load_best(self) -> dict[str, Any]:
        """The weights in ``best.pt``, as rank 0 reads them."""
        weights: dict[str, Any] = distributed.done_by_first(lambda: checkpoint.load(self.best)["models"])
        return weights

    def save(self, stage: int, finished: list[dict[str, Any]], state: dict[str, Any]) -> None:
        """Write ``last.pt``: the state of the running stage, the summaries of those before, the journal's position.

        The file before is ``previous.pt`` from then on. Rank 0 writes it, for any number of processes to go on from.
        """
        if not distributed.is_first():
            return
        checkpoint.save(
            self.last,
            {
                **state,
                "stage": stage,
                "finished": finished,
                "journal_size": self.journal.size(),
                "seconds": self.journal.seconds,
                "data": data_signature(self.data),
            },
            keep=self.previous,
        )


def data_signature(data: RunData) -> list[int]:
    """Tells whether a resumed run sees the data it started with: how many images of which labels, in what order."""
    parts = (data.train.labels, data.val.labels, data.fit, data.selection)
    return [number for part in parts for number in (len(part), zlib.crc32(part.numpy().tobytes()))]
