"""Evaluate in one pass, or accumulate metric states over row ranges, which are merged before the final values."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine import model_cache
from ray_estimator._engine.checkpointing.local_copies import step_of
from ray_estimator._engine.checkpointing.saver import BuildRestore
from ray_estimator._engine.checkpointing.warm_start import checkpoint_or_warm_start
from ray_estimator._engine.distribution.strategy import SingleWorker
from ray_estimator._engine.events.eval_writer import write_results
from ray_estimator._engine.graph.input_barrier import write_after_input
from ray_estimator._engine.graph.mergeable_metrics import reason_not_mergeable
from ray_estimator._engine.hooks.user_hooks import create_hooks, without_step_waiters
from ray_estimator._engine.input.feed import Feed, open_feed
from ray_estimator._engine.model import begin_graph, call_model_fn, open_user_code, scaffold_of
from ray_estimator._jobs.jobs import EvaluateJob, UserCode
from ray_estimator._jobs.metric_state import MetricState
from ray_estimator._jobs.worker import Tables
from ray_estimator._process.heartbeat import record_heartbeat
from ray_estimator._tf_private import sessions
from ray_estimator.spec import ModeKeys


@dataclass
class Evaluation:
    """The graph of an evaluation.

    Attributes:
        feed: The input.
        spec: The EstimatorSpec that model_fn returned.
        update_op: Runs once per batch.
        values: Tensors to fetch at the end, by metric name, including global_step.
    """

    feed: Feed
    spec: Any
    update_op: tf.Operation
    values: dict[str, Any]

    @property
    def state(self) -> list[tf.Variable]:
        """The variables that hold the state of the metrics."""
        keys = (v1.GraphKeys.METRIC_VARIABLES, v1.GraphKeys.LOCAL_VARIABLES)
        by_name = {variable.name: variable for key in keys for variable in v1.get_collection(key)}
        return list(by_name.values())


def run(job: EvaluateJob, tables: Tables | None = None, *, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Evaluate in one pass on a new graph, with hooks. Runs as one task, or in the caller's process.

    build: global step, input_fn, model_fn
    initialize or restore
    until the input ends or `steps` batches ran:
        hooks.before_run(); session.run(update_ops); hooks.after_run()
    fetch every metric's value once

    Args:
        job: The evaluation.
        tables: The rows, if the input is a Ray Dataset.
        values: Values of variables by name, which take precedence over a checkpoint.
    """
    code = open_user_code(job)
    with tf.Graph().as_default(), contextlib.ExitStack() as stack, sessions.closing_event_writers():
        evaluation = build(job, code, tables)
        prefix = stack.enter_context(checkpoint_or_warm_start(job))
        stop = [sessions.stop_after(job.steps)] if job.steps is not None else []
        scaffold = _scaffold(evaluation) if values is None else _scaffold_with(values, evaluation)
        user_hooks = [*create_hooks(code.hooks), *stop, *evaluation.spec.evaluation_hooks]
        user_hooks = without_step_waiters(user_hooks, step_of(job.checkpoint))
        hooks = [*evaluation.feed.hooks, *user_hooks, BuildRestore(scaffold), Heartbeat()]
        with evaluation.feed.explaining_errors(), contextlib.closing(evaluation.feed):
            results = sessions.evaluate_once(
                checkpoint_path=prefix,
                scaffold=scaffold,
                eval_ops=evaluation.update_op,
                final_ops=evaluation.values,
                hooks=hooks,
                config=job.config.resolved_session_config(),
            )
    return write_results(job, results)


class Heartbeat(v1.train.SessionRunHook):
    """Records the start of each batch for the watchdog of this process."""

    def before_run(self, run_context: v1.train.SessionRunContext) -> None:
        record_heartbeat()


def build(job: EvaluateJob, code: UserCode, tables: Tables | None) -> Evaluation:
    """Build the EVAL graph in the default graph."""
    global_step = begin_graph(job)
    feed = open_feed(job, code, ModeKeys.EVAL, tables)
    model = call_model_fn(job, code, feed.features, feed.labels, ModeKeys.EVAL, SingleWorker())
    metrics = {**model.metrics, "loss": v1.metrics.mean(model.loss)}
    advance = [feed.advance] if feed.advance is not None else []
    update_op = tf.group(*advance, *(metrics[name][1] for name in sorted(metrics)))
    write_after_input(update_op)
    values = {name: value for name, (value, _) in metrics.items()}
    return Evaluation(feed, model.spec, update_op, {**values, v1.GraphKeys.GLOBAL_STEP: global_step})


# Ranges


class RangeEvaluator:
    """An EVAL graph and its session, which evaluates ranges of rows."""

    def __init__(self, job: EvaluateJob) -> None:
        self._rows = model_cache.SwitchableRows()
        self._graph = tf.Graph()
        with self._graph.as_default():
            self._evaluation = build(job, open_user_code(job), self._rows)
            self._state = self._evaluation.state
            scaffold = _scaffold(self._evaluation)
            local_init = [scaffold.local_init_op] if scaffold.local_init_op is not None else []
            self._reset = tf.group(v1.variables_initializer(self._state), *local_init)
            self._unsupported = self._reason_against_ranges()
            self.session = model_cache.WarmSession(job, scaffold)

    def accumulate(self, tables: Tables) -> MetricState:
        """Return the metric state after the rows of `tables`."""
        if self._unsupported is not None:
            return MetricState({}, {}, self._unsupported, 0)
        with self._rows.reading(tables), contextlib.closing(self._evaluation.feed):
            initial = self._start()
            num_batches = 0
            while self._update():
                num_batches += 1
            return MetricState(self._read(), initial, None, num_batches)

    def compute(self, state: MetricState) -> dict[str, Any]:
        """Return the value of every metric from a merged state."""
        # The graph is finalized, so it cannot get assign ops. Feeding the second input of an initializer assigns it.
        assigned = {variable.initializer.inputs[1]: state.values[variable.name] for variable in self._state}
        self.session.run([variable.initializer for variable in self._state], assigned)
        return dict(self.session.run(self._evaluation.values))

    def _start(self) -> dict[str, Any]:
        for hook in self._evaluation.feed.hooks:
            hook.after_create_session(self.session.raw_session, None)
        self.session.run(self._reset)
        return self._read()

    def _update(self) -> bool:
        try:
            with self._evaluation.feed.explaining_errors():
                self.session.run(self._evaluation.update_op)
        except tf.errors.OutOfRangeError:
            return False
        return True

    def _read(self) -> dict[str, Any]:
        return dict(self.session.run({variable.name: variable for variable in self._state}))

    def _reason_against_ranges(self) -> str | None:
        if self._evaluation.spec.evaluation_hooks:
            return "model_fn returned evaluation_hooks"
        return reason_not_mergeable(self._evaluation.update_op, self._evaluation.values, self._state)


def _scaffold(evaluation: Evaluation) -> v1.train.Scaffold:
    """Return the spec's Scaffold. Its local_init_op is grouped with the default one, which the metrics need."""
    scaffold = scaffold_of(evaluation.spec)
    if scaffold.local_init_op is None:
        return scaffold
    sessions.create_eval_step()
    both = tf.group(scaffold.local_init_op, v1.train.Scaffold.default_local_init_op())
    return v1.train.Scaffold(local_init_op=both, copy_from_scaffold=scaffold)


def _scaffold_with(values: Mapping[str, Any], evaluation: Evaluation) -> v1.train.Scaffold:
    """Return a Scaffold that assigns `values` to variables, by name, after their initialization."""
    own = scaffold_of(evaluation.spec)
    for name in ("saver", "init_fn"):
        if getattr(own, name) is not None:
            raise ValueError(
                f"InMemoryEvaluator does not support custom {name}, but model_fn returned a Scaffold with one in EVAL. "
                "Use train_and_evaluate, which evaluates checkpoints."
            )
    assigned = [variable for variable in v1.global_variables() if variable.name in values]
    feed = {variable.initializer.inputs[1]: values[variable.name] for variable in assigned}

    def assign(scaffold: v1.train.Scaffold, session: v1.Session) -> None:
        session.run([variable.initializer for variable in assigned], feed)

    return v1.train.Scaffold(init_fn=assign, copy_from_scaffold=_scaffold(evaluation))


def accumulate(job: EvaluateJob, tables: Tables) -> MetricState:
    """Return the metric state of a range of rows, using this process's cached model. Runs as a task."""
    with model_cache.model(job, ModeKeys.EVAL, RangeEvaluator) as evaluator:
        return evaluator.accumulate(tables)


def finish(job: EvaluateJob, state: MetricState) -> dict[str, Any]:
    """Return the metrics of a merged state, and write them to an event file. Runs as a task."""
    with model_cache.model(job, ModeKeys.EVAL, RangeEvaluator) as evaluator:
        return write_results(job, evaluator.compute(state))
