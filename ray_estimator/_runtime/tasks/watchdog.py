"""Kill a task's process when the task hangs, and report the stack of the hang to the driver.

A hang in TensorFlow, or in Python code that TensorFlow calls, cannot be interrupted, so the process is killed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

from ray_estimator._process.heartbeat import last_heartbeat
from ray_estimator._process.periodic import PeriodicThread
from ray_estimator._runtime import ray_private

_CHECKS_PER_TIMEOUT = 8
_STDERR = 2
_REPORT_SECS = 30.0


class StallTimeout(NamedTuple):
    """How long a task may make no progress, and the key in Ray's key-value store under which it reports a hang."""

    secs: float
    key: bytes

    @classmethod
    def of(cls, secs: float | None) -> StallTimeout | None:
        """Return a timeout with a key of its own; None for no limit."""
        return None if secs is None else cls(secs, f"ray_estimator stall {uuid.uuid4().hex}".encode())

    def pop_stack(self) -> str | None:
        """Return and remove the stack of a hang; None if the task did not hang. On the driver."""
        stack = ray_private.pop_value(self.key)
        return None if stack is None else stack.decode()


def with_watchdog(results: Generator[Any], timeout: StallTimeout | None) -> Generator[Any]:
    """Yield from `results`; kill the process if neither a result nor a batch comes within the timeout. In a task.

    Time in which no result is requested does not count.
    """
    with contextlib.closing(results), contextlib.ExitStack() as stack:
        watchdog = _Watchdog(timeout)
        if timeout is not None:
            secs = timeout.secs / _CHECKS_PER_TIMEOUT
            stack.enter_context(PeriodicThread(watchdog.check, secs, name="watchdog"))
        while True:
            with watchdog.active():
                try:
                    result = next(results)
                except StopIteration:
                    return
            yield result


class _Watchdog:
    """Watches the thread that made it."""

    def __init__(self, timeout: StallTimeout | None) -> None:
        self._timeout = timeout
        self._watched_thread = threading.get_ident()
        self._active_since: float | None = None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """A block in which the thread must make progress."""
        self._active_since = time.monotonic()
        try:
            yield
        finally:
            self._active_since = None

    def check(self) -> None:
        """Kill the process if the thread hangs."""
        assert self._timeout is not None
        since = self._active_since
        if since is not None and time.monotonic() - max(since, last_heartbeat()) > self._timeout.secs:
            self._kill_process(self._timeout.key)

    def _kill_process(self, key: bytes) -> None:
        faulthandler.dump_traceback_later(_REPORT_SECS, exit=True, file=_STDERR)  # if the report hangs
        try:
            stack = "".join(traceback.format_stack(sys._current_frames()[self._watched_thread]))
            ray_private.put_value(key, stack.encode())
            faulthandler.dump_traceback(_STDERR)
        finally:
            os._exit(1)
