"""The last step of a training run: an absolute step, so that it survives a restart and all ranks know it in advance."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def last_step_of(start_step: int, steps: int | None, max_steps: int | None, hooks_last_step: int | None) -> int | None:
    """Return the absolute step at which the run ends; None if only the input limits it."""
    return earliest(max_steps, hooks_last_step, None if steps is None else start_step + steps)


def earliest(*steps: int | None) -> int | None:
    """Return the smallest of the steps that are not None; None if all are."""
    return min((step for step in steps if step is not None), default=None)


def split_stop_hooks(hooks: Sequence[Any], start_step: int) -> tuple[list[Any], int | None]:
    """Replace `StopAtStepHook`s by the step at which they stop; return the other hooks and that step.

    A hook ``StopAtStepHook(num_steps=10)`` counts from the start of its process: a run of 10 steps that is interrupted
    at step 6 would end at step 16.
    """
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return list(hooks), None
    from ray_estimator._tf_private.sessions import stop_step

    stop_hook = tensorflow.compat.v1.train.StopAtStepHook
    others = [hook for hook in hooks if type(hook) is not stop_hook]
    steps = [stop_step(hook, start_step) for hook in hooks if type(hook) is stop_hook]
    return others, min(steps, default=None)
