"""The last step of a training run, an absolute one: a restart keeps it, and all ranks know it beforehand."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def last_step_of(start_step: int, steps: int | None, max_steps: int | None, hooks_last_step: int | None) -> int | None:
    """The absolute step at which the run ends; None if nothing but the input limits it."""
    return earliest(max_steps, hooks_last_step, None if steps is None else start_step + steps)


def earliest(*steps: int | None) -> int | None:
    """The smallest of the steps that are given; None if none is."""
    return min((step for step in steps if step is not None), default=None)


def split_stop_hooks(hooks: Sequence[Any], start_step: int) -> tuple[list[Any], int | None]:
    """Turns `StopAtStepHook`s into a last step; gives the other hooks and that step.

    As a hook, ``StopAtStepHook(num_steps=10)`` counts from wherever its process began: a run of 10 steps that is
    interrupted at 6 would end at 16.
    """
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return list(hooks), None
    from ray_estimator._tf_private.sessions import stop_step

    kind = tensorflow.compat.v1.train.StopAtStepHook
    others = [hook for hook in hooks if type(hook) is not kind]
    steps = [stop_step(hook, start_step) for hook in hooks if type(hook) is kind]
    return others, min(steps, default=None)
