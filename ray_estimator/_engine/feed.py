"""From an input_fn or a Ray Dataset's rows to the features and labels of a graph."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._columns import ColumnSpec, RaggedValues, to_arrays
from ray_estimator._jobs import ModelJob, RowSpec, Tables, UserCode
from ray_estimator._position import Position
from ray_estimator._signatures import call_with_accepted
from ray_estimator.spec import ModeKeys

_PREFETCH_CHUNKS = 1
_PREFETCH_BATCHES = 2


@dataclass
class Feed:
    """The input of one graph.

    Attributes:
        features: What model_fn gets as features.
        labels: What model_fn gets as labels, or None.
        hooks: Hooks that start the input; they come before the user's.
        next_missing: float32 scalar, 1.0 when no batch follows this one; None if the input cannot say.
        first_ready: Called in the session once before the first step; False when the input is empty.
        ends: Whether the input can come to an end by itself.
        take: What waits for the batch of a step; None for tensors.
        advance: Takes the batch even if the model does not look at it, so that its input ends all the same; None for
            tensors.
        pipeline: The initializable iterator and the dataset that input_fn made; None for tensors.
        position_after: Where in its input the run is after so many steps; None if the input cannot say.
        save_places: Gives what a checkpoint keeps for each rank; None if it keeps nothing. Every rank calls it with
            its session, the step, and whether the input has ended.
        passes: The newest pass over the rows of a Ray Dataset.
        errors: What was raised in Python while rows were fetched; TensorFlow tells only its text.
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
    save_places: Callable[[v1.Session, int, bool], list[bytes]] | None = None
    passes: list[Generator[Any]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    def close(self) -> None:
        """Lets go of the rows, when the session is closed: the graph, which holds on to them, is cyclic garbage."""
        for each in self.passes:
            # If TensorFlow's thread is in it still, it ends there.
            with contextlib.suppress(ValueError):
                each.close()

    @contextlib.contextmanager
    def explaining_errors(self) -> Iterator[None]:
        """Within it, TensorFlow's report of an error in fetching rows becomes the error itself."""
        try:
            yield
        except tf.errors.OpError as report:
            if self.errors:
                raise self.errors[0] from report
            raise


def open_feed(
    job: ModelJob, code: UserCode, mode: str, tables: Tables | None, *, rank: int = 0, num_replicas: int = 1
) -> Feed:
    """Builds the input of `mode` in the default graph.

    Args:
        job: The job; its `rows` describe a Ray Dataset.
        code: The opened user code; its `input_fn` is called when the job has no rows.
        mode: A `ModeKeys` value.
        tables: This rank's rows, when the job has rows.
        rank: This worker's position.
        num_replicas: How many replicas train together; with several, batches look one ahead.
    """
    with tf.device("/cpu:0"):
        if job.rows is not None:
            if tables is None:
                raise AssertionError("A job with rows needs tables.")
            passes: list[Generator[Any]] = []
            errors: list[Exception] = []
            dataset = dataset_of_rows(tables, job.rows, code.map_fn, mode, passes, errors)
            feed = _feed_of_dataset(dataset, mode, look_ahead=num_replicas > 1)
            return replace(feed, passes=passes, errors=errors)
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
        config=job.users_config,
        input_context=context,
    )
    if type(returned).__module__.startswith("ray.data"):
        raise TypeError(
            "input_fn returned a ray.data.Dataset. Wrap it instead: "
            "train(dataset_input_fn(dataset, batch_size=..., label_columns=...))."
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
    source = _looking_ahead(dataset).prefetch(_PREFETCH_BATCHES) if look_ahead else dataset
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
    """Gives (batch as an Optional, whether another follows); the first is the empty one before the first batch.

    With one look ahead every worker knows, in the step itself, that some worker cannot fill the next one.
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
    return any(op.type.startswith("IteratorGetNext") for op in v1.get_default_graph().get_operations())


class _IteratorStarter(v1.train.SessionRunHook):
    """Starts a tf.data iterator in each new session."""

    def __init__(self, iterator: Any) -> None:
        self._initializer = iterator.initializer

    def after_create_session(self, session: v1.Session, coord: Any) -> None:
        session.run(self._initializer)


# Rows of a Ray Dataset


def dataset_of_rows(
    tables: Tables,
    rows: RowSpec,
    map_fn: Callable[..., Any] | None,
    mode: str,
    passes: list[Generator[Any]],
    errors: list[Exception],
) -> tf.data.Dataset:
    """Batches of (features, labels), crossing from Python once per table rather than once per batch.

    Each pass over the rows is noted in `passes`, and what is raised in it in `errors`, in place of the one before.
    """
    keep_labels = bool(rows.labels) and mode != ModeKeys.PREDICT
    columns = rows.columns if keep_labels else dict(rows.features)
    drop = rows.drop_remainder and mode == ModeKeys.TRAIN

    def arranged(values: Mapping[str, Any]) -> Any:
        features = {name: values[name] for name in rows.features}
        labels = {name: values[name] for name in rows.labels} if keep_labels else {}
        return _element(features, next(iter(labels.values())) if rows.single_label and labels else labels or None)

    def begin() -> Generator[Any]:
        errors.clear()
        passes[:] = [chunks()]
        return passes[0]

    def chunks() -> Generator[Any]:
        try:
            for table in tables():
                yield arranged(_values(to_arrays(table, columns, rows.fill_null)))
        except Exception as error:
            errors.append(error)
            raise

    signature = arranged({name: _signature(column) for name, column in columns.items()})
    dataset = tf.data.Dataset.from_generator(begin, output_signature=signature)
    # While one chunk is used, the next is fetched and converted.
    dataset = dataset.prefetch(_PREFETCH_CHUNKS)
    if any(column.holds_ragged for column in columns.values()):
        dataset = dataset.flat_map(lambda *chunk: _batches(_element(*chunk), rows.batch_size))
    else:
        dataset = dataset.rebatch(rows.batch_size, drop_remainder=drop)
    if map_fn is not None:
        dataset = dataset.map(lambda features, labels=None: _mapped(map_fn(features, labels)))
    options = tf.data.Options()
    # There is nothing to tune, and on one CPU closing a session may wait for the tuner's next look, in up to a minute.
    options.autotune.enabled = False
    return dataset.prefetch(_PREFETCH_BATCHES).with_options(options)


def _element(features: Any, labels: Any = None) -> Any:
    return features if labels is None else (features, labels)


def _mapped(returned: Any) -> Any:
    return _element(*returned) if isinstance(returned, tuple) else returned


def _batches(chunk: Any, batch_size: int) -> tf.data.Dataset:
    """The batches of a chunk that holds ragged values, which `rebatch` cannot cut."""
    starts = tf.data.Dataset.range(0, _num_rows(chunk), batch_size)
    return starts.map(lambda start: _cut(chunk, start[tf.newaxis], start[tf.newaxis] + batch_size))


def _num_rows(chunk: Any) -> tf.Tensor:
    if isinstance(chunk, RaggedValues):
        return tf.size(chunk.row_splits, tf.int64) - 1
    if isinstance(chunk, dict | tuple):
        return _num_rows(next(iter(chunk.values() if isinstance(chunk, dict) else chunk)))
    return tf.shape(chunk, tf.int64)[0]


def _cut(chunk: Any, start: tf.Tensor, stop: tf.Tensor) -> Any:
    """Rows [start, stop), both of shape [1]; as many as there are."""
    if isinstance(chunk, RaggedValues):
        row_splits = _rows(chunk.row_splits, start, stop + 1)
        values = _rows(chunk.values, row_splits[:1], row_splits[-1:])
        return tf.RaggedTensor.from_row_splits(values, row_splits - row_splits[0], validate=False)
    if isinstance(chunk, dict):
        return {name: _cut(part, start, stop) for name, part in chunk.items()}
    if isinstance(chunk, tuple):
        return tuple(_cut(part, start, stop) for part in chunk)
    return _rows(chunk, start, stop)


def _rows(values: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
    """As `values[start:stop]`, in one op rather than six: there may be hundreds of columns."""
    rows = tf.raw_ops.StridedSlice(input=values, begin=start, end=stop, strides=tf.ones_like(start))
    rows.set_shape(tf.TensorShape([None]).concatenate(values.shape[1:]))
    return rows


def _signature(column: ColumnSpec) -> Any:
    if column.fields:
        return {name: _signature(child) for name, child in column.fields.items()}
    dtype = tf.as_dtype(column.dtype)
    if column.ragged:
        return RaggedValues(tf.TensorSpec([None, *column.shape[1:]], dtype), tf.TensorSpec([None], tf.int64))
    return tf.TensorSpec([None, *column.shape], dtype)


def _values(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _owned(value) for name, value in arrays.items()}


def _owned(value: Any) -> Any:
    if isinstance(value, dict):
        return _values(value)
    if isinstance(value, RaggedValues):
        return RaggedValues(_own(value.values), _own(value.row_splits))
    return _own(value)


def _own(array: Any) -> Any:
    """An array that is TensorFlow's to write to, not a block's: kernels reuse the memory of a batch for their results.

    Measured with slices of `rebatch`: the last rows of a read-only array are overwritten, those of a shared object too.
    Arrow aligns memory as TensorFlow wants it, which would copy numpy's own once more.
    """
    if array.flags.writeable:
        return array
    owned = np.frombuffer(pa.allocate_buffer(array.nbytes), array.dtype).reshape(array.shape)
    np.copyto(owned, array)
    return owned


def batch_dimension(features: Any) -> int | tf.Tensor | None:
    """Rows in a batch of `features`: known now, or a scalar tensor, or None when no tensor tells."""
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


__all__: Sequence[str] = ["Feed", "batch_dimension", "dataset_of_rows", "open_feed"]
