"""The hook that measures progress."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine.hooks.control import Control
from ray_estimator._engine.input.feed import batch_dimension
from ray_estimator._jobs.worker import WorkerStatus

_REPORT_INTERVAL_SECS = 0.2


class ReportProgress(v1.train.SessionRunHook):
    """Writes phase, step, loss and rates to the `WorkerStatus`. Runs on every rank.

    The progress display and the step watchdog read them.
    """

    def __init__(self, status: WorkerStatus, control: Control, features: Any, num_replicas: int) -> None:
        self._status = status
        self._control = control
        # An int, a scalar tensor, or None where the features have no batch dimension.
        self._num_rows = batch_dimension(features)
        self._num_replicas = num_replicas
        self._rows_per_step: float | None = None
        self._first: _Sample | None = None
        self._last: _Sample | None = None

    def after_create_session(self, session: v1.Session, coord: Any) -> None:
        self._status.step = int(session.run(v1.train.get_global_step()))
        self._last = None

    def before_run(self, run_context: v1.train.SessionRunContext) -> v1.train.SessionRunArgs | None:
        self._status.enter("in a step")
        self._is_due = self._last is None or time.monotonic() - self._last.time >= _REPORT_INTERVAL_SECS
        fetches_num_rows = self._is_due and isinstance(self._num_rows, tf.Tensor)
        return v1.train.SessionRunArgs(self._num_rows) if fetches_num_rows else None

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        self._status.enter("between steps (hooks, input)")
        self._status.step = self._control.step
        if not self._is_due:
            return
        num_rows = run_values.results if isinstance(self._num_rows, tf.Tensor) else self._num_rows
        if num_rows is not None:
            self._rows_per_step = float(num_rows) * self._num_replicas
        self._status.loss = self._control.decision.loss
        sample = self._sample()
        if self._last is None:
            # The first step includes TensorFlow's warm-up, so rates are measured from its end.
            self._first = sample
        self._update_rates(self._last, sample)
        self._last = sample

    def end(self, session: v1.Session) -> None:
        """Set the rates to those of the whole run."""
        self._update_rates(self._first, self._sample())

    def _sample(self) -> _Sample:
        return _Sample(time.monotonic(), self._status.step, self._control.waited_secs)

    def _update_rates(self, since: _Sample | None, now: _Sample) -> None:
        if since is None or now.step <= since.step:
            return
        self._status.step_secs = (now.time - since.time) / (now.step - since.step)
        waited_secs = now.waited_secs - since.waited_secs
        self._status.input_wait = None if math.isnan(waited_secs) else waited_secs / (now.time - since.time)
        if self._rows_per_step is not None:
            self._status.examples_per_sec = self._rows_per_step / self._status.step_secs


class _Sample(NamedTuple):
    time: float
    step: int
    waited_secs: float
