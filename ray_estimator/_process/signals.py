"""Interrupts that wait, and those that ask a training run to stop."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Within it, SIGINT waits for the end: a process that is used again must not be left with half an import.

    Ray interrupts a task that is cancelled in this way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[Any, ...]] = []
    handler = signal.signal(signal.SIGINT, lambda *arguments: waiting.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if waiting and callable(handler):
            handler(*waiting[0])


@dataclass
class Stop:
    """A wish to end a training run early. A thread or a signal's handler writes it, others read it.

    Attributes:
        why: What asks to stop after the step that runs now, with a checkpoint, in words; None if nothing does.
        at_once: Whether to end without waiting for that.
    """

    why: str | None = None
    at_once: bool = False
    _is_announced: bool = False

    def announce(self) -> None:
        """Says so in the log, once. Not for handlers of signals, which may interrupt a log line."""
        if self.why is not None and not self._is_announced:
            self._is_announced = True
            logger.warning("%s: training stops after this step, with a checkpoint; a second one ends it.", self.why)

    def end_at_once(self) -> None:
        """Ends the run without a checkpoint."""
        self.at_once = True


@contextlib.contextmanager
def stopped_by_signals(stop: Stop, *, raise_at_first: bool = False) -> Iterator[None]:
    """Within it SIGINT and SIGTERM are heard as the wish to stop, and raised when the block has ended.

    They are raised as KeyboardInterrupt and SystemExit(143). The second one is raised where it finds the main thread,
    and the first one too if `raise_at_first`. Before that, the handler that was there is called, unless it is Python's
    or Ray's. In other threads than the main one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[tuple[int, Any]] = []

    def hear(number: int, frame: Any) -> None:
        heard.append((number, frame))
        stop.why = stop.why or signal.Signals(number).name
        if raise_at_first or len(heard) > 1:
            raise _exception(number)

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # None: not Python's, so nobody here could put it back. A signal that is ignored stays so.
    ours = [number for number, handler in before.items() if handler not in (None, signal.SIG_IGN)]
    failure: Exception | None = None
    for number in ours:
        signal.signal(number, hear)
    try:
        yield
    except Exception as error:
        if not heard:
            raise
        failure = error
    finally:
        for number in ours:
            signal.signal(number, before[number])
        if heard and _is_users(handler := before[heard[0][0]]):
            handler(*heard[0])
    if heard:
        raise _exception(heard[0][0]) from failure


def _exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _is_users(handler: Any) -> bool:
    is_rays = str(getattr(handler, "__module__", "")).partition(".")[0] == "ray"
    return callable(handler) and handler is not signal.default_int_handler and not is_rays
