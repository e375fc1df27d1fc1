"""Predict: stream batches from one session, or return the batches of one range of rows."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._engine import model_cache
from ray_estimator._engine.checkpointing.local_copies import step_of
from ray_estimator._engine.checkpointing.saver import BuildRestore
from ray_estimator._engine.checkpointing.warm_start import checkpoint_or_warm_start
from ray_estimator._engine.distribution.strategy import SingleWorker
from ray_estimator._engine.graph.operations import written_by
from ray_estimator._engine.graph.traversal import ancestors
from ray_estimator._engine.hooks.user_hooks import create_hooks, without_step_waiters
from ray_estimator._engine.input.feed import Feed, open_feed
from ray_estimator._engine.model import begin_graph, call_model_fn, open_user_code, scaffold_of
from ray_estimator._jobs.jobs import PredictJob, UserCode
from ray_estimator._jobs.results import PredictedRange
from ray_estimator._jobs.worker import Tables
from ray_estimator._process.heartbeat import record_heartbeat
from ray_estimator._tf_private import sessions
from ray_estimator.spec import ModeKeys

logger = logging.getLogger(__name__)

_PART_BYTES = 4 * 2**20


@dataclass
class Prediction:
    """The graph of a prediction.

    Attributes:
        feed: The input.
        spec: The EstimatorSpec that model_fn returned.
        fetches: (predictions, op that advances the input), to run once per batch.
    """

    feed: Feed
    spec: Any
    fetches: tuple[Any, tf.Operation]


def build(job: PredictJob, code: UserCode, tables: Tables | None) -> Prediction:
    """Build the PREDICT graph in the default graph."""
    begin_graph(job)
    feed = open_feed(job, code, ModeKeys.PREDICT, tables)
    model = call_model_fn(job, code, feed.features, None, ModeKeys.PREDICT, SingleWorker())
    predictions = _selected(model.spec.predictions, job.predict_keys)
    return Prediction(feed, model.spec, (predictions, feed.advance or tf.no_op()))


def _selected(predictions: Any, predict_keys: tuple[str, ...] | None) -> Any:
    if predict_keys is None:
        return predictions
    if not isinstance(predictions, dict):
        raise ValueError("predict_keys argument is not valid in case of non-dict predictions.")
    selected = {key: value for key, value in predictions.items() if key in predict_keys}
    if not selected:
        raise ValueError(f"Expected to run at least one output from {list(predictions)}, provided {predict_keys}.")
    return selected


def stream(job: PredictJob, tables: Tables | None = None) -> Generator[Any]:
    """Predict batch by batch on a new graph, with hooks. Runs as one task, or in the caller's process.

    Between batches, no thread-local state of TensorFlow is kept, so that several generators may be used in turn.
    """
    graph = tf.Graph()
    with sessions.closing_event_writers(), contextlib.ExitStack() as stack:
        with graph.as_default():
            session, fetches, feed = _open_session(job, tables, stack)
        stack.callback(feed.close)
        stack.push(functools.partial(_close_session, graph, session))
        while True:
            with graph.as_default():
                if session.should_stop():
                    return
                record_heartbeat()
                try:
                    with feed.explaining_errors():
                        batch, _ = session.run(fetches)
                except (tf.errors.OutOfRangeError, StopIteration):
                    return
            yield batch


def _open_session(
    job: PredictJob, tables: Tables | None, stack: contextlib.ExitStack
) -> tuple[v1.train.SingularMonitoredSession, Any, Feed]:
    code = open_user_code(job)
    prediction = build(job, code, tables)
    if not prediction.feed.ends:
        logger.warning(
            "Input graph does not use tf.data.Dataset or contain a QueueRunner. That means predict yields forever. "
            "This is probably a mistake."
        )
    prefix = stack.enter_context(checkpoint_or_warm_start(job))
    scaffold = scaffold_of(prediction.spec)
    user_hooks = [*create_hooks(code.hooks), *prediction.spec.prediction_hooks]
    user_hooks = without_step_waiters(user_hooks, step_of(job.checkpoint))
    session = v1.train.SingularMonitoredSession(
        hooks=[*prediction.feed.hooks, *user_hooks, BuildRestore(scaffold)],
        scaffold=scaffold,
        config=job.config.resolved_session_config(),
        checkpoint_filename_with_path=prefix,
    )
    return session, prediction.fetches, prediction.feed


def _close_session(graph: tf.Graph, session: v1.train.SingularMonitoredSession, *error: Any) -> bool | None:
    """Close the session with its graph as default. It ends the hooks unless an error or GeneratorExit closes it."""
    with graph.as_default():
        suppresses: bool | None = session.__exit__(*error)
        return suppresses


class RangePredictor:
    """A PREDICT graph and its session, which predicts ranges of rows."""

    def __init__(self, job: PredictJob) -> None:
        self._rows = model_cache.SwitchableRows()
        with tf.Graph().as_default():
            self._prediction = build(job, open_user_code(job), self._rows)
            self._unsupported = self._reason_against_ranges()
            self.session = model_cache.WarmSession(job, scaffold_of(self._prediction.spec))

    def predict(self, tables: Tables) -> Iterator[PredictedRange]:
        """Yield the predictions for `tables`, in order, in parts of a few MiB."""
        if self._unsupported is not None:
            yield PredictedRange((), self._unsupported)
            return
        with self._rows.reading(tables), contextlib.closing(self._prediction.feed):
            for hook in self._prediction.feed.hooks:
                hook.after_create_session(self.session.raw_session, None)
            yield from map(PredictedRange, _parts(self._batches()))

    def _reason_against_ranges(self) -> str | None:
        if self._prediction.spec.prediction_hooks:
            return "model_fn returned prediction_hooks"
        predictions, _ = self._prediction.fetches
        tensors = tf.nest.flatten(predictions, expand_composites=True)
        for op in ancestors(tensor.op for tensor in tensors):
            for variable in written_by(op):
                return f"a prediction writes {variable.op.name!r}, which the next batch may read"
        return None

    def _batches(self) -> Iterator[Any]:
        with contextlib.suppress(tf.errors.OutOfRangeError):
            while True:
                with self._prediction.feed.explaining_errors():
                    batch, _ = self.session.run(self._prediction.fetches)
                yield batch


def _parts(batches: Iterable[Any]) -> Iterator[list[Any]]:
    """Yield groups of batches of at least `_PART_BYTES`, except the last."""
    part: list[Any] = []
    num_bytes = 0
    for batch in batches:
        part.append(batch)
        num_bytes += sum(np.asarray(value).nbytes for value in tf.nest.flatten(batch))
        if num_bytes >= _PART_BYTES:
            yield part
            part, num_bytes = [], 0
    yield part


def predict_parts(job: PredictJob, tables: Tables) -> Generator[PredictedRange]:
    """Yield the predictions of a range of rows in parts, using this process's cached model. Runs as a task."""
    with model_cache.model(job, ModeKeys.PREDICT, RangePredictor) as predictor:
        yield from predictor.predict(tables)


def predict_range(job: PredictJob, tables: Tables) -> PredictedRange:
    """Return the predictions of a range of rows."""
    parts = list(predict_parts(job, tables))
    return PredictedRange([batch for part in parts for batch in part.batches], parts[0].one_task_reason)
