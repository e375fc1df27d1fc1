"""Evaluation: in one pass, or as metric states of row ranges that are merged before the values are computed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine import model_cache
from ray_estimator._engine.checkpointing.local_copies import step_of
from ray_estimator._engine.checkpointing.saver import BuildRestore
from ray_estimator._engine.checkpointing.warm_start import starting_point
from ray_estimator._engine.distribution.strategy import SingleWorker
from ray_estimator._engine.events.eval_writer import write_results
from ray_estimator._engine.graph.input_barrier import write_after_input
from ray_estimator._engine.graph.mergeable_metrics import reason_not_mergeable
from ray_estimator._engine.hooks.user_hooks import made, without_waiters
from ray_estimator._engine.input.feed import Feed, open_feed
from ray_estimator._engine.model import begin_graph, call_model_fn, open_user_code, scaffold_of
from ray_estimator._engine.tf_private import sessions
from ray_estimator._jobs.jobs import EvaluateJob, UserCode
from ray_estimator._jobs.metric_state import MetricState
from ray_estimator._jobs.worker import Tables
from ray_estimator._process.heartbeat import beat
from ray_estimator.spec import ModeKeys

logger = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """The graph of an evaluation.

    Attributes:
        feed: Its input.
        spec: What model_fn returned.
        update_op: Runs once for each batch.
        values: What to fetch at the end, by metric name, global_step included.
    """

    feed: Feed
    spec: Any
    update_op: tf.Operation
    values: dict[str, Any]

    @property
    def state(self) -> list[tf.Variable]:
        """The variables that hold the metrics."""
        keys = (v1.GraphKeys.METRIC_VARIABLES, v1.GraphKeys.LOCAL_VARIABLES)
        by_name = {variable.name: variable for key in keys for variable in v1.get_collection(key)}
        return list(by_name.values())


def run(job: EvaluateJob, tables: Tables | None = None, *, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Evaluates in one pass on a fresh graph, with hooks. Runs as one task, or in the caller's process.

    build: global step, input_fn, model_fn
    initialise or restore
    until the input ends or `steps` batches ran:
        hooks.before_run(); session.run(update_ops); hooks.after_run()
    fetch every metric's value once

    Args:
        job: What to evaluate.
        tables: Its rows, if it has any.
        values: Values of variables by name, which count more than a checkpoint's.
    """
    code = open_user_code(job)
    with tf.Graph().as_default(), contextlib.ExitStack() as places, sessions.closing_event_writers():
        evaluation = build(job, code, tables)
        prefix = places.enter_context(starting_point(job))
        stop = [sessions.stop_after(job.steps)] if job.steps is not None else []
        scaffold = _scaffold(evaluation) if values is None else _scaffold_with(values, evaluation)
        own = [*made(code.hooks), *stop, *evaluation.spec.evaluation_hooks]
        own = without_waiters(own, step_of(job.checkpoint))
        hooks = [*evaluation.feed.hooks, *own, BuildRestore(scaffold), Beat()]
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


class Beat(v1.train.SessionRunHook):
    """Notes each batch, for who watches this process."""

    def before_run(self, run_context: v1.train.SessionRunContext) -> None:
        beat()


def build(job: EvaluateJob, code: UserCode, tables: Tables | None) -> Evaluation:
    """Builds the EVAL graph in the default graph."""
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
    """An EVAL graph with its session, ready to evaluate any range of rows."""

    def __init__(self, job: EvaluateJob) -> None:
        self._source = model_cache.Source()
        self._graph = tf.Graph()
        with self._graph.as_default():
            self._evaluation = build(job, open_user_code(job), self._source)
            self._state = self._evaluation.state
            scaffold = _scaffold(self._evaluation)
            own_init = [scaffold.local_init_op] if scaffold.local_init_op is not None else []
            self._reset = tf.group(v1.variables_initializer(self._state), *own_init)
            self._refusal = self._reason_against_ranges()
            self.session = model_cache.WarmSession(job, scaffold)

    def accumulate(self, tables: Tables) -> MetricState:
        """The metric state after the rows of `tables`."""
        if self._refusal is not None:
            return MetricState({}, {}, self._refusal, 0)
        with self._source.reading(tables), contextlib.closing(self._evaluation.feed):
            initial = self._start()
            num_batches = 0
            while self._update():
                num_batches += 1
            return MetricState(self._read(), initial, None, num_batches)

    def compute(self, state: MetricState) -> dict[str, Any]:
        """Every metric's value from a merged state."""
        # An initializer assigns its second input: fed, it assigns the merged value in a graph that is finalized.
        assigned = {variable.initializer.inputs[1]: state.values[variable.name] for variable in self._state}
        self.session.run([variable.initializer for variable in self._state], assigned)
        return dict(self.session.run(self._evaluation.values))

    def _start(self) -> dict[str, Any]:
        for hook in self._evaluation.feed.hooks:
            hook.after_create_session(self.session.plain, None)
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
    """The spec's Scaffold; a local_init_op of its own runs beside the default one, which the metrics need."""
    scaffold = scaffold_of(evaluation.spec)
    if scaffold.local_init_op is None:
        return scaffold
    sessions.create_eval_step()
    both = tf.group(scaffold.local_init_op, v1.train.Scaffold.default_local_init_op())
    return v1.train.Scaffold(local_init_op=both, copy_from_scaffold=scaffold)


def _scaffold_with(values: Mapping[str, Any], evaluation: Evaluation) -> v1.train.Scaffold:
    """A Scaffold that assigns `values` to variables, by name, after their initialization."""
    own = scaffold_of(evaluation.spec)
    for name in ("saver", "init_fn"):
        if getattr(own, name) is not None:
            raise ValueError(
                f"InMemoryEvaluator does not support custom {name}, but model_fn returned a Scaffold with one in EVAL. "
                "Use train_and_evaluate, which evaluates checkpoints."
            )
    taken = [variable for variable in v1.global_variables() if variable.name in values]
    feed = {variable.initializer.inputs[1]: values[variable.name] for variable in taken}

    def assign(scaffold: v1.train.Scaffold, session: v1.Session) -> None:
        session.run([variable.initializer for variable in taken], feed)

    return v1.train.Scaffold(init_fn=assign, copy_from_scaffold=_scaffold(evaluation))


def accumulate(job: EvaluateJob, tables: Tables) -> MetricState:
    """The metric state after a range of rows, on this process's warm graph. Runs as a task."""
    with model_cache.model(job, ModeKeys.EVAL, RangeEvaluator) as evaluator:
        return evaluator.accumulate(tables)


def finish(job: EvaluateJob, state: MetricState) -> dict[str, Any]:
    """The metrics of a merged state; writes them as events. Runs as a task."""
    with model_cache.model(job, ModeKeys.EVAL, RangeEvaluator) as evaluator:
        return write_results(job, evaluator.compute(state))


# Results
