"""User hooks and listeners: made from factories, checked."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import tensorflow.compat.v1 as v1

from ray_estimator._engine.tf_private import sessions

logger = logging.getLogger(__name__)


def made(hooks: Iterable[Any]) -> list[v1.train.SessionRunHook]:
    """User hooks, factories called: here, in the graph, after model_fn."""
    return [checked(hook if isinstance(hook, v1.train.SessionRunHook) else hook()) for hook in hooks]


def checked(hook: Any) -> v1.train.SessionRunHook:
    """The hook, or a TypeError that says what is expected."""
    if not isinstance(hook, v1.train.SessionRunHook):
        raise TypeError(f"Hooks must be a SessionRunHook, given: {hook!r}")
    return hook


def without_waiters(
    hooks: Iterable[v1.train.SessionRunHook], step: int, *, together: bool = False
) -> list[v1.train.SessionRunHook]:
    """The hooks but for each `GlobalStepWaiterHook` that waits for a later step than `step`: nobody else makes it.

    In a group, where such hooks once spread the starts of workers, all start and step together: it is left out.

    Raises:
        ValueError: It waits in a process that is alone.
    """
    waiters = {hook: awaited for hook in hooks if (awaited := sessions.awaited_step(hook)) > step}
    for awaited in waiters.values():
        if not together:
            raise ValueError(
                f"GlobalStepWaiterHook waits for step {awaited}, but this run begins at step {step} and nobody else "
                "makes steps: it would wait for ever. Leave it out."
            )
        logger.warning("GlobalStepWaiterHook(%d) is left out: the workers of a group make all steps together.", awaited)
    return [hook for hook in hooks if hook not in waiters]


def made_listeners(listeners: Iterable[Any]) -> list[v1.train.CheckpointSaverListener]:
    """Saving listeners, factories called."""
    kind = v1.train.CheckpointSaverListener
    result = [listener if isinstance(listener, kind) else listener() for listener in dict.fromkeys(listeners)]
    for listener in result:
        if not isinstance(listener, kind):
            raise TypeError(f"saving_listeners must be a list of CheckpointSaverListener, given: {listener!r}")
    return result
