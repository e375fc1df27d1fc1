"""The hook that lets every rank take part in summaries that hold collectives."""

from __future__ import annotations

from typing import Any

import tensorflow.compat.v1 as v1

from ray_estimator._engine.distribution.collectives import chain_after
from ray_estimator._engine.hooks.control import Control


class RunCollectiveSummaries(v1.train.SessionRunHook):
    """Runs the summaries on the other ranks whenever the chief writes them, if they hold collectives.

    They do where a summary reads a variable whose copies are reduced on read. The hook must begin after every hook
    that may add a summary.
    """

    def __init__(self, every_steps: int, scaffold: v1.train.Scaffold, control: Control, is_chief: bool) -> None:
        self._timer = v1.train.SecondOrStepTimer(every_steps=every_steps)
        self._scaffold = scaffold
        self._control = control
        self._is_chief = is_chief
        self._takes_part = False
        self._next_step: int | None = None

    def begin(self) -> None:
        self._summary_op = self._scaffold.summary_op
        if self._summary_op is None:
            # As Scaffold.finalize() does when the session is created.
            self._summary_op = v1.train.Scaffold.get_or_default(
                "summary_op", v1.GraphKeys.SUMMARY_OP, v1.summary.merge_all
            )
        if self._summary_op is not None:
            collectives = chain_after(self._control.collectives, [self._summary_op.op])
            self._takes_part = bool(collectives) and not self._is_chief

    def before_run(self, run_context: v1.train.SessionRunContext) -> v1.train.SessionRunArgs | None:
        if not self._takes_part:
            return None
        self._is_due = self._next_step is None or self._timer.should_trigger_for_step(self._next_step)
        fetches = {"global_step": self._control.global_step}
        return v1.train.SessionRunArgs({**fetches, "summary": self._summary_op} if self._is_due else fetches)

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        if not self._takes_part:
            return
        step = int(run_values.results["global_step"])
        if self._next_step is None or self._is_due:
            self._timer.update_last_triggered_step(step)
        self._next_step = step + 1
