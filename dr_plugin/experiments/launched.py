"""Which torchrun began a run, so that processes that it starts anew go on with that run and with no other."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dr_plugin.atomic import write_text

LAUNCH = ".torchrun"  # in the run's folder, while it goes on


def may_restart() -> bool:
    """Whether torchrun would start these processes anew after a loss."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def is_restart(folder: Path) -> bool:
    """Whether it has done so, after they began the folder's run."""
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    file = folder / LAUNCH
    return again and file.is_file() and file.read_text() == _launch()


@contextmanager
def ending_with_torchrun() -> Iterator[None]:
    """Within the block, this process ends when its torchrun is gone: it must not go on writing the run's folder."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    torchrun, over = os.getppid(), threading.Event()

    def watch() -> None:
        while not over.wait(1):
            if os.getppid() != torchrun:
                os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def note_launch(folder: Path) -> None:
    """Write down who began the folder's run."""
    if may_restart():
        write_text(folder / LAUNCH, _launch())


def forget_launch(folder: Path) -> None:
    """The run is finished."""
    (folder / LAUNCH).unlink(missing_ok=True)


def _launch() -> str:
    """The same for all processes that one torchrun starts on a machine."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', '')} {os.getppid()}"
