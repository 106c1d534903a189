"""Comparisons: what is measured against what a user would pick instead, and the row that comes of it.

A script offers ``cases(**sizes) -> list[Case]`` with its usual sizes in ``FULL`` and tiny ones in ``QUICK``; it runs
alone (`_tables.alone`), and ``suite.py`` runs the cases of all scripts.
"""

import ctypes
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any, NamedTuple, Self

import torch
from _harness import median_ratio, paired, peak_memory, quartiles

Function = Callable[[], object]
Sizes = Mapping[str, int]

_LEAST = 3  # repeats: of fewer, quartiles say nothing
_SAMPLE = (
    2e-3  # seconds: a shorter call is repeated within a sample, so that the clock and a wait weigh little
)
_MMAP_THRESHOLD = -3  # of glibc's mallopt


class Sides(NamedTuple):
    """Both sides of a comparison, made ready; and how many units a call of each gives."""

    ours: Function
    theirs: Function
    amounts: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Case:
    """One comparison, not yet made ready.

    Args:
        group: Which part of the suite it belongs to.
        what: What of ours is measured.
        against: What a user would pick instead.
        make: Called as make(device=device, **sizes); what it does is not timed. A module's own function (or a partial
            of one) where `peak` is asked for: another process calls it too.
        sizes: Of the problem, as the table shows them.
        unit: What the seconds are of: a call, or one of the `Sides.amounts` that it gives.
        peak: Measure the peak memory of both sides too.
        along: The size that grows from case to case, where the case is one point of a curve.
        threads: Of PyTorch, where both sides are to have no more.
        on: The only kind of device that the case is for.
    """

    group: str
    what: str
    against: str
    make: Callable[..., Sides]
    sizes: Sizes
    unit: str = "call"
    peak: bool = False
    along: str | None = None
    threads: int | None = None
    on: str | None = None

    @property
    def name(self) -> str:
        """What --only looks at."""
        return f"{self.group}: {self.what} / {self.against}"

    def point(self, along: str) -> Self:
        """The same as one point of a curve; those of one group, what, against and along are one curve."""
        return replace(self, along=along, peak=False)

    def curve(self, along: str, values: Sequence[int]) -> list[Self]:
        """Points at several values of one size, the others as they are."""
        return [replace(self, sizes={**self.sizes, along: value}).point(along) for value in values]


@dataclass(frozen=True)
class Row:
    """What was measured of a case. Ratios are theirs over ours: above 1, ours is faster, or needs less."""

    group: str
    what: str
    against: str
    sizes: dict[str, int]
    unit: str
    along: str | None
    seconds: float | None = None  # of one unit, median
    their_seconds: float | None = None
    ratio: float | None = None  # median of the pair-by-pair ratios of time
    quartiles: tuple[float, float] | None = None  # of these ratios
    repeats: int = 0
    peak_bytes: int | None = None
    their_peak_bytes: int | None = None
    threads: int | None = None  # where fewer than the machine's
    error: str | None = None

    @classmethod
    def of(cls, case: Case) -> Self:
        """Of a case that was not measured yet."""
        sizes, threads = dict(case.sizes), case.threads
        return cls(case.group, case.what, case.against, sizes, case.unit, case.along, threads=threads)


@dataclass(frozen=True)
class Effort:
    """How long to measure a case: as many pairs of calls as fit the seconds, but 3 at least and not too many."""

    repeats: int = 15  # at most
    seconds: float = 8.0

    def pairs(self, seconds: float) -> int:
        """How many pairs of calls, when one takes so long."""
        return min(self.repeats, max(_LEAST, int(self.seconds / seconds)))

    @property
    def of_a_point(self) -> Self:
        """Of a curve, which has several."""
        return replace(self, repeats=min(self.repeats, 5), seconds=self.seconds / 4)


FULL, QUICK = Effort(), Effort(repeats=2, seconds=0.0)


def measured(cases: Iterable[Case], device: torch.device, effort: Effort) -> Iterator[Row]:
    """A row for each case; one that fails has its error in the row, and the others are measured all the same.

    A point of a curve that an earlier row has measured is not measured again.
    """
    done: dict[tuple[str, str, tuple[tuple[str, int], ...]], Row] = {}
    with FreshProcess() as fresh:
        for case in cases:
            key = (case.name, case.unit, tuple(case.sizes.items()))
            if case.along is not None and key in done:
                yield replace(done[key], along=case.along, peak_bytes=None, their_peak_bytes=None)
                continue
            row = Row.of(case)
            try:
                with _threads(case.threads):
                    row = replace(row, **_figures(case, device, effort, fresh))
            except Exception as error:  # whatever it is: the row says so, and the command's status
                row = replace(row, error=f"{type(error).__name__}: {error}")
            done[key] = row
            yield row


def _figures(case: Case, device: torch.device, effort: Effort, fresh: "FreshProcess") -> dict[str, Any]:
    sides = case.make(device=device, **case.sizes)
    functions = {"ours": sides.ours, "theirs": sides.theirs}
    effort = effort.of_a_point if case.along else effort
    repeats, seconds = _timed(functions, effort)
    each = {
        name: [taken / amount for taken in seconds[name]]
        for name, amount in zip(functions, sides.amounts, strict=True)
    }
    figures = {
        "seconds": statistics.median(each["ours"]),
        "their_seconds": statistics.median(each["theirs"]),
        "ratio": median_ratio(each["theirs"], each["ours"]),
        "quartiles": quartiles(each["theirs"], each["ours"]),
        "repeats": repeats,
    }
    if not all(math.isfinite(figures[name]) for name in ("seconds", "their_seconds", "ratio")):
        raise ValueError(f"got {figures}, expected finite figures")
    if case.peak:
        on_gpu = device.type == "cuda"
        peaks = peaks_here(sides, device) if on_gpu else fresh.peaks(case)
        figures |= dict(zip(("peak_bytes", "their_peak_bytes"), peaks, strict=True))
    return figures


def _timed(functions: dict[str, Function], effort: Effort) -> tuple[int, dict[str, list[float]]]:
    """How many pairs of calls, and the seconds of each call in them."""
    first = paired(functions, repeats=1)  # the calls before it, which warm up, tell nothing
    calls = {name: math.ceil(_SAMPLE / max(taken[0], 1e-9)) for name, taken in first.items()}
    repeats = effort.pairs(sum(calls[name] * first[name][0] for name in functions))
    if max(calls.values()) == 1:
        rest = paired(functions, repeats - 1, warmup=0)
        return repeats, {name: first[name] + rest[name] for name in functions}
    samples = paired({name: _again(functions[name], calls[name]) for name in functions}, repeats, warmup=0)
    return repeats, {name: [taken / calls[name] for taken in samples[name]] for name in functions}


def _again(function: Function, calls: int) -> Function:
    def run() -> None:
        for _ in range(calls):
            function()

    return run


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many threads for PyTorch, where it is said how many."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peaks_here(sides: Sides, device: torch.device | str) -> tuple[int, int]:
    """Bytes that a call of each side needs beyond its inputs; a first call, which also makes what is kept, apart."""
    peaks = []
    for function in (sides.ours, sides.theirs):
        function()
        peaks.append(peak_memory(function, device))
    return peaks[0], peaks[1]


@dataclass
class FreshProcess:
    """Measures peak memory on the CPU in a process of its own, in which nothing that was freed hides what is needed."""

    _pool: ProcessPoolExecutor | None = field(default=None, init=False)

    def peaks(self, case: Case) -> tuple[int, int]:
        """Of both sides of the case."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_give_back_what_is_freed)
        try:
            return self._pool.submit(_peaks_of, case.make, dict(case.sizes), case.threads).result()
        except BrokenExecutor:  # the system ended it, for want of memory: the next case gets another
            self._pool = None
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _peaks_of(make: Callable[..., Sides], sizes: dict[str, int], threads: int | None) -> tuple[int, int]:
    with _threads(threads):
        return peaks_here(make(device=torch.device("cpu"), **sizes), "cpu")


def _give_back_what_is_freed() -> None:
    """Let every block of 64 KiB and more come from and go back to the system (glibc keeps larger and larger ones)."""
    if not ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 16):
        raise OSError("mallopt refused M_MMAP_THRESHOLD: peak memory cannot be told")
