"""Training steps of a recipe as they run, on random images, against the same steps on synthetic data: one batch that is
augmented and on the device already, its labels on the CPU. What lies between the two is the cost of the data.

Target: at least 0.9. tiny_uniform on a GPU, eager and compiled; tiny_uniform_cpu on a CPU; both stages of each. Both
sides are the trainer of `profile_step.py`, the hooks of a run included; an epoch of so many steps is timed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _cases import Case, Sides
from _tables import alone
from profile_step import built, epoch

from dr_plugin.experiments.recipe import load_recipe
from dr_plugin.experiments.trainer import StageTrainer

EPOCHS = 10_000  # that the schedules are made for: more than are ever timed

FULL = {
    "recipe": "tiny_uniform",
    "steps": 100,
    "cpu_recipe": "tiny_uniform_cpu",
    "cpu_steps": 8,
    "overrides": [""],
}
QUICK = {
    "recipe": "tiny_uniform",
    "steps": 2,
    "cpu_recipe": "tiny_uniform_cpu",
    "cpu_steps": 2,
    "overrides": [
        "data.classes=10",
        "data.image_size=32",
        "stages.softmax.batch_size=8",
        "stages.ranking.batch_size=20",
    ],
}


def freeze(trainer: StageTrainer, device: torch.device) -> None:
    """Train one epoch, and give its last batch at every step from then on, with nothing drawn or read."""
    kept: dict[str, Any] = {}

    def keeping(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def keep(*args: Any, **kwargs: Any) -> Any:
            kept[name] = function(*args, **kwargs)
            return kept[name]

        return keep

    parts = ((trainer, "get_batch"), (trainer, "take_batch"), (trainer.order, "batches"))
    for holder, name in parts:
        setattr(holder, name, keeping(name, getattr(holder, name)))
    epoch(trainer, device)
    for holder, name in parts:
        setattr(holder, name, lambda *args, given=kept[name], **kwargs: given)


def as_in_a_run(trainer: StageTrainer, device: torch.device) -> Callable[[], None]:
    """An epoch, with the setting of cuDNN that a run has."""

    def run() -> None:
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            epoch(trainer, device)
        finally:
            torch.backends.cudnn.benchmark = before

    return run


def sides(
    recipe: str, stage: str, overrides: tuple[str, ...], *, B: int, steps: int, device: torch.device
) -> Sides:
    """An epoch of each; an image is the unit."""
    if "compile=true" in overrides:
        torch.compiler.reset()  # the trainers of earlier rows count towards its limit
    more = [*overrides, f"stages.{stage}.batch_size={B}"]
    ours, theirs = (built(recipe, stage, more, steps, device, epochs=EPOCHS) for _ in range(2))
    freeze(theirs, device)
    return Sides(as_in_a_run(ours, device), as_in_a_run(theirs, device), (B * steps, B * steps))


def cases(*, recipe: str, steps: int, cpu_recipe: str, cpu_steps: int, overrides: list[str]) -> list[Case]:
    given = [override for override in overrides if override]
    found = []
    for device, name, count in (("cuda", recipe, steps), ("cpu", cpu_recipe, cpu_steps)):
        for stage in load_recipe(name, given).stages:
            for compiled in (False, True) if device == "cuda" else (False,):
                what = f"{name}, {stage.name} stage, {'compiled' if compiled else 'eager'}"
                options = (*given, f"compile={str(compiled).lower()}")
                found.append(
                    Case(
                        "trainer",
                        what,
                        "the same step, synthetic data on the device",
                        partial(sides, name, stage.name, options),
                        {"B": stage.batch_size, "steps": count},
                        unit="image",
                        on=device,
                    )
                )
    return found


if __name__ == "__main__":
    alone(__doc__, cases, FULL, QUICK)
