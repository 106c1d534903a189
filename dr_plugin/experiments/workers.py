"""Processes that each do one job on a device, and end with the process that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, Self

import torch

from dr_plugin.atomic import WriteError

from .journal import SilentReporter
from .recipe import RecipeError

_SPAWN = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA


class Worker:
    """A process that calls ``function(*arguments, device, reporter)``, which gives why it failed, or None.

    Whoever has to stop it notes it before it is started.

    Args:
        function: Importable by name.
        arguments: What can be pickled.
        device: The device to work on.
        of: All devices that are worked on at the same time: the CPU's cores are divided among those that name it.
    """

    def __init__(
        self, function: Callable[..., str | None], *arguments: Any, device: str, of: Sequence[str]
    ) -> None:
        self.device = device
        sharing = sum(one == device for one in of) if device == "cpu" else len(of)
        threads = max(1, torch.get_num_threads() // sharing)
        self._answer, self._end = _SPAWN.Pipe(duplex=False)
        self._process = _SPAWN.Process(target=_work, args=(self._end, threads, function, arguments, device))

    def start(self) -> Self:
        """Start the process; an interrupt meanwhile is raised when it can be stopped."""
        with _deaf_to_interrupts():
            self._process.start()
        self._end.close()  # the worker has it: once that one is gone, ours reads the end
        return self

    def result(self) -> str | None:
        """Wait for the worker's end; gives what its function gave, or what ended it.

        Raises:
            RecipeError, WriteError: if the function did.
        """
        try:
            answer = self._answer.recv()
        except EOFError:
            answer = None
            self._process.join()
            return (
                f"its process ended with status {self._process.exitcode}; was it killed for want of memory?"
            )
        self._process.join()
        if isinstance(answer, RecipeError | WriteError):
            raise answer
        text: str | None = answer
        return text

    def stop(self) -> None:
        """End the process: one that trains finishes its step and saves."""
        stop_all([self])


def first_done(workers: Iterable[Worker]) -> Worker:
    """Wait until one of the workers has an answer or is gone."""
    by_answer = {worker._answer: worker for worker in workers}
    return by_answer[wait(list(by_answer))[0]]  # type: ignore[index]  # wait gives back what it was given


def stop_all(workers: Collection[Worker]) -> None:
    """End those that were started: who trains finishes the step and saves, unless another interrupt comes meanwhile."""
    processes = [worker._process for worker in workers if worker._process.pid is not None]
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
        raise


def _work(
    answer: Connection,
    threads: int,
    function: Callable[..., str | None],
    arguments: tuple[Any, ...],
    device: str,
) -> None:
    _end_with_parent()
    # A stage that trains puts an interrupt off to its step's end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.set_num_threads(threads)
    try:
        answer.send(function(*arguments, device, SilentReporter()))
    except (RecipeError, WriteError) as error:  # which concern the other runs too
        answer.send(error)
    except KeyboardInterrupt:  # who started this one knows
        return
    except Exception as error:  # whatever it is, the others go on
        answer.send(f"{type(error).__name__}: {error}")


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal: those started now never see it, who starts them sees it after.

    They inherit the blocked signal, and are stopped by who started them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Two processes must not write one run's folder: end when the process that started this one is gone."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
