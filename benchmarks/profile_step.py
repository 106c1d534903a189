"""Where the time of a training step goes: by region of the step, and by operator.

    python benchmarks/profile_step.py                               # tiny_uniform_cpu's ranking stage
    python benchmarks/profile_step.py tiny_uniform --stage softmax --device cuda --set compile=false

The stage is built and trained as `dr-run` does it, its hooks included, on random images in place of the recipe's;
nothing is evaluated or saved. One epoch of --steps steps warms up, one is timed as it runs, one is divided among the
regions, and one is seen by torch.profiler. On a GPU the regions' borders wait for the device, so that its time
counts where it belongs; what that costs is the difference of the two times of a step.

"Ours" is what this package does in a step, PyTorch's operators that it calls included: the batch (drawn, read,
augmented), mining, the loss with its gradient, the averaged weights, and the rest of the loop. The network's are its
forward and backward passes and the optimizer, which would be the same in any loop. The loss is read and logged, for
which a GPU is waited for, as often as in an epoch of the whole data set, --images-per-class of each class.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from _harness import machine_line, scratch_folder, table
from torch.profiler import ProfilerActivity, profile, record_function

from dr_plugin.datasets import PackedImages
from dr_plugin.experiments.assemble import initial_trunk
from dr_plugin.experiments.context import Context
from dr_plugin.experiments.data import RunData
from dr_plugin.experiments.environment import pick_device
from dr_plugin.experiments.journal import SilentJournal, SilentReporter
from dr_plugin.experiments.recipe import Recipe, RecipeError, load_recipe
from dr_plugin.experiments.relevance import load_relevance
from dr_plugin.experiments.stage import StageRun
from dr_plugin.experiments.trainer import StageTrainer

OURS, NETWORK = "ours", "the network's"
LOSS_BACKWARD, NETWORK_BACKWARD = "backward of the loss", "backward of the network"
OWNERS = {
    "data": OURS,
    "augment": OURS,
    "forward": NETWORK,
    "mine": OURS,
    "loss": OURS,
    LOSS_BACKWARD: OURS,
    NETWORK_BACKWARD: NETWORK,
    "optimizer": NETWORK,
    "averaged weights": OURS,
    "bookkeeping": OURS,
}
# The trainer's methods, each in the region that its time belongs to; regions within it keep their own.
METHODS = {
    "get_batch": "data",
    "augment": "augment",
    "network": "forward",
    "maybe_mine_embeddings": "mine",
    "calculate_loss": "loss",
    "backward": LOSS_BACKWARD,
    "zero_grad": "optimizer",
    "clip_gradients": "optimizer",
    "step_optimizers": "optimizer",
}
ALL_CLASSES = 200  # of a recipe that names none
IMAGES_PER_CLASS = 500  # of Tiny ImageNet's train split


class Regions:
    """Seconds in each region, without those of the regions within it; each is a name in the profiler's records too."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device, self._open, self._since = device, list[str](), 0.0

    @contextmanager
    def region(self, name: str) -> Iterator[None]:
        """What runs within belongs to the region."""
        self._charge()
        self._open.append(name)
        try:
            with record_function(f"region: {name}"):
                yield
        finally:
            self._charge()
            self._open.pop()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, in the region."""

        def within(*args: Any, **kwargs: Any) -> Any:
            with self.region(name):
                return function(*args, **kwargs)

        return within

    def rename(self, old: str, new: str) -> None:
        """From here on the innermost region counts as another one, if it is the old one."""
        if self._open and self._open[-1] == old:
            self._charge()
            self._open[-1] = new

    def _charge(self) -> None:
        """The time since the last border belongs to the region that was open."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


class RandomImages:
    """Images without content, all of one size, in classes of equal size."""

    def __init__(self, count: int, classes: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
        self.labels = [index % classes for index in range(count)]
        self.class_names = self.class_ids = [f"class {label}" for label in range(classes)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], self.labels[index]


def class_count(recipe: Recipe) -> int:
    """Classes that the recipe trains on, as far as it says."""
    kept = recipe.data.classes
    return ALL_CLASSES if kept is None else kept if isinstance(kept, int) else len(kept)


@cache
def random_pack(count: int, classes: int, size: int) -> PackedImages:
    return PackedImages.build(RandomImages(count, classes, size), scratch_folder())


def random_data(recipe: Recipe, count: int) -> RunData:
    """Random images in place of the recipe's, of as many classes, with its relevance, where it has one."""
    size = recipe.data.packed_size or recipe.data.image_size
    packed = random_pack(count, class_count(recipe), size)
    relevance = load_relevance(recipe, packed)
    nothing = torch.empty(0, dtype=torch.long)
    return RunData(packed, packed, torch.arange(count), nothing, packed.class_names, relevance)


def built(
    source: str,
    stage: str,
    overrides: Sequence[str],
    steps: int,
    device: torch.device,
    *,
    epochs: int = 4,
    images_per_class: int = IMAGES_PER_CLASS,
) -> StageTrainer:
    """The stage's trainer with the hooks of a run, one epoch of which has so many steps; it may train so many epochs.

    It logs as often as in an epoch of so many images a class, less those that the recipe keeps for its selection.
    """
    names = [part.name for part in load_recipe(source, overrides).stages]
    if stage not in names:
        raise RecipeError(f"--stage: got {stage}, expected one of {', '.join(names)}")
    more = [f"data.cache={scratch_folder()}", f"stages.{stage}.epochs={epochs}"]
    more.append("checkpoint.every_steps=null")
    recipe, index = load_recipe(source, [*overrides, *more]), names.index(stage)
    data = random_data(recipe, steps * recipe.stages[index].batch_size)
    context = Context(recipe, scratch_folder(), data, device, SilentReporter(), SilentJournal())
    run = StageRun(context, index, initial_trunk(recipe), [])
    trainer, whole = run.trainer, class_count(recipe) * (images_per_class - recipe.data.selection)
    run.log_every = max(1, whole // int(trainer.batch_size) // 20)  # a short epoch's would be every step
    trainer.end_of_epoch_hook = lambda trainer: None  # no evaluation, no checkpoint
    return trainer


def divide(trainer: StageTrainer, regions: Regions) -> None:
    """Put the parts of the trainer's step into regions; what is left over is the loop's bookkeeping."""
    for name, region in METHODS.items():
        setattr(trainer, name, regions.around(region, getattr(trainer, name)))
    if getattr(trainer, "mix", None) is not None:
        trainer.mix = regions.around("augment", trainer.mix)
    trainer.order.batches = regions.around("data", trainer.order.batches)
    if trainer.averaged is not None:  # updated within step_optimizers
        trainer.averaged.update = regions.around("averaged weights", trainer.averaged.update)
    network = trainer.network

    def hooked(images: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = network(images)
        if output.requires_grad:  # its gradient comes when the loss's own backward pass is over
            output.register_hook(lambda gradient: regions.rename(LOSS_BACKWARD, NETWORK_BACKWARD))
        return output

    trainer.network = hooked


def epoch(trainer: StageTrainer, device: torch.device) -> float:
    """Seconds that the next epoch takes."""
    start = time.perf_counter()
    trainer.train(num_epochs=trainer.epochs_done + 1)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def region_rows(regions: Regions, steps: int) -> list[list[str]]:
    """The largest first, then the sums of what is ours and what the network's."""
    whole = sum(regions.seconds.values())

    def row(name: str, owner: str, seconds: float) -> list[str]:
        return [name, owner, f"{seconds / steps * 1e3:.3f}", f"{seconds / whole:.1%}"]

    found = sorted(OWNERS, key=lambda name: -regions.seconds[name])
    rows = [row(name, OWNERS[name], regions.seconds[name]) for name in found]
    for owner in (OURS, NETWORK):
        rows.append(row("all", owner, sum(regions.seconds[name] for name in OWNERS if OWNERS[name] == owner)))
    return rows


def operator_rows(records: Any, steps: int, count: int, on_gpu: bool) -> list[list[str]]:
    """The operators and kernels with the most time of their own, the device's where it is a GPU."""

    def own(record: Any) -> float:
        return float(record.self_device_time_total if on_gpu else record.self_cpu_time_total)

    operators = [record for record in records if not record.key.startswith(("region: ", "ProfilerStep"))]
    return [
        [
            record.key.replace("|", "/")[:80],
            f"{record.self_cpu_time_total / steps / 1e3:.2f}",
            f"{record.self_device_time_total / steps / 1e3:.2f}" if on_gpu else "-",
            f"{record.count / steps:.1f}",
        ]
        for record in sorted(operators, key=own, reverse=True)[:count]
    ]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", default="tiny_uniform_cpu", help="default: %(default)s")
    parser.add_argument("--stage", default="ranking", help="default: %(default)s")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=20, help="of an epoch (default: %(default)s)")
    parser.add_argument("--images-per-class", type=int, default=IMAGES_PER_CLASS, help="default: %(default)s")
    parser.add_argument("--operators", type=int, default=15, help="how many to list (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--trace", type=Path, help="write the profiler's records for a trace viewer")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    device, steps = pick_device(options.device), options.steps
    torch.backends.cudnn.benchmark = True  # as in a run
    stage = (options.recipe, options.stage, options.overrides)
    trainer = built(*stage, steps, device, images_per_class=options.images_per_class)
    epoch(trainer, device)
    plain = epoch(trainer, device)
    regions = Regions(device)
    divide(trainer, regions)
    with regions.region("bookkeeping"):
        divided = epoch(trainer, device)
    rows = region_rows(regions, steps)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler, regions.region("bookkeeping"):
        epoch(trainer, device)
    if options.trace is not None:
        profiler.export_chrome_trace(str(options.trace))

    batch = int(trainer.batch_size)
    print(machine_line())
    print(
        f"\n{options.recipe}, stage {options.stage}, random images, batches of {batch} on {device}: ", end=""
    )
    print(f"{plain / steps * 1e3:.1f} ms a step, {batch * steps / plain:,.0f} images/s; ", end="")
    print(f"{divided / steps * 1e3:.1f} ms with borders between the regions.\n")
    print(table(rows, ["region", "whose", "ms a step", "share"]))
    parts = rows[: len(OWNERS)]
    for name, of in (("all", parts), ("ours", [row for row in parts if row[1] == OURS])):
        print(f"\nThe three largest of {name}: " + ", ".join(f"{row[0]} ({row[3]})" for row in of[:3]) + ".")
    operators = operator_rows(profiler.key_averages(), steps, options.operators, device.type == "cuda")
    print()
    header = ["operator", "own ms a step, CPU", "own ms a step, GPU", "calls a step"]
    print(table(operators, header))


if __name__ == "__main__":
    main()
