"""How the ranks of a group agree within each step to continue, to stop, or to save.

Each step all-reduces one small vector, `[loss, stop, save, next batch missing]`. All ranks leave the loop at the same
step: if one left alone, the others would block in their next collective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._data.position import Position
from ray_estimator._engine.distribution.collectives import chain
from ray_estimator._engine.distribution.strategy import Distribution
from ray_estimator._engine.input.feed import Feed
from ray_estimator._engine.model import Model, writes_global_step
from ray_estimator._tf_private import graphs, sessions


@dataclass(frozen=True)
class StepDecision:
    """The decision of all ranks in one step. `loss` is None before the first step."""

    loss: float | None
    stop: bool
    save: bool

    @property
    def loss_is_nan(self) -> bool:
        """Whether the loss of any rank is NaN."""
        return self.loss is not None and math.isnan(self.loss)


class Control:
    """The control vector of a training graph, and its global step.

    Attributes:
        global_step: int64 scalar, this worker's copy, read before the step.
        stop: Feed 1.0 on any rank to stop all ranks.
        save: Feed 1.0 on the chief to save on all ranks.
        collectives: The collectives of a step, in the order in which every rank runs them.
        loss: The loss to report: float scalar, mean over the ranks (or sum, if the model sums).
        fetches: The tensors that `update` takes: the control vector (float32 `[4]`, summed over the ranks; with one
            rank, its loss), the global step after the training step (the same on every rank), and the seconds that
            the step waited for its batch.
        step: The global step after the last step.
        decision: The decision of the last step.
        num_runs: Number of steps that this session has run.
        input_ended: Whether the input has no batch for another step.
        cut_short: On the chief, whether the driver asked to stop before the target and the end of the input.
        waited_secs: Total seconds that the steps of this session waited for their batches; NaN if unknown.
    """

    def __init__(self, model: Model, feed: Feed, distribution: Distribution) -> None:
        self._feed = feed
        self._is_single_rank = distribution.num_replicas == 1
        self._scale = 1.0 if model.loss_is_summed else 1.0 / distribution.num_replicas
        self.step = 0
        self.num_runs = 0
        self.input_ended = False
        self.cut_short = False
        self.waited_secs = 0.0
        self.decision = StepDecision(loss=None, stop=False, save=False)
        self.stop = v1.placeholder_with_default(np.float32(0), [], name="control/stop")
        self.save = v1.placeholder_with_default(np.float32(0), [], name="control/save")
        loss: Any = model.loss
        if self._is_single_rank:
            vector = self.loss = tf.identity(loss, name="control/loss")
        else:
            missing = feed.next_missing if feed.next_missing is not None else tf.constant(0.0)
            signals = [tf.cast(loss, tf.float32), self.stop, self.save, missing]
            vector = distribution.sum_in_step(tf.stack(signals), model.train_op)
            self.loss = tf.multiply(vector[0], self._scale, name="control/loss")
        local_step = distribution.localize(v1.train.get_global_step())
        self.global_step = local_step.read_value()
        _order_before_step([self.global_step.op, *sessions.global_step_reads()])
        with tf.control_dependencies([model.train_op]):
            step_after = tf.identity(local_step.read_value(), name="control/step_after")
        self.fetches = (vector, step_after, _secs_waited(feed.take))
        self.collectives = chain([model.train_op, vector.op])

    @property
    def position(self) -> Position | None:
        """The position in the input after the last step; None if the input cannot tell."""
        return None if self._feed.position_after is None else self._feed.position_after(self.num_runs)

    def update(self, vector: np.ndarray, step_after: np.ndarray, waited_secs: np.ndarray) -> None:
        """Store the values of `fetches` from one step."""
        self.step = int(step_after)
        self.waited_secs += float(waited_secs)
        self.num_runs += 1
        if self._is_single_rank:
            self.decision = StepDecision(float(vector), stop=False, save=False)
            return
        loss, stop, save, missing = (float(value) for value in vector)
        self.input_ended = missing > 0
        self.decision = StepDecision(loss * self._scale, stop > 0 or missing > 0, save > 0)


def _secs_waited(take: tf.Operation | None) -> tf.Tensor:
    """Return the seconds that a step waits for its batch: float64 scalar, NaN if unknown."""
    if take is None or graphs.ops_are_deterministic():
        return tf.constant(math.nan, tf.float64)
    with tf.device("/cpu:0"):
        began = tf.timestamp()
        graphs.run_after(take, [began.op])
        with tf.control_dependencies([take]):
            return tf.timestamp() - began


def _order_before_step(reads: list[tf.Operation]) -> None:
    """Make the reads run before the global step changes. Unordered, they might see either value, and ranks differ."""
    for op in v1.get_default_graph().get_operations():
        if writes_global_step(op):
            graphs.run_after(op, [read for read in reads if not graphs.in_v1_control_flow(read)])


class ReadControl(v1.train.SessionRunHook):
    """Fetches the decision of each step, once for all hooks that use it. It must be the first hook."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._args = v1.train.SessionRunArgs(control.fetches)

    def before_run(self, run_context: v1.train.SessionRunContext) -> v1.train.SessionRunArgs:
        return self._args

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        self._control.update(*run_values.results)


class StopTogether(v1.train.SessionRunHook):
    """Turns one rank's request to stop, or the end of its input, into a stop of all ranks at the same step.

    It must be the last hook: it withdraws the request of an earlier hook, sends it to the other ranks in the next
    step, and all ranks stop after that one. A target that every rank knows, such as max_steps, needs no extra step.
    """

    def __init__(self, control: Control, last_step: int | None) -> None:
        self._control = control
        self._last_step = last_step
        self._wants_stop = False

    def before_run(self, run_context: v1.train.SessionRunContext) -> v1.train.SessionRunArgs | None:
        return v1.train.SessionRunArgs(None, {self._control.stop: np.float32(1)}) if self._wants_stop else None

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: Any) -> None:
        at_target = self._last_step is not None and self._control.step >= self._last_step
        if self._control.decision.stop:
            run_context.request_stop()
        elif run_context.stop_requested and not at_target:
            sessions.postpone_stop(run_context)
            self._wants_stop = True
