"""Tasks that stand still: their process ends, and tells the driver where it stood.

What hangs in TensorFlow, or in Python that TensorFlow calls, cannot be interrupted, so the process has to go.
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

from ray.experimental import internal_kv

from ray_estimator._process.heartbeat import last_heartbeat

_LOOKS = 8
_STDERR = 2
_TELL_SECS = 30.0


class Patience(NamedTuple):
    """How long a task may stand still, and under which key of Ray's it says that it did."""

    secs: float
    key: bytes

    @classmethod
    def of(cls, secs: float | None) -> Patience | None:
        """With a key of its own; None for ever."""
        return None if secs is None else cls(secs, f"ray_estimator stall {uuid.uuid4().hex}".encode())

    def where_it_stood(self) -> str | None:
        """The stack of the task that stood still, once; None if it did not. On the driver."""
        stack = internal_kv._internal_kv_get(self.key)
        internal_kv._internal_kv_del(self.key)
        return None if stack is None else stack.decode()


def watched(results: Generator[Any], patience: Patience | None) -> Generator[Any]:
    """What `results` gives. Ends the process if neither a result nor a batch comes for too long. In a task.

    The time in which nobody asks for a result does not count.
    """
    with contextlib.closing(results), _Watchdog(patience) as watchdog:
        while True:
            with watchdog.awake():
                try:
                    result = next(results)
                except StopIteration:
                    return
            yield result


class _Watchdog(threading.Thread):
    def __init__(self, patience: Patience | None) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._patience = patience
        self._watched = threading.get_ident()
        self._awake_since: float | None = None
        self._is_over = threading.Event()

    def __enter__(self) -> _Watchdog:
        if self._patience is not None:
            self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Within it something must go on."""
        self._awake_since = time.monotonic()
        try:
            yield
        finally:
            self._awake_since = None

    def run(self) -> None:
        """Looks now and then."""
        assert self._patience is not None
        while not self._is_over.wait(self._patience.secs / _LOOKS):
            since = self._awake_since
            if since is not None and time.monotonic() - max(since, last_heartbeat()) > self._patience.secs:
                self._end_process(self._patience.key)

    def _end_process(self, key: bytes) -> None:
        faulthandler.dump_traceback_later(_TELL_SECS, exit=True, file=_STDERR)  # if the driver cannot be told
        try:
            stack = "".join(traceback.format_stack(sys._current_frames()[self._watched]))
            internal_kv._internal_kv_put(key, stack.encode())
            faulthandler.dump_traceback(_STDERR)
        finally:
            os._exit(1)
