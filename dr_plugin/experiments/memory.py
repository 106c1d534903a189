"""Memory: how much training took at its peak, of a GPU or the whole process, and what to do where it runs out."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_MIB = 2**20
_PROCESS = Path("/proc/self")  # Linux


class PeakMemory:
    """The peak of a stage's memory over the parts of it that train, in MiB; evaluation between them is left out.

    - On a GPU: what PyTorch had allocated there for tensors.
    - Else: the resident memory of the process, its libraries and the memory-mapped images that it has read included;
      processes that only read images are not counted. Linux can forget the process's earlier peak, so that several
      runs in one process are told apart. Elsewhere a peak can be told only if it is the highest of the process so
      far; `mib` stays None if it is not.

    Args:
        device: Where the stage trains.

    Attributes:
        mib: The peak so far; None before the first `stop`. A resumed run sets it to what it was.
    """

    def __init__(self, device: torch.device) -> None:
        self.mib: float | None = None
        self._device = device
        self._forgets = False
        self._before = 0

    def start(self) -> None:
        """Training begins or goes on."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        self._forgets = _forget_peak()
        self._before = 0 if self._forgets else _highest()

    def stop(self) -> None:
        """Training pauses or is over."""
        if self._device.type == "cuda":
            self._take(torch.cuda.max_memory_allocated(self._device))
        elif self._forgets:
            self._take(_peak())
        elif (highest := _highest()) > self._before:
            self._take(highest)

    def _take(self, size: int) -> None:
        self.mib = max(self.mib or 0.0, round(size / _MIB, 1))


def peak_of(stages: Sequence[Mapping[str, Any]], device: torch.device) -> dict[str, Any]:
    """The highest peak of the stages' summaries and whose it is; None where none was told."""
    peaks = [stage["peak_memory_mib"] for stage in stages if stage.get("peak_memory_mib") is not None]
    return {
        "peak_memory_mib": max(peaks, default=None),
        "peak_memory_of": "gpu" if device.type == "cuda" else "process",
    }


def out_of_memory(
    error: Exception, advice: str = "start anew with a smaller batch_size or evaluation.batch_size"
) -> str | None:
    """The line that says that memory ran out and what to do; None of another error.

    PyTorch says so in the text alone where it was not a GPU's.
    """
    told = ("out of memory", "can't allocate memory")
    if not (
        isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in told))
    ):
        return None
    reason = " ".join(str(error).splitlines()[:1]) or type(error).__name__
    return f"out of memory ({reason}): {advice}, or free memory"


def _forget_peak() -> bool:
    """Lower the process's peak to what is resident now; False where the system cannot."""
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int:
    """Bytes of the process's peak resident set since it was last forgotten (getrusage's may be its parent's)."""
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _highest() -> int:
    """Bytes of the process's peak resident set since it began; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource  # is not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
