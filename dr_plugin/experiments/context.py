"""What all parts of a run share: its recipe, folder, data, device, journal and reporter."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import checkpoint
from .data import RunData, batch_augment
from .evaluate import Embedder
from .journal import Journal, Reporter
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
    journal: Journal

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

    def embedder(self) -> Embedder:
        """Embeds packed images as the recipe's evaluation asks."""
        return Embedder(
            batch_augment(self.recipe),
            self.device,
            self.recipe.precision,
            self.recipe.evaluation.batch_size,
            self.reporter.update,
        )

    def save(self, stage: int, finished: list[dict[str, Any]], state: dict[str, Any]) -> None:
        """Write ``last.pt``: the state of the running stage, the summaries of those before, the journal's position.

        The file before is ``previous.pt`` from then on.
        """
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
