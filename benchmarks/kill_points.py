"""SIGKILL at many points of a run, each followed by a resume to the same bits: a table by phase.

    python benchmarks/kill_points.py --points 200

One process imports everything and trains nothing; each run is a fork of it, which counts its events (a step, a batch
that is prepared, a search for neighbours, an image that is decoded, every rename, link, removal and flush to disk,
every line of the journal and write of a checkpoint, each before and after) and kills itself at the one that it is told.
Another fork goes on, as a person would. Then metrics.json and metrics.jsonl (but for times), best.pt (every byte), the
trunk in last.pt and the files that are there have to be those of a run that nothing interrupted.

A fork is sound only of a process with one thread: that is seen to before the first.
"""

import argparse
import gc
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: no pool of threads is ever started
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import numpy as np
import torch
from _harness import machine_line, table
from PIL import Image

from dr_plugin import atomic
from dr_plugin.datasets import packing
from dr_plugin.experiments import (
    checkpoint,
    conclude,
    evaluate,
    journal,
    report,
    report_figures,
    run,
    stage,
)
from dr_plugin.experiments.recipe import load_recipe
from dr_plugin.experiments.trainer import StageTrainer

PHASES = ("packing", "training", "checkpoint", "evaluation", "report")
RECIPE = """\
seed: 4
data:
  dataset: {{type: ClassFolders, root: {root}}}
  selection: 2
  image_size: 8
  cache: {cache}
trunk:
  type: DeepRankingTrunk
  convnet: {{type: SmallConvNet, channels: [8]}}
  embedding_size: 8
stages:
  - name: softmax
    epochs: 1
    batch_size: 8
    optimizer: {{type: SGD, lr: 0.1, momentum: 0.9}}
  - name: ranking
    epochs: 2
    batch_size: 8
    sampler: {{type: MPerClassSampler, m: 2}}
    miner: {{type: UniformTripletMiner, triplets_per_query: 4}}
    loss: {{type: DeepRankingLoss}}
    optimizer: {{type: SGD, lr: 0.05, momentum: 0.9}}
evaluation: {{k: 3}}
report: {{queries: 0}}
checkpoint: {{every_steps: 2}}
"""


class Events:
    """Counts what happens in this process, by phase, and kills it at the event of this number; None: never."""

    def __init__(self, at: int | None) -> None:
        self.at, self.seen, self.phases = at, list[str](), [PHASES[0]]

    def happen(self) -> None:
        """One more."""
        if len(self.seen) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(self.phases[-1])

    def watch(self, owner: Any, name: str, phase: str | None = None, *, counts: bool = True) -> None:
        """Make each call of a function two events, before and after it, in a phase where one is given."""
        call = getattr(owner, name)

        def watched(*arguments: Any, **settings: Any) -> Any:
            if phase is not None:
                self.phases.append(phase)
            try:
                if counts:
                    self.happen()
                result = call(*arguments, **settings)
                if counts:
                    self.happen()
                return result
            finally:
                if phase is not None:
                    self.phases.pop()

        setattr(owner, name, watched)

    def watch_all(self) -> None:
        """Every place of a run at which it may be killed."""
        for module, name, phase in (
            (run, "load_data", "packing"),
            (stage.StageRun, "run", "training"),
            (stage.StageRun, "_evaluate", "evaluation"),
            (run, "conclude", "evaluation"),
            (checkpoint, "save", "checkpoint"),
            (conclude, "write_report", "report"),
        ):
            self.watch(module, name, phase, counts=False)
        for owner, name in (
            (atomic.os, "replace"),
            (atomic.os, "link"),
            (atomic.os, "fsync"),
            (report.Path, "rename"),
            (report.Path, "unlink"),
            (journal.Journal, "_append"),
            (packing.Source, "decode"),
            (StageTrainer, "forward_and_backward"),
            (evaluate.BatchAugment, "__call__"),
            (evaluate, "nearest"),
            (checkpoint._Watched, "write"),
        ):
            self.watch(owner, name)


def write_images(root: Path) -> None:
    """Four classes of ten small images, each of a colour under noise."""
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.normal(60 + 45 * (number % 4), 30, (8, 8, 3)).clip(0, 255).astype(np.uint8)
        path = root / f"class{number % 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def forked(action: Callable[[], None], log: Path) -> int:
    """The status of a fork of this process that does this: 0, a signal's number below 0, or 1 and a log."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException:
            log.write_text(traceback.format_exc())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def work(folder: Path, root: Path, events: Events) -> None:
    """Begin the run in this folder, or go on with it."""
    recipe_path = folder / "small.yaml"
    recipe_path.write_text(RECIPE.format(root=root, cache=folder / "cache"))
    events.watch_all()
    report_figures.to_png = lambda figure: b"a picture"  # drawing takes long, and writes nothing
    resume = (folder / "run" / "recipe.yaml").exists()
    run.run_experiment(load_recipe(recipe_path), folder / "run", device="cpu", resume=resume)


def whole_run(folder: Path, root: Path) -> list[str]:
    """An uninterrupted run; gives the phase of each of its events, and imports here what it has imported."""
    folder.mkdir()

    def action() -> None:
        events = Events(None)
        work(folder, root, events)
        (folder / "events.json").write_text(json.dumps([events.seen, sorted(sys.modules)]))

    if forked(action, folder / "log.txt") != 0:
        raise RuntimeError((folder / "log.txt").read_text())
    seen, modules = json.loads((folder / "events.json").read_text())
    for name in modules:
        with suppress(ImportError):  # some are made, not imported
            importlib.import_module(name)
    return list(seen)


def outcome(folder: Path) -> dict[str, Any]:
    """All that two runs have to have in common."""

    def without_times(record: Any) -> Any:
        if isinstance(record, dict):
            times = {"time_s", "wall_time_s", "images_per_s", "peak_memory_mib"}
            return {key: without_times(value) for key, value in record.items() if key not in times}
        return [without_times(one) for one in record] if isinstance(record, list) else record

    run_folder = folder / "run"
    records = (run_folder / "metrics.jsonl").read_text().splitlines()
    last = checkpoint.load(run_folder / "checkpoint" / "last.pt")["models"]["trunk"]
    return {
        "metrics.json": without_times(json.loads((run_folder / "metrics.json").read_text())),
        "metrics.jsonl": [without_times(json.loads(record)) for record in records],
        "best.pt": (run_folder / "checkpoint" / "best.pt").read_bytes(),
        "last.pt": {name: value.numpy().tobytes() for name, value in last.items()},
        "files": sorted(str(path.relative_to(run_folder)) for path in run_folder.rglob("*")),
        "cache": sorted(path.name for path in (folder / "cache").rglob("*")),
    }


def killed_and_resumed(folder: Path, root: Path, at: int, wanted: dict[str, Any]) -> dict[str, Any]:
    """What became of one run."""
    folder.mkdir()
    killed = forked(lambda: work(folder, root, Events(at)), folder / "log.txt") == -signal.SIGKILL
    begun = (folder / "run" / "recipe.yaml").exists()
    status = forked(lambda: work(folder, root, Events(None)), folder / "log.txt")
    different = ["resume"]
    if status == 0:
        found = outcome(folder)
        different = [name for name in wanted if found[name] != wanted[name]]
    problem = (folder / "log.txt").read_text() if status != 0 and (folder / "log.txt").exists() else ""
    return {"at": at, "killed": killed, "begun": begun, "different": different, "problem": problem}


def chosen(phases: list[str], points: int, seed: int) -> list[int]:
    """Numbers of events, as many of each phase as there are, spread at random; each at most once."""
    draw = random.Random(seed)
    by_phase = {phase: [at for at, one in enumerate(phases) if one == phase] for phase in PHASES}
    for events in by_phase.values():
        draw.shuffle(events)
    found: list[int] = []
    while len(found) < points and any(by_phase.values()):
        found += [events.pop() for events in by_phase.values() if events]
    return found[:points]


def threads() -> int:
    """How many this process has; 1 where the system does not tell."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=200, help="how many kills")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of points")
    parser.add_argument("--json", type=Path, help="write what became of each point there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images")
        phases = whole_run(folder / "whole", folder / "images")
        wanted = outcome(folder / "whole")
        gc.freeze()  # what was imported is nothing for a fork to look through
        if threads() != 1:
            sys.exit(f"got {threads()} threads, expected one: a fork of several is not sound")
        results = []
        for at in chosen(phases, arguments.points, arguments.seed):
            place = folder / str(at)
            result = killed_and_resumed(place, folder / "images", at, wanted)
            results.append({"phase": phases[at], **result})
            shutil.rmtree(place)
        still_one = threads() == 1
        gc.unfreeze()
    seconds = time.perf_counter() - start
    if arguments.json:
        report_of = {
            "events": Counter(phases),
            "one_thread": still_one,
            "points": results,
            "seconds": seconds,
        }
        arguments.json.write_text(json.dumps(report_of))
    rows = []
    for phase in PHASES:
        some = [result for result in results if result["phase"] == phase]
        same = sum(not result["different"] for result in some)
        rows.append([phase, phases.count(phase), len(some), sum(result["killed"] for result in some), same])
    print(machine_line())
    print(table(rows, ["phase", "events of the run", "points", "killed", "resumed to the same bits"]))
    print(f"{len(results)} points in {seconds:.0f} s")
    for result in results:
        if result["different"] or not result["killed"]:
            print(f"event {result['at']} ({result['phase']}): {result['different']}\n{result['problem']}")
    sys.exit(any(result["different"] or not result["killed"] for result in results))


if __name__ == "__main__":
    main()
