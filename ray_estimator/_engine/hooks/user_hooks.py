"""The user's hooks and saving listeners: created from factories, and checked."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import tensorflow.compat.v1 as v1

from ray_estimator._tf_private import sessions

logger = logging.getLogger(__name__)


def create_hooks(hooks: Iterable[Any]) -> list[v1.train.SessionRunHook]:
    """Return the user's hooks, with factories called. Call it in the graph, after model_fn.

    Raises:
        TypeError: A factory returned something other than a hook.
    """
    created = [hook if isinstance(hook, v1.train.SessionRunHook) else hook() for hook in hooks]
    for hook in created:
        if not isinstance(hook, v1.train.SessionRunHook):
            raise TypeError(f"Hooks must be a SessionRunHook, got {hook!r}.")
    return created


def create_listeners(listeners: Iterable[Any]) -> list[v1.train.CheckpointSaverListener]:
    """Return the user's saving listeners without duplicates, with factories called.

    Raises:
        TypeError: A factory returned something other than a listener.
    """
    kind = v1.train.CheckpointSaverListener
    created = [listener if isinstance(listener, kind) else listener() for listener in dict.fromkeys(listeners)]
    for listener in created:
        if not isinstance(listener, kind):
            raise TypeError(f"saving_listeners must be a list of CheckpointSaverListener, got {listener!r}.")
    return created


def without_step_waiters(
    hooks: Iterable[v1.train.SessionRunHook], step: int, *, in_group: bool = False
) -> list[v1.train.SessionRunHook]:
    """Return the hooks without each `GlobalStepWaiterHook` that waits for a step after `step`.

    tf.estimator used these hooks to stagger the start of asynchronous workers. The workers of a group run every step
    together, so none of them could reach that step while another one waits.

    Raises:
        ValueError: A single process would wait for a step that no other process makes.
    """
    waiters = {hook: awaited for hook in hooks if (awaited := sessions.awaited_step(hook)) > step}
    for awaited in waiters.values():
        if not in_group:
            raise ValueError(
                f"GlobalStepWaiterHook waits for step {awaited}, but this run starts at step {step} and no other "
                "process advances the global step, so it would never return. Remove the hook."
            )
        logger.warning("Ignoring GlobalStepWaiterHook(%d): all workers of a group run every step together.", awaited)
    return [hook for hook in hooks if hook not in waiters]
