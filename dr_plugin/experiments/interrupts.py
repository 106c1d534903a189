"""Ctrl-C while a stage trains: once, the step is finished and saved; twice, or outside of steps, it ends at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

from dr_plugin import distributed


class Interrupts:
    """While it is entered, a first interrupt is only noted in ``asked``; who trains ends after the step.

    - A second one raises ``KeyboardInterrupt`` where it meets the process, as does a first one within `at_once`.
    - Nothing is changed outside of the main thread, which alone hears signals, nor where the process has a handler of
      its own or ignores the signal, as one that was started in the background does.
    - A first Ctrl-C is answered by a line on stderr, as a step may be long.
    - Whatever signal is set to interrupt counts: a worker of ``dr compare`` hears SIGTERM, from the process that
      started it.

    Attributes:
        asked: Whether there was a first interrupt.
    Raises:
        KeyboardInterrupt: on leaving, if one was asked for that nobody has followed.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self._deferring = True
        self._replaced: list[signal.Signals] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                if signal.getsignal(number) is signal.default_int_handler:
                    self._replaced.append(number)
                    signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        while self._replaced:
            signal.signal(self._replaced.pop(), signal.default_int_handler)
        if self.asked and kind is None:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Here nothing need be finished."""
        self._deferring = False
        try:
            yield
        finally:
            self._deferring = True

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self._deferring:
            signal.default_int_handler(number, frame)
        self.asked = True
        if number == signal.SIGINT and distributed.is_first():
            # Not by print, within which it may have been interrupted; and nobody may be listening.
            with suppress(OSError):
                os.write(2, b"finishing the step; again to end now\n")
