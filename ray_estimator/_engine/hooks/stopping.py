"""The hooks that end training when the user's function or the driver asks for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import tensorflow.compat.v1 as v1

from ray_estimator._engine.hooks.control import Control
from ray_estimator._jobs.worker import Worker
from ray_estimator._tf_private import sessions

logger = logging.getLogger(__name__)


class StopOnPredicate(v1.train.SessionRunHook):
    """Calls `should_stop_fn` after the first step and at intervals, and requests a stop if it returns True.

    Runs on the chief only. A stop that one rank requests stops all ranks.
    """

    def __init__(self, should_stop_fn: Callable[[], bool], every_secs: float | None, every_steps: int | None) -> None:
        self._should_stop_fn = should_stop_fn
        self._timer = v1.train.SecondOrStepTimer(every_secs=every_secs, every_steps=every_steps)

    def begin(self) -> None:
        self._timer.reset()
        self._global_step = sessions.global_step_read()

    def before_run(self, run_context: v1.train.SessionRunContext) -> v1.train.SessionRunArgs:
        return v1.train.SessionRunArgs(self._global_step)

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        step = int(run_values.results)
        if not self._timer.should_trigger_for_step(step):
            return
        self._timer.update_last_triggered_step(step)
        if self._should_stop_fn():
            logger.info("Requesting early stopping at global step %d.", step)
            run_context.request_stop()


class StopWhenAsked(v1.train.SessionRunHook):
    """Requests a stop when the driver has asked the worker to stop. Runs on the chief only.

    It records whether the run ends before its target and the end of its input.
    """

    def __init__(self, worker: Worker, control: Control, last_step: int | None) -> None:
        self._worker = worker
        self._control = control
        self._last_step = last_step

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        if not self._worker.is_asked_to_stop:
            return
        control = self._control
        at_target = self._last_step is not None and control.step >= self._last_step
        control.cut_short = not at_target and not control.input_ended
        run_context.request_stop()
