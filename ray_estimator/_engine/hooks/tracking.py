"""The hook that tells a tracker of experiments how training goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import tensorflow.compat.v1 as v1

from ray_estimator._engine.tf_private import sessions

logger = logging.getLogger(__name__)


class LogToTracker(v1.train.SessionRunHook):
    """Logs `loss` and `steps_per_second` every `every_steps` steps, and at the end. Runs on the chief alone.

    A tracker that does not answer is no reason to end training: that is logged, once.

    Args:
        log: Takes values by name, and the step. It may raise.
        every_steps: How often.
    """

    def __init__(self, log: Callable[[dict[str, float], int], None], every_steps: int) -> None:
        self._log = log
        self._every_steps = every_steps
        self._has_warned = False

    def begin(self) -> None:
        self._timer = v1.train.SecondOrStepTimer(every_steps=self._every_steps)
        self._global_step = sessions.global_step_read()
        # The engine has added the loss of the whole step behind those of the model.
        self._loss = v1.get_collection(v1.GraphKeys.LOSSES)[-1]
        self._last_loss: float | None = None
        self._logged_step: int | None = None

    def before_run(self, run_context: v1.train.SessionRunContext) -> v1.train.SessionRunArgs:
        return v1.train.SessionRunArgs((self._global_step, self._loss))

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        step_before, self._last_loss = int(run_values.results[0]), float(run_values.results[1])
        if self._timer.should_trigger_for_step(step_before + 1):
            self._tell(run_context.session, self._last_loss)

    def end(self, session: v1.Session) -> None:
        if self._last_loss is not None:
            self._tell(session, self._last_loss)

    def _tell(self, session: v1.Session, loss: float) -> None:
        step = int(session.run(self._global_step))
        if step == self._logged_step:
            return
        secs, steps = self._timer.update_last_triggered_step(step)
        self._logged_step = step
        values = {"loss": loss} if not secs else {"loss": loss, "steps_per_second": steps / secs}
        try:
            self._log(values, step)
        except Exception as error:
            if not self._has_warned:
                logger.warning("The tracker took no metrics of step %d; training goes on: %s", step, error)
            self._has_warned = True


class ToMlflow:
    """Logs metrics to one run of MLflow."""

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri)
        self._run_id = run_id

    def __call__(self, values: dict[str, float], step: int) -> None:
        """Sends them in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, [Metric(name, value, now, step) for name, value in values.items()])
