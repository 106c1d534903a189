"""``dr-run --nproc N``: the same run on several processes of this machine, through torchrun."""

import os
import signal
import sys
from collections.abc import Sequence


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
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    options = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    try:
        torchrun.run(torchrun.parse_args([*options, "-m", "dr_plugin", "run", *arguments]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:  # it has said what was wrong
            sys.exit(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        raise TrainingError(
            f"rank {rank} was ended by {name}, and the others with it; was memory short? {hint}"
        ) from None
    except SignalException:
        raise KeyboardInterrupt(f"interrupted; {hint}") from None


def is_restart() -> bool:
    """Whether torchrun has started this process anew after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def may_restart() -> bool:
    """Whether torchrun would do so."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
