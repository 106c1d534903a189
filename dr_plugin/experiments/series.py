"""Many runs of one folder, one after another or on several devices, from which it can go on where it was cut off.

``folder/runs/<name>`` is an ordinary run's folder. Stages that all runs of a seed share are trained once, in
``folder/shared/seed<k>``; a run starts as if it had trained them itself and been resumed after them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .claim import claimed
from .context import LAST, PREVIOUS, PREVIOUS_BEST
from .data import RunData, check_data, load_data
from .journal import Reporter
from .recipe import Recipe, RecipeError, load_recipe
from .run import is_finished
from .series_run import PlannedRun, train
from .trainer import TrainingError
from .workers import Worker, first_done, stop_all


class Series:
    """Runs what is not finished of ``runs``, in order; a run that fails does not keep the others from running.

    Args:
        folder: The series' folder, which gets a ``recipe.yaml`` of its own.
        runs: All runs of the series.
        devices: One device: one run after another, in this process. Several: so many at once, each in a process of
            its own; a device may be named twice.
        reporter: Shows progress.
        what: What the series is called in messages.
        each: What one of its runs is called there.
    """

    def __init__(
        self,
        folder: Path,
        runs: Sequence[PlannedRun],
        devices: Sequence[str],
        reporter: Reporter,
        *,
        what: str,
        each: str,
    ) -> None:
        self.folder, self.runs, self.devices, self.what, self.each = folder, runs, devices, what, each
        self.reporter = reporter
        self.failures: dict[str, str] = {}  # by the names of the runs' folders

    @contextmanager
    def claimed(self, resume: bool) -> Iterator[None]:
        """The folder for this process alone, seen to be free or, to resume, of this series.

        Raises:
            RecipeError: if it is not.
        """
        with claimed(self.folder, resume, what=self.what, note=self.reporter.note):
            for run in self.runs if resume else ():
                self._check_recipe(run)
            yield

    def check_data(self, also: Callable[[PlannedRun, RunData], Iterable[str]] = lambda run, data: ()) -> None:
        """See that each waiting run fits its data, which are loaded again only where a run changes them.

        Args:
            also: Gives further lines of what is wrong with a run and its data.
        Raises:
            RecipeError: with every fault, one a line.
        """
        lines: list[str] = []
        known: Recipe | None = None
        data: RunData | None = None
        waiting = {run.kind: run for run in self.runs if not is_finished(run.folder)}
        for run in waiting.values():
            try:
                if data is not None and known is not None and _same_data(known, run.recipe):
                    check_data(run.recipe, data)
                else:
                    data = load_data(run.recipe, self.reporter.update)
                    known = run.recipe
                lines += also(run, data)
            except RecipeError as error:
                lines += error.lines
        if lines:
            raise RecipeError(*dict.fromkeys(lines))

    def run(self, after_each: Callable[[], object]) -> None:
        """Train what is not finished; ``after_each`` is called when a run was finished, or failed.

        Raises:
            RecipeError: if folder, device or data do not fit.
        """
        for run in self.runs:
            _tidy(run)  # an earlier call may have been cut off before
        waiting = self._jobs()
        if len(self.devices) > 1:
            self._on_devices(waiting, after_each)
            return
        while waiting:
            job = waiting.pop(0)
            self.reporter.note(job.text)
            failure = train(job.run, job.shared, self.devices[0], self.reporter)
            self._settle(job, failure, waiting, after_each)

    def check_failures(self, report: Path) -> None:
        """Say at the end which runs failed, if any did.

        Raises:
            TrainingError: if one did.
        """
        if self.failures:
            failed = "; ".join(f"{name}: {text}" for name, text in self.failures.items())
            counts = f"{len(self.failures)} of {len(self.runs)} runs failed"
            raise TrainingError(f"{counts}, the others are in {report}; {failed}")

    def _jobs(self) -> "list[_Job]":
        """What is to be trained, shared stages before the first run that needs them."""
        jobs: list[_Job] = []
        sources: set[Path] = set()
        for number, run in enumerate(self.runs, start=1):
            if is_finished(run.folder):
                continue
            if not run.is_begun and not is_finished(run.source) and run.source not in sources and run.shared:
                sources.add(run.source)
                jobs.append(_Job(run, shared=True, text=f"shared stages, seed {run.recipe.seed}"))
            jobs.append(_Job(run, shared=False, text=f"{self.each} {number}/{len(self.runs)}: {run.label}"))
        return jobs

    def _on_devices(self, waiting: "list[_Job]", after_each: Callable[[], object]) -> None:
        """As many jobs at once as there are devices; none of them outlives this call."""
        free, working = list(self.devices), dict[Worker, _Job]()
        try:
            while waiting or working:
                job = next((job for job in waiting if job.is_ready), None) if free else None
                if job is None:
                    worker = first_done(working)
                    free.append(worker.device)
                    self._settle(working.pop(worker), worker.result(), waiting, after_each)
                else:
                    waiting.remove(job)
                    worker = Worker(train, job.run, job.shared, device=free.pop(0), of=self.devices)
                    working[worker] = job  # first: an interrupt right after the start has to find it
                    worker.start()
                    self.reporter.note(f"{job.text} (on {worker.device})")
        finally:
            stop_all(working)

    def _settle(
        self, job: "_Job", failure: str | None, waiting: "list[_Job]", after_each: Callable[[], object]
    ) -> None:
        """Note how a job ended; runs that wait for stages which could not be trained wait no longer."""
        ended = [job]
        if job.shared:
            ended = [] if failure is None else [one for one in waiting if one.needs(job)]
            waiting[:] = [one for one in waiting if one not in ended]
        for run in (one.run for one in ended):
            if failure is not None:
                text = f"{job.text}: {failure}" if job.shared else failure
                self.failures[run.folder.name] = text
                self.reporter.note(f"{run.folder.name} failed: {text}")
            after_each()
            _tidy(run)

    def _check_recipe(self, run: PlannedRun) -> None:
        """See that a run that was begun is of the recipe that the series has for it."""
        file = run.folder / "recipe.yaml"
        if not file.exists() or file.read_text(encoding="utf-8") == run.recipe.to_yaml():
            return
        if load_recipe(file) != run.recipe:  # the text may be of an earlier version, with fewer defaults
            raise RecipeError(
                f"--resume: {run.folder} was made by another recipe than the {self.what}'s; start anew in another "
                "folder"
            )


@dataclass(frozen=True)
class _Job:
    """A run, or the stages that it shares with others."""

    run: PlannedRun
    shared: bool
    text: str

    def needs(self, other: "_Job") -> bool:
        """Whether it cannot begin without the other's stages."""
        return not self.shared and not self.run.is_begun and self.run.source == other.run.source

    @property
    def is_ready(self) -> bool:
        """Whether nothing has to be trained before it."""
        return self.shared or self.run.is_begun or self.run.shared is None or is_finished(self.run.source)


def _tidy(run: PlannedRun) -> None:
    """A finished run needs no checkpoint to go on from; best.pt holds the same weights."""
    if is_finished(run.folder):
        for name in (LAST, PREVIOUS, PREVIOUS_BEST):
            (run.folder / "checkpoint" / name).unlink(missing_ok=True)


def _same_data(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes differ in nothing that data are made from."""
    rest = {"name", "stages", "evaluation", "report", "checkpoint", "limits", "trunk"}
    return one.model_dump(exclude=rest) == other.model_dump(exclude=rest)
