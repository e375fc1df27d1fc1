"""The hook that logs training metrics to an experiment tracker."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import tensorflow.compat.v1 as v1

from ray_estimator._tf_private import sessions

logger = logging.getLogger(__name__)


class LogToTracker(v1.train.SessionRunHook):
    """Logs `loss` and `steps_per_second` every `every_steps` steps, and at the end. Runs on the chief only.

    An error of the tracker does not end training. The first one is logged.

    Args:
        log: Called with values by name, and the step. It may raise.
        every_steps: Interval in steps.
    """

    def __init__(self, log: Callable[[dict[str, float], int], None], every_steps: int) -> None:
        self._log = log
        self._every_steps = every_steps
        self._has_warned = False

    def begin(self) -> None:
        self._timer = v1.train.SecondOrStepTimer(every_steps=self._every_steps)
        self._global_step = sessions.global_step_read()
        # The engine adds the loss of the whole step after those of the model.
        self._loss = v1.get_collection(v1.GraphKeys.LOSSES)[-1]
        self._last_loss: float | None = None
        self._logged_step: int | None = None

    def before_run(self, run_context: v1.train.SessionRunContext) -> v1.train.SessionRunArgs:
        return v1.train.SessionRunArgs((self._global_step, self._loss))

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        step_before, self._last_loss = int(run_values.results[0]), float(run_values.results[1])
        if self._timer.should_trigger_for_step(step_before + 1):
            self._log_metrics(run_context.session, self._last_loss)

    def end(self, session: v1.Session) -> None:
        if self._last_loss is not None:
            self._log_metrics(session, self._last_loss)

    def _log_metrics(self, session: v1.Session, loss: float) -> None:
        step = int(session.run(self._global_step))
        if step == self._logged_step:
            return
        secs, steps = self._timer.update_last_triggered_step(step)
        self._logged_step = step
        values = {"loss": loss} if not secs else {"loss": loss, "steps_per_second": steps / secs}
        try:
            self._log(values, step)
        except Exception as error:  # of any tracker
            if not self._has_warned:
                logger.warning("Logging metrics of step %d to the tracker failed; training continues: %s", step, error)
            self._has_warned = True


class MlflowLog:
    """Logs metrics to one run of MLflow."""

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri)
        self._run_id = run_id

    def __call__(self, values: dict[str, float], step: int) -> None:
        """Log the values in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, [Metric(name, value, now, step) for name, value in values.items()])
