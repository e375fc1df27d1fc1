"""That this process goes on: the engine notes each batch of an evaluation or prediction, and who watches looks here."""

from __future__ import annotations

import time

_last = float("-inf")


def beat() -> None:
    """A batch begins."""
    global _last
    _last = time.monotonic()


def last_beat() -> float:
    """When the last batch began, by `time.monotonic`; minus infinity before the first."""
    return _last
