"""Saving listeners for training in the driver's process."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow.compat.v1 as v1


class CallAfterSave(v1.train.CheckpointSaverListener):
    """Calls a function after each checkpoint except the first, which is saved before the first step."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def begin(self) -> None:
        self._is_first = True

    def after_save(self, session: v1.Session, global_step_value: int) -> None:
        if not self._is_first:
            self._function()
        self._is_first = False


def idle_listener() -> v1.train.CheckpointSaverListener:
    """Return a listener that does nothing. With a listener, training fails at start unless a hook saves checkpoints."""
    return v1.train.CheckpointSaverListener()
