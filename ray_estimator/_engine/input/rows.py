"""Rows of a Ray Dataset as a tf.data pipeline."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from ray_estimator._data.columns import ColumnSpec, RaggedValues, to_arrays
from ray_estimator._jobs.jobs import RowSpec
from ray_estimator._jobs.worker import Tables
from ray_estimator.spec import ModeKeys

_PREFETCH_CHUNKS = 1
PREFETCH_BATCHES = 2


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
    return dataset.prefetch(PREFETCH_BATCHES).with_options(options)


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
