"""What a run says while it goes: metrics.jsonl, TensorBoard where it is asked for, and the reporter's contract."""

import json
import os
import time
from pathlib import Path
from typing import Any, Protocol

from dr_plugin.atomic import telling


class Reporter(Protocol):
    """Shows a person how a run goes; the command line has one for terminals and one for plain lines."""

    def update(self, task: str, done: int, total: int | None, **figures: float) -> None:
        """``done`` of ``total`` units of ``task`` are done; ``figures`` are shown beside it."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""


class SilentReporter:
    """Shows nothing: for use as a library and in tests."""

    def update(self, task: str, done: int, total: int | None, **figures: float) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class Journal:
    """Appends records to ``metrics.jsonl``; a resumed run cuts it back to where its checkpoint stood.

    A record is there whole or not at all, but for a kill in the middle of writing it, which the next resume cuts off.

    Args:
        folder: The run's folder.
        size: Bytes to keep of an earlier file; 0 starts anew. Of a file that is shorter, its whole lines are kept.
        tensorboard: Also write the figures for TensorBoard, to ``folder/tensorboard/1``; each resume starts the
            next number, as TensorBoard cannot cut back what it was given after the checkpoint.
        seconds: The run's age so far, from its checkpoint.
    Attributes:
        missing: Bytes of ``size`` that the file did not have.
    Raises:
        ValueError: if TensorBoard is asked for and not installed.
        WriteError: if the file cannot be written; also of the methods.
    """

    def __init__(
        self, folder: Path, *, size: int = 0, tensorboard: bool = False, seconds: float = 0.0
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self._events = _next_folder(folder / "tensorboard") / "events"  # TensorBoard's names go on from this
        self._writer = _tensorboard_writer(self._events.parent) if tensorboard else None
        with telling(self.path):
            # Kept open for the length of the run; unbuffered, as a buffer that cannot be written would not go away.
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
            kept = _whole_lines(self.path, size)
            self._file.truncate(kept)
        self.missing = size - kept
        self._start = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Seconds that the run has worked, those before a resume included."""
        return time.perf_counter() - self._start

    def write(self, record: dict[str, Any]) -> None:
        """Append one record, with the run's age as ``time_s``."""
        record = {**record, "time_s": round(self.seconds, 3)}
        self._append(json.dumps(record).encode() + b"\n")
        if self._writer is not None:
            with telling(self._events):
                for key, value in record.items():
                    if isinstance(value, float):
                        self._writer.add_scalar(f"{record['stage']}/{key}", value, record["step"])

    def size(self) -> int:
        """Bytes written so far, all of them safely on disk."""
        with telling(self.path):
            os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._writer is not None:
            with telling(self._events):
                self._writer.close()

    def _append(self, line: bytes) -> None:
        """Write the line, or nothing of it."""
        size = self._file.seek(0, os.SEEK_END)
        with telling(self.path):
            try:
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                self._file.truncate(size)
                raise


class SilentJournal:
    """Writes nothing: of a process that is not the first of those that train together."""

    seconds = 0.0

    def write(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def size(self) -> int:
        """Nothing was written."""
        return 0

    def close(self) -> None:
        """Nothing."""


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's ``metrics.jsonl``."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _whole_lines(path: Path, size: int) -> int:
    """``size``, or how many bytes the file's whole lines have if it is shorter."""
    if path.stat().st_size >= size:
        return size
    return path.read_bytes().rfind(b"\n") + 1


def _next_folder(folder: Path) -> Path:
    return folder / str(1 + sum(1 for _ in folder.glob("*")))


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "tensorboard: true needs TensorBoard, which is not installed; pip install 'dr-plugin[tensorboard]'"
        ) from None
    with telling(folder / "events"):
        return SummaryWriter(str(folder))
