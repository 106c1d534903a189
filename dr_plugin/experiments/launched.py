"""Which torchrun began a run, so that processes that it starts anew go on with that run and with no other."""

import os
from pathlib import Path

from dr_plugin.atomic import write_text

_FILE = ".torchrun"  # in the run's folder, while it goes on


def may_restart() -> bool:
    """Whether torchrun would start these processes anew after a loss."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def is_restart(folder: Path) -> bool:
    """Whether it has done so, after they began the folder's run."""
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    file = folder / _FILE
    return again and file.is_file() and file.read_text() == _launch()


def note_launch(folder: Path) -> None:
    """Write down who began the folder's run."""
    if may_restart():
        write_text(folder / _FILE, _launch())


def forget_launch(folder: Path) -> None:
    """The run is finished."""
    (folder / _FILE).unlink(missing_ok=True)


def _launch() -> str:
    """The same for all processes that one torchrun starts on a machine."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', '')} {os.getppid()}"
