"""Heartbeat of the current process: evaluation and prediction record each batch, for the task's watchdog."""

from __future__ import annotations

import time

_last = float("-inf")


def record_heartbeat() -> None:
    """Record the start of a batch."""
    global _last
    _last = time.monotonic()


def last_heartbeat() -> float:
    """Return the start of the last batch by `time.monotonic`; minus infinity before the first one."""
    return _last
