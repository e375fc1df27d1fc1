"""Tells the driver of checkpoints, where training runs in its process."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow.compat.v1 as v1


class CallAfterSave(v1.train.CheckpointSaverListener):
    """Calls a function after each checkpoint but the first, which training begins with."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def begin(self) -> None:
        self._is_first = True

    def after_save(self, session: v1.Session, global_step_value: int) -> None:
        if not self._is_first:
            self._function()
        self._is_first = False


def idle_listener() -> v1.train.CheckpointSaverListener:
    """A listener that does nothing; that there is one makes training refuse to run without a hook that saves."""
    return v1.train.CheckpointSaverListener()
