"""Checks of the arguments that several verbs share. They run on the driver, and import neither TensorFlow nor Ray."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any


def check_argument_order(steps: Any, hooks: Any) -> None:
    """Refuses steps and hooks in each other's place, as tf.estimator's other order would bring them."""
    if steps is not None and not isinstance(steps, numbers.Integral):
        raise TypeError(
            f"steps must be an int or None, given: {steps!r}. The positional order is (input_fn, steps, hooks, ...); "
            "pass hooks by name: hooks=[...]."
        )
    if isinstance(hooks, numbers.Integral):
        raise TypeError(
            f"hooks must be a list of hooks, given: {hooks!r}. The positional order is (input_fn, steps, hooks, ...); "
            "pass the number by name: steps=..."
        )


def check_positive(name: str, value: Any) -> None:
    """Refuses a number of steps that is neither None nor a positive integer."""
    if value is None:
        return
    if not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int or None, given: {value!r}.")
    if value <= 0:
        raise ValueError(f"Must specify {name} > 0, given: {value}")


def checked_hooks(hooks: Any) -> list[Any]:
    """Hooks and factories; what is neither is refused here, before anything runs."""
    if hooks is None:
        return []
    if not isinstance(hooks, Iterable):
        raise TypeError(f"Hooks must be a SessionRunHook, given: {hooks!r}. Pass a list of them.")
    listed = list(hooks)
    for hook in listed:
        if not _looks_like_hook(hook) and not callable(hook):
            raise TypeError(f"Hooks must be a SessionRunHook, given: {hook!r}")
    return listed


def _looks_like_hook(hook: Any) -> bool:
    return hasattr(hook, "before_run") and hasattr(hook, "after_run")


def checked_listeners(listeners: Any) -> list[Any]:
    """Saving listeners and factories; what is neither is refused."""
    if listeners is None:
        return []
    if not isinstance(listeners, Iterable):
        raise TypeError(f"saving_listeners must be a list of CheckpointSaverListener, given: {listeners!r}")
    listed = list(listeners)
    for listener in listed:
        if not hasattr(listener, "after_save") and not callable(listener):
            raise TypeError(f"saving_listeners must be a list of CheckpointSaverListener, given: {listener!r}")
    return listed
