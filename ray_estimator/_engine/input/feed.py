"""The features and labels of a graph, from an input_fn or the rows of a Ray Dataset."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._data.position import Position
from ray_estimator._engine.graph.operations import takes_from_iterator
from ray_estimator._engine.input.rows import PREFETCH_BATCHES, RowReader, dataset_of_rows
from ray_estimator._jobs.jobs import ModelJob, UserCode
from ray_estimator._jobs.worker import Tables
from ray_estimator._validation.user_functions import call_with_accepted
from ray_estimator.spec import ModeKeys


@dataclass
class Feed:
    """The input of one graph.

    Attributes:
        features: The features passed to model_fn.
        labels: The labels passed to model_fn, or None.
        hooks: Hooks that start the input. They run before the user's hooks.
        next_missing: float32 scalar, 1.0 if no batch follows this one. None: the input cannot tell.
        first_ready: Returns whether the input has a first batch. Called in the session once, before the first step.
        ends: Whether the input can end by itself.
        take: The operation that waits for the batch of a step. None for plain tensors.
        advance: Takes the batch even if the model does not use it, so that its input ends all the same. None for plain
            tensors.
        pipeline: The initializable iterator and the dataset that input_fn returned. None for plain tensors.
        position_after: Returns the position in the input after a number of steps. None: unknown.
        save_iterators: Returns the iterator states to save with a checkpoint, one per rank. Every rank calls it with
            its session, the step, and whether the input has ended. None: nothing to save.
        reader: Reads the rows of a Ray Dataset. None for an input_fn.
    """

    features: Any
    labels: Any
    hooks: list[v1.train.SessionRunHook] = field(default_factory=list)
    next_missing: tf.Tensor | None = None
    first_ready: Callable[[v1.Session], bool] = lambda session: True
    ends: bool = True
    take: tf.Operation | None = None
    advance: tf.Operation | None = None
    pipeline: tuple[Any, tf.data.Dataset] | None = None
    position_after: Callable[[int], Position | None] | None = None
    save_iterators: Callable[[v1.Session, int, bool], list[bytes]] | None = None
    reader: RowReader | None = None

    def close(self) -> None:
        """Release the rows. Call it when the session is closed; the graph refers to them, and is cyclic garbage."""
        if self.reader is not None:
            self.reader.close()

    @contextlib.contextmanager
    def explaining_errors(self) -> Iterator[None]:
        """Replace TensorFlow's report of an error in reading rows by the error itself."""
        try:
            yield
        except tf.errors.OpError as report:
            if self.reader is not None and self.reader.error is not None:
                raise self.reader.error from report
            raise


def open_feed(
    job: ModelJob, code: UserCode, mode: str, tables: Tables | None, *, rank: int = 0, num_replicas: int = 1
) -> Feed:
    """Build the input of `mode` in the default graph.

    Args:
        job: The job; its `rows` describe a Ray Dataset.
        code: The opened user code. Its `input_fn` is called if the job has no rows.
        mode: A `ModeKeys` value.
        tables: This rank's rows. None if the job has no rows.
        rank: This worker's rank.
        num_replicas: Number of replicas that train together. With several, the input reads one batch ahead.
    """
    with tf.device("/cpu:0"):
        if job.rows is not None:
            if tables is None:
                raise AssertionError("A job with rows needs tables.")
            dataset, reader = dataset_of_rows(tables, job.rows, code.map_fn, mode)
            feed = _feed_of_dataset(dataset, mode, look_ahead=num_replicas > 1)
            feed.reader = reader
            return feed
        returned = _call_input_fn(job, code, mode, rank, num_replicas)
        if isinstance(returned, tf.data.Dataset):
            return _feed_of_dataset(returned, mode, look_ahead=num_replicas > 1)
        features, labels = _features_and_labels(returned, mode)
        ends = bool(v1.get_collection(v1.GraphKeys.QUEUE_RUNNERS)) or _reads_an_iterator()
        return Feed(features, labels, ends=ends)


def _call_input_fn(job: ModelJob, code: UserCode, mode: str, rank: int, num_replicas: int) -> Any:
    if code.input_fn is None:
        raise AssertionError("A job without rows needs an input_fn.")
    context = tf.distribute.InputContext(
        num_input_pipelines=num_replicas, input_pipeline_id=rank, num_replicas_in_sync=num_replicas
    )
    returned = call_with_accepted(
        code.input_fn,
        mode=mode,
        params=copy.deepcopy(code.params or {}),
        config=job.user_config,
        input_context=context,
    )
    if type(returned).__module__.startswith("ray.data"):
        raise TypeError(
            "input_fn returned a ray.data.Dataset. Pass dataset_input_fn(dataset, batch_size=..., label_columns=...) "
            "instead of the function."
        )
    return returned


def _features_and_labels(returned: Any, mode: str) -> tuple[Any, Any]:
    if isinstance(returned, (tuple, list)):
        if len(returned) != 2:
            raise ValueError("input_fn should return (features, labels) as a len 2 tuple.")
        features, labels = returned
        return features, None if mode == ModeKeys.PREDICT else labels
    return returned, None


def _feed_of_dataset(dataset: tf.data.Dataset, mode: str, *, look_ahead: bool) -> Feed:
    # The scope keeps names like `buffer_size` free for variables, whatever the number of workers.
    with tf.name_scope("ray_estimator_look_ahead"):
        source = _looking_ahead(dataset).prefetch(PREFETCH_BATCHES) if look_ahead else dataset
    iterator = v1.data.make_initializable_iterator(source)
    taken = iterator.get_next()
    element = taken[0].get_value() if look_ahead else taken
    features, labels = _features_and_labels(element, mode)
    feed = Feed(features, labels, [_IteratorStarter(iterator)], take=_op_of(taken), pipeline=(iterator, dataset))
    feed.advance = tf.group(*tf.nest.flatten(element, expand_composites=True))
    if look_ahead:
        has_next = taken[1]
        feed.next_missing = 1.0 - tf.cast(has_next, tf.float32)
        feed.first_ready = lambda session: bool(session.run(has_next))
    return feed


def _op_of(taken: Any) -> tf.Operation:
    return tf.nest.flatten(taken, expand_composites=True)[0].op


def _looking_ahead(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return a dataset of (batch as an Optional, whether another batch follows). The first Optional is empty.

    Reading one batch ahead tells every worker, within a step, whether some worker has no batch for the next step.
    """
    spec = tf.OptionalSpec(dataset.element_spec)
    optional = tf.experimental.Optional

    def flat(value: Any) -> tf.Tensor:
        return tf.nest.flatten(value, expand_composites=True)[0]

    def packed(variant: tf.Tensor) -> Any:
        return tf.nest.pack_sequence_as(spec, [variant], expand_composites=True)

    def empty(_: Any = None) -> tf.Tensor:
        return flat(optional.empty(dataset.element_spec))

    some = dataset.map(lambda *parts: flat(optional.from_value(parts if len(parts) > 1 else parts[0])))
    ended = some.concatenate(tf.data.Dataset.from_tensors(0).map(empty))
    pairs = ended.scan(empty(), lambda previous, current: (current, (previous, packed(current).has_value())))
    return pairs.map(lambda current, has_next: (packed(current), has_next))


def _reads_an_iterator() -> bool:
    return any(takes_from_iterator(op) for op in v1.get_default_graph().get_operations())


class _IteratorStarter(v1.train.SessionRunHook):
    """Starts a tf.data iterator in each new session."""

    def __init__(self, iterator: Any) -> None:
        self._initializer = iterator.initializer

    def after_create_session(self, session: v1.Session, coord: Any) -> None:
        session.run(self._initializer)


def batch_dimension(features: Any) -> int | tf.Tensor | None:
    """Return the rows of a batch of `features`: an int if static, else a scalar tensor. None: no feature is a batch."""
    for value in tf.nest.flatten(features):
        shape = getattr(value, "shape", None)
        if shape is None or shape.rank == 0:
            continue
        rows = tf.compat.dimension_value(shape[0]) if shape.rank is not None else None
        if rows is not None:
            return int(rows)
        if isinstance(value, tf.Tensor):
            return tf.shape(value)[0]
        if isinstance(value, tf.SparseTensor):
            return value.dense_shape[0]
        if isinstance(value, tf.RaggedTensor):
            return value.nrows()
    return None
