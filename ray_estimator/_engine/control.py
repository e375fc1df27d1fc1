"""How the ranks of a group agree, in the step itself, to go on, to stop, or to save.

Each step all-reduces one small vector, `[loss, stop, save, next batch missing]`. A rank that left its loop alone
would block the others until its process dies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine import internals
from ray_estimator._engine.collectives import chain
from ray_estimator._engine.distribution import Distribution
from ray_estimator._engine.feed import Feed
from ray_estimator._engine.model import Model, writes_global_step


@dataclass(frozen=True)
class Verdict:
    """What the ranks agreed on in a step."""

    loss: float
    stop: bool
    save: bool

    @property
    def loss_is_nan(self) -> bool:
        """Whether any rank's loss is not a number."""
        return math.isnan(self.loss)


class Control:
    """The control vector of a training graph, and its global step.

    Attributes:
        global_step: int64 scalar, this worker's copy, as it is before the step.
        step_after: int64 scalar, the global step once the training step has ended; the same on every rank.
        stop: Feed 1.0 on any rank to stop all.
        save: Feed 1.0 on the chief to save on all.
        vector: float32 `[4]`, summed over the ranks; of a rank alone, which has nobody to agree with, its loss.
        collectives: The collectives of a step, in the one order in which every rank runs them.
        loss: The loss to report: float scalar, mean over the ranks (or sum, if the model sums).
    """

    def __init__(self, model: Model, feed: Feed, distribution: Distribution) -> None:
        self._alone = distribution.num_replicas == 1
        self._scale = 1.0 if model.loss_is_summed else 1.0 / distribution.num_replicas
        self.stop = v1.placeholder_with_default(np.float32(0), [], name="control/stop")
        self.save = v1.placeholder_with_default(np.float32(0), [], name="control/save")
        loss: Any = model.loss
        if self._alone:
            self.vector = self.loss = loss
        else:
            missing = feed.next_missing if feed.next_missing is not None else tf.constant(0.0)
            signals = [tf.cast(loss, tf.float32), self.stop, self.save, missing]
            self.vector = distribution.sum(tf.stack(signals))
            self.loss = tf.multiply(self.vector[0], self._scale, name="control/loss")
        local_step = distribution.localize(v1.train.get_global_step())
        self.global_step = local_step.read_value()
        _read_before_the_step([self.global_step.op, *internals.global_step_reads()])
        with tf.control_dependencies([model.train_op]):
            self.step_after = local_step.read_value()
        self.collectives = chain([model.train_op, self.vector.op])

    def read(self, vector: np.ndarray) -> Verdict:
        """What a fetched `vector` means."""
        if self._alone:
            return Verdict(float(vector), stop=False, save=False)
        loss, stop, save, missing = (float(value) for value in vector)
        return Verdict(loss * self._scale, stop > 0 or missing > 0, save > 0)


def _read_before_the_step(reads: list[tf.Operation]) -> None:
    """Without an order, hooks find the global step as it was or as it will be, and each rank something else."""
    for op in v1.get_default_graph().get_operations():
        if writes_global_step(op):
            internals.run_after(op, [read for read in reads if not internals.in_v1_control_flow(read)])


class StopTogether(v1.train.SessionRunHook):
    """Turns one rank's request to stop, or the end of its input, into a stop of all at the same step.

    It must be the last hook: it takes back what earlier hooks requested in this step, tells the others in the next
    one, and all stop there. A target that every rank knows, such as max_steps, needs no such round.
    """

    def __init__(self, control: Control, last_step: int | None) -> None:
        self._control = control
        self._last_step = last_step
        self._wants_stop = False

    def before_run(self, run_context: v1.train.SessionRunContext) -> v1.train.SessionRunArgs:
        feed = {self._control.stop: np.float32(1)} if self._wants_stop else None
        return v1.train.SessionRunArgs((self._control.vector, self._control.step_after), feed)

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        vector, step = run_values.results
        if self._control.read(vector).stop:
            run_context.request_stop()
        elif run_context.stop_requested and not (self._last_step is not None and step >= self._last_step):
            internals.postpone_stop(run_context)
            self._wants_stop = True
