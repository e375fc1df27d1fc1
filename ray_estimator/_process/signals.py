"""Signals: defer interrupts, and stop a training run on SIGINT and SIGTERM."""

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
    """Defer SIGINT until the end of the block, such as an import that must not be left incomplete.

    Ray sends SIGINT to cancel a task, and reuses the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deferred: list[tuple[Any, ...]] = []
    handler = signal.signal(signal.SIGINT, lambda *arguments: deferred.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if deferred and callable(handler):
            handler(*deferred[0])


@dataclass
class Stop:
    """A request to stop a training run early. Set by a thread or a signal handler, read by others.

    Attributes:
        why: The reason to stop after the current step, with a checkpoint; None: do not stop.
        at_once: Whether to stop immediately, without a checkpoint.
    """

    why: str | None = None
    at_once: bool = False
    _is_announced: bool = False

    def announce(self) -> None:
        """Log the request once. Not for signal handlers, which may interrupt another log call."""
        if self.why is not None and not self._is_announced:
            self._is_announced = True
            logger.warning("%s: stopping after this step and saving; interrupt again to exit immediately.", self.why)

    def end_at_once(self) -> None:
        """Request to stop immediately, without a checkpoint."""
        self.at_once = True


@contextlib.contextmanager
def stopped_by_signals(stop: Stop, *, raise_at_first: bool = False) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a request to stop, and raise them at the end of the block.

    They are raised as KeyboardInterrupt and SystemExit(143), after calling the previous handler unless it is Python's
    or Ray's. A second signal is raised immediately in the main thread; with `raise_at_first` the first one, too. Has
    no effect in other threads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[tuple[int, Any]] = []

    def handle(number: int, frame: Any) -> None:
        received.append((number, frame))
        stop.why = stop.why or signal.Signals(number).name
        if raise_at_first or len(received) > 1:
            raise _exception(number)

    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # None: not set from Python, so it could not be restored. An ignored signal stays ignored.
    handled = [number for number, handler in previous.items() if handler not in (None, signal.SIG_IGN)]
    failure: Exception | None = None
    for number in handled:
        signal.signal(number, handle)
    try:
        yield
    except Exception as error:
        if not received:
            raise
        failure = error
    finally:
        for number in handled:
            signal.signal(number, previous[number])
        if received and _is_user_handler(handler := previous[received[0][0]]):
            handler(*received[0])
    if received:
        raise _exception(received[0][0]) from failure


def _exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _is_user_handler(handler: Any) -> bool:
    is_of_ray = str(getattr(handler, "__module__", "")).partition(".")[0] == "ray"
    return callable(handler) and handler is not signal.default_int_handler and not is_of_ray
