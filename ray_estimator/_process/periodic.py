"""Call a function periodically from a thread that has an owner."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

logger = logging.getLogger(__name__)


class PeriodicThread(threading.Thread):
    """Call a function every `interval_secs` from a thread of its own, while the context is open.

    The first call comes after one interval. Leaving the context wakes the thread and joins it, so that no call runs
    afterwards; a call that hangs is left running, with a warning. An error of the function is logged, the first of a
    series with its traceback, and the calls continue: handle errors that need more than that inside the function.

    Args:
        call: Called without arguments, in the thread.
        interval_secs: Seconds from the end of one call to the start of the next.
        name: Name of the thread; names the activity in the log.
        max_load: Upper bound of the fraction of time spent in calls: after a slow call the pause is longer. None: the
            interval alone counts.
        exit_timeout_secs: How long leaving the context waits for a call to return.
    """

    def __init__(
        self,
        call: Callable[[], object],
        interval_secs: float,
        *,
        name: str,
        max_load: float | None = None,
        exit_timeout_secs: float = 30.0,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._call = call
        self._interval_secs = interval_secs
        self._max_load = max_load
        self._exit_timeout_secs = exit_timeout_secs
        self._done = threading.Event()

    def __enter__(self) -> PeriodicThread:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the calls and join the thread; from within a call only end them."""
        self._done.set()
        if threading.current_thread() is self:
            return
        self.join(self._exit_timeout_secs)
        if self.is_alive():
            logger.warning("%s has not returned within %g s; it is left running.", self.name, self._exit_timeout_secs)

    def run(self) -> None:
        """Call until stopped."""
        pause, failing = self._interval_secs, False
        while not self._done.wait(pause):
            began = time.monotonic()
            try:
                self._call()
                failing = False
            except Exception as error:
                logger.warning("%s failed and is retried: %s", self.name, error, exc_info=not failing)
                failing = True
            took = time.monotonic() - began
            pause = self._interval_secs if self._max_load is None else max(self._interval_secs, took / self._max_load)
