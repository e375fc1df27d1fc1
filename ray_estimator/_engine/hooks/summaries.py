"""The hook that writes summaries."""

from __future__ import annotations

from typing import Any

import tensorflow.compat.v1 as v1

from ray_estimator._engine.distribution.collectives import chain_after
from ray_estimator._engine.hooks.control import Control


class SummarizeTogether(v1.train.SessionRunHook):
    """Lets every rank run the summaries that are collectives, at the steps at which the chief's hook writes them.

    A summary of a variable that is reduced when read is one. It must begin after every hook that may add a summary.
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
            # What the Scaffold will find when the session is made.
            self._summary_op = v1.train.Scaffold.get_or_default(
                "summary_op", v1.GraphKeys.SUMMARY_OP, v1.summary.merge_all
            )
        if self._summary_op is not None:
            added = chain_after(self._control.collectives, [self._summary_op.op])
            self._takes_part = bool(added) and not self._is_chief

    def before_run(self, run_context: v1.train.SessionRunContext) -> v1.train.SessionRunArgs | None:
        if not self._takes_part:
            return None
        self._due = self._next_step is None or self._timer.should_trigger_for_step(self._next_step)
        fetches = {"global_step": self._control.global_step}
        return v1.train.SessionRunArgs({**fetches, "summary": self._summary_op} if self._due else fetches)

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        if not self._takes_part:
            return
        step = int(run_values.results["global_step"])
        if self._next_step is None or self._due:
            self._timer.update_last_triggered_step(step)
        self._next_step = step + 1
