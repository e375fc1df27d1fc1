"""Evaluate between training steps, with the current weights of the session."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow.compat.v1 as v1

from ray_estimator._engine import evaluate
from ray_estimator._jobs.jobs import EvaluateJob
from ray_estimator._jobs.worker import Tables


class EvaluateInMemory(v1.train.SessionRunHook):
    """Evaluates before the first step, every `every_steps` steps, and at the end, without a checkpoint."""

    def __init__(self, job: EvaluateJob, tables: Tables | None, every_steps: int) -> None:
        self._job = dataclasses.replace(job, warm_start=None)
        self._tables = tables
        self._timer = v1.train.SecondOrStepTimer(every_steps=every_steps)

    def after_create_session(self, session: v1.Session, coord: Any) -> None:
        if session.graph.get_collection(v1.GraphKeys.SAVEABLE_OBJECTS):
            raise ValueError(
                "InMemoryEvaluator does not support saveables other than global variables, but model_fn put some into "
                "GraphKeys.SAVEABLE_OBJECTS. Use train_and_evaluate, which evaluates checkpoints."
            )
        variables = session.graph.get_collection(v1.GraphKeys.GLOBAL_VARIABLES)
        self._variables = {variable.name: variable for variable in variables}
        self._timer.reset()
        self._steps = 0
        self._evaluate(session)

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        self._steps += 1
        if self._timer.should_trigger_for_step(self._steps):
            self._evaluate(run_context.session)

    def end(self, session: v1.Session) -> None:
        self._evaluate(session)

    def _evaluate(self, session: v1.Session) -> None:
        self._timer.update_last_triggered_step(self._steps)
        evaluate.run(self._job, self._tables, values=session.run(self._variables))
