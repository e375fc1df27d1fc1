"""The hook that reports progress."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine.hooks.control import Control
from ray_estimator._engine.input.feed import batch_dimension
from ray_estimator._jobs.worker import WorkerStatus

_REPORT_SECS = 0.2


class ReportProgress(v1.train.SessionRunHook):
    """Says where this rank is, for the progress display and for the watch on steps that do not end."""

    def __init__(self, status: WorkerStatus, control: Control, features: Any, num_replicas: int) -> None:
        self._status = status
        self._control = control
        # An int, a scalar tensor, or None where the features have no batch dimension.
        self._rows = batch_dimension(features)
        self._num_replicas = num_replicas
        self._rows_of_a_step: float | None = None
        self._began: _Mark | None = None
        self._measured: _Mark | None = None

    def after_create_session(self, session: v1.Session, coord: Any) -> None:
        self._status.step = int(session.run(v1.train.get_global_step()))
        self._measured = None

    def before_run(self, run_context: v1.train.SessionRunContext) -> v1.train.SessionRunArgs | None:
        self._status.enter("in a step")
        self._due = self._measured is None or time.monotonic() - self._measured.at >= _REPORT_SECS
        return v1.train.SessionRunArgs(self._rows) if self._due and isinstance(self._rows, tf.Tensor) else None

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        self._status.enter("between steps (hooks, input)")
        self._status.step = self._control.step
        if not self._due:
            return
        rows = run_values.results if isinstance(self._rows, tf.Tensor) else self._rows
        if rows is not None:
            self._rows_of_a_step = float(rows) * self._num_replicas
        self._status.loss = self._control.decision.loss
        self._measure()

    def end(self, session: v1.Session) -> None:
        """Leaves the rates of the whole run."""
        self._take_rates(self._began, self._mark())

    def _measure(self) -> None:
        """Takes the rates since the last report. The first step, which warms TensorFlow up, does not count."""
        mark = self._mark()
        if self._measured is None:
            self._began = mark
        self._take_rates(self._measured, mark)
        self._measured = mark

    def _mark(self) -> _Mark:
        return _Mark(time.monotonic(), self._status.step, self._control.waited_secs)

    def _take_rates(self, since: _Mark | None, now: _Mark) -> None:
        if since is None or now.step <= since.step:
            return
        self._status.step_secs = (now.at - since.at) / (now.step - since.step)
        waited_secs = now.waited_secs - since.waited_secs
        self._status.input_wait = None if math.isnan(waited_secs) else waited_secs / (now.at - since.at)
        if self._rows_of_a_step is not None:
            self._status.examples_per_sec = self._rows_of_a_step / self._status.step_secs


class _Mark(NamedTuple):
    at: float
    step: int
    waited_secs: float
