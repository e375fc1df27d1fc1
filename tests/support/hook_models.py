"""A model and hooks for the tests of TensorFlow's own hooks, importable by workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tensorflow as tf

from ray_estimator import EstimatorSpec, ModeKeys
from support.probes import note

v1 = tf.compat.v1


def slope_model_fn(features: Any, labels: Any, mode: str) -> EstimatorSpec:
    """A weight that falls by a tenth of `slope` a step: 1 unless a hook feeds the placeholder.

    In the graph: `slope`, `seen` (the mean of the features) and `line` (weight times slope), all scalars.
    """
    slope = v1.placeholder_with_default(1.0, [], name="slope")
    seen = tf.reduce_mean(features, name="seen")
    weight = v1.get_variable("weight", [], initializer=v1.zeros_initializer())
    line = tf.multiply(weight, slope, name="line")
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions=features + line)
    if mode == ModeKeys.EVAL:
        metrics = {"line": v1.metrics.mean(line), "seen": v1.metrics.mean(seen)}
        return EstimatorSpec(mode, loss=line, eval_metric_ops=metrics)
    train_op = v1.train.GradientDescentOptimizer(0.1).minimize(line, v1.train.get_global_step())
    return EstimatorSpec(mode, loss=line, train_op=train_op)


def counting_input_fn(num_batches: int = 6) -> tf.data.Dataset:
    """Batches of two equal numbers: 0, 1, 2 and so on, with labels that nobody reads."""
    return tf.data.Dataset.range(num_batches).map(lambda n: (tf.fill([2], tf.cast(n, tf.float32)), 0.0))


class NotingListener(v1.train.CheckpointSaverListener):
    """Notes (method, global step) of each call in a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def begin(self) -> None:
        note(self._folder, "listener", ["begin", None])

    def before_save(self, session: Any, global_step_value: Any) -> None:
        note(self._folder, "listener", ["before_save", int(global_step_value)])

    def after_save(self, session: Any, global_step_value: Any) -> None:
        note(self._folder, "listener", ["after_save", int(global_step_value)])

    def end(self, session: Any, global_step_value: Any) -> None:
        note(self._folder, "listener", ["end", int(global_step_value)])


class NotingFinalOps(v1.train.FinalOpsHook):
    """Notes the final values in a folder, since a worker's copy of a hook does not come back."""

    def __init__(self, folder: str, final_ops: Any) -> None:
        super().__init__(final_ops)
        self._folder = folder

    def end(self, session: Any) -> None:
        super().end(session)
        note(self._folder, "final", [float(value) for value in tf.nest.flatten(self.final_ops_values)])


class EveryOtherStep(v1.train.SessionRunHook):
    """Notes `line` at the steps at which its `SecondOrStepTimer` triggers."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._timer = v1.train.SecondOrStepTimer(every_steps=2)
        self._step = 0

    def before_run(self, run_context: Any) -> Any:
        self._due = self._timer.should_trigger_for_step(self._step)
        return v1.train.SessionRunArgs("line:0") if self._due else None

    def after_run(self, run_context: Any, run_values: Any) -> None:
        if self._due:
            self._timer.update_last_triggered_step(self._step)
            note(self._folder, "line", [self._step, float(run_values.results)])
        self._step += 1


def timelines(folder: Any) -> dict[int, list[str]]:
    """What `ProfilerHook` wrote: the operations that it saw, by step."""
    seen = {}
    for path in Path(folder).glob("timeline-*.json"):
        traced = [event.get("args", {}) for event in json.loads(path.read_text())["traceEvents"]]
        seen[int(path.stem.rpartition("-")[2])] = [args["op"] for args in traced if "op" in args]
    return seen
