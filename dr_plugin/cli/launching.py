"""``dr-run --nproc N``: the same run on several processes of this machine, through torchrun."""

import os
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def launch(processes: int, restarts: int, arguments: Sequence[str], hint: str) -> None:
    """Start ``dr run ARGUMENTS`` on so many processes and wait for their end.

    Args:
        processes: How many.
        restarts: How often all may be started again from their last checkpoint where one was lost.
        arguments: Of ``dr run``, the run's folder among them.
        hint: Says how to go on after a failure.
    Raises:
        TrainingError: if one of them failed.
        KeyboardInterrupt: if they were interrupted.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from dr_plugin.experiments.trainer import TrainingError

    # The cores are divided among the processes; torchrun would give each one thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // processes)))
    options = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    try:
        torchrun.run(torchrun.parse_args([*options, "-m", "dr_plugin", "run", *arguments]))
    except ChildFailedError as error:
        failure = _first_cause(error.failures.values())
        if failure.exitcode > 0:  # it has said what was wrong
            sys.exit(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        raise TrainingError(
            f"rank {failure.local_rank} was ended by {name}, and the others with it; was memory short? {hint}"
        ) from None
    except SignalException:
        raise KeyboardInterrupt(f"interrupted; {hint}") from None


def _first_cause(failures: Iterable[Any]) -> Any:
    """The failure that the others followed: a process that was killed rather than one that missed it."""
    by_time = sorted(failures, key=lambda one: one.timestamp)
    killed = [one for one in by_time if one.exitcode < 0 and one.exitcode != -signal.SIGTERM]
    return (killed or by_time)[0]


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
