"""Rows of a Ray Dataset as a tf.data pipeline.

`RowReader` is the Python side: it converts Arrow tables to arrays. `dataset_of_rows` builds the graph side around it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf
import tensorflow.compat.v1 as v1

from ray_estimator._data.columns import ColumnSpec, RaggedValues, Values, to_arrays
from ray_estimator._jobs.jobs import RowSpec
from ray_estimator._jobs.worker import Tables
from ray_estimator.spec import ModeKeys

_PREFETCH_CHUNKS = 1
PREFETCH_BATCHES = 2
_NAME_SCOPE = "ray_estimator_rows"


class RowReader:
    """Reads rows chunk by chunk; called by tf.data's threads.

    Each initialization of the tf.data iterator starts a new pass. A thread that still reads for an earlier pass gets
    the end of the input.

    Attributes:
        error: The exception that ended the current pass, since TensorFlow reports only its text. None: no error.

    Args:
        chunks: Returns the chunks of one pass; a chunk is one array per tensor.
    """

    def __init__(self, chunks: Callable[[], Generator[list[Values]]]) -> None:
        self.error: Exception | None = None
        self._chunks = chunks
        self._pass_number = 0
        self._current: Generator[list[Values]] | None = None

    def start_pass(self) -> np.int64:
        """Start a new pass and return its number."""
        self.close()
        self.error = None
        self._pass_number += 1
        self._current = self._chunks()
        return np.int64(self._pass_number)

    def next_chunk(self, pass_number: int) -> list[Values]:
        """Return the next chunk of a pass.

        Raises:
            StopIteration: There are no more chunks, or a newer pass has started. Ends the tf.data pipeline.
            Exception: Reading or converting the rows failed.
        """
        current = self._current
        if current is None or pass_number != self._pass_number:
            raise StopIteration
        try:
            return next(current)
        except StopIteration:
            raise
        except Exception as error:
            if current is self._current:
                self.error = error
            raise
        finally:
            if current is not self._current:
                _close(current)

    def close(self) -> None:
        """End the current pass and release its rows. A thread that is reading a chunk releases them when it returns."""
        current, self._current = self._current, None
        if current is not None:
            _close(current)


def _close(generator: Generator[Any]) -> None:
    with contextlib.suppress(ValueError):  # It is executing in another thread, which closes it.
        generator.close()


def dataset_of_rows(
    tables: Tables, rows: RowSpec, map_fn: Callable[..., Any] | None, mode: str
) -> tuple[tf.data.Dataset, RowReader]:
    """Return a dataset of batches of (features, labels), and its reader.

    Rows cross from Python to TensorFlow once per table rather than once per batch.
    """
    keep_labels = bool(rows.labels) and mode != ModeKeys.PREDICT
    columns = rows.columns if keep_labels else dict(rows.features)

    def structured(values: Mapping[str, Any]) -> Any:
        features = {name: values[name] for name in rows.features}
        labels = {name: values[name] for name in rows.labels} if keep_labels else {}
        return _element(features, next(iter(labels.values())) if rows.single_label and labels else labels or None)

    def chunks() -> Generator[list[Values]]:
        for table in tables():
            values = to_arrays(table, columns, rows.fill_null)
            yield [_writable(array) for array in tf.nest.flatten(structured(values))]

    reader = RowReader(chunks)
    # Without a scope, tf.data takes names like `count`, and a variable of that name would be saved as `count_1`.
    with tf.name_scope(_NAME_SCOPE):
        dataset = _dataset_of_chunks(reader, structured({name: _signature(column) for name, column in columns.items()}))
        # Fetch and convert the next chunk while the current one is used.
        dataset = dataset.prefetch(_PREFETCH_CHUNKS)
        if any(column.holds_ragged for column in columns.values()):
            dataset = dataset.flat_map(lambda *chunk: _ragged_batches(_element(*chunk), rows.batch_size))
        else:
            dataset = _rebatched(dataset, rows.batch_size, rows.drop_remainder and mode == ModeKeys.TRAIN)
        if map_fn is not None:
            dataset = dataset.map(lambda features, labels=None: _mapped(map_fn(features, labels)))
        return dataset.prefetch(PREFETCH_BATCHES).with_options(_options()), reader


def _element(features: Any, labels: Any = None) -> Any:
    return features if labels is None else (features, labels)


def _mapped(returned: Any) -> Any:
    return _element(*returned) if isinstance(returned, tuple) else returned


def _signature(column: ColumnSpec) -> Any:
    if column.fields:
        return {name: _signature(child) for name, child in column.fields.items()}
    dtype = tf.as_dtype(column.dtype)
    if column.ragged:
        return RaggedValues(tf.TensorSpec([None, *column.shape[1:]], dtype), tf.TensorSpec([None], tf.int64))
    return tf.TensorSpec([None, *column.shape], dtype)


def _dataset_of_chunks(reader: RowReader, signature: Any) -> tf.data.Dataset:
    """Return the chunks of one pass per initialization of the iterator.

    `from_generator` does the same with several functions instead of one, which slows the start of the pipeline.
    """
    specs = tf.nest.flatten(signature)

    def next_chunk(pass_number: tf.Tensor) -> Any:
        tensors = tf.numpy_function(reader.next_chunk, [pass_number], [spec.dtype for spec in specs])
        for tensor, spec in zip(tensors, specs, strict=True):
            tensor.set_shape(spec.shape)
        return tf.nest.pack_sequence_as(signature, tensors)

    # Evaluated by the iterator's initializer, since it is an input of the dataset rather than part of a function.
    pass_number = tf.numpy_function(reader.start_pass, [], tf.int64)
    pass_number.set_shape([])
    # StopIteration in a function ends the dataset only with the map of TensorFlow 1; it is an error in that of 2.
    return v1.data.Dataset.from_tensors(pass_number).repeat().map(next_chunk)


def _rebatched(dataset: tf.data.Dataset, batch_size: int, drop_remainder: bool) -> tf.data.Dataset:
    """Return `dataset.rebatch(batch_size, drop_remainder)` for a dataset of dense tensors.

    `rebatch` adds a map that converts ragged and sparse tensors. It changes nothing here, but doubles the time in which
    the pipeline starts.
    """
    rows = batch_size if drop_remainder else None
    spec = tf.nest.map_structure(lambda each: tf.TensorSpec([rows, *each.shape[1:]], each.dtype), dataset.element_spec)
    variant = tf.raw_ops.RebatchDatasetV2(
        input_dataset=tf.data.experimental.to_variant(dataset),
        batch_sizes=tf.constant(batch_size, tf.int64),
        drop_remainder=drop_remainder,
        output_types=[each.dtype for each in tf.nest.flatten(spec)],
        output_shapes=[each.shape for each in tf.nest.flatten(spec)],
    )
    return tf.data.experimental.from_variant(variant, spec)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    # There is nothing to tune, and on one CPU, closing a session can wait up to a minute for the tuner.
    options.autotune.enabled = False
    # There is nothing to optimize, and the rewriting takes as long as the rest of the pipeline's start.
    options.experimental_optimization.apply_default_optimizations = False
    return options


def _ragged_batches(chunk: Any, batch_size: int) -> tf.data.Dataset:
    """Return the batches of a chunk with ragged values, which `rebatch` cannot slice."""
    starts = tf.data.Dataset.range(0, _num_rows(chunk), batch_size)
    return starts.map(lambda start: _slice(chunk, start[tf.newaxis], start[tf.newaxis] + batch_size))


def _num_rows(chunk: Any) -> tf.Tensor:
    if isinstance(chunk, RaggedValues):
        return tf.size(chunk.row_splits, tf.int64) - 1
    if isinstance(chunk, dict | tuple):
        return _num_rows(next(iter(chunk.values() if isinstance(chunk, dict) else chunk)))
    return tf.shape(chunk, tf.int64)[0]


def _slice(chunk: Any, start: tf.Tensor, stop: tf.Tensor) -> Any:
    """Return rows [start, stop), or fewer at the end of the chunk. `start` and `stop` have shape [1]."""
    if isinstance(chunk, RaggedValues):
        row_splits = _slice_tensor(chunk.row_splits, start, stop + 1)
        values = _slice_tensor(chunk.values, row_splits[:1], row_splits[-1:])
        return tf.RaggedTensor.from_row_splits(values, row_splits - row_splits[0], validate=False)
    if isinstance(chunk, dict):
        return {name: _slice(part, start, stop) for name, part in chunk.items()}
    if isinstance(chunk, tuple):
        return tuple(_slice(part, start, stop) for part in chunk)
    return _slice_tensor(chunk, start, stop)


def _slice_tensor(values: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
    """Return `values[start:stop]` with one op instead of six, since there may be hundreds of columns."""
    rows = tf.raw_ops.StridedSlice(input=values, begin=start, end=stop, strides=tf.ones_like(start))
    rows.set_shape(tf.TensorShape([None]).concatenate(values.shape[1:]))
    return rows


def _writable(array: Values) -> Values:
    """Return `array`, or a copy if it is read-only, since TensorFlow's kernels write results into their inputs' memory.

    Measured with slices of `rebatch`: the last rows of a read-only array are overwritten, and those of a shared object
    too. The copy's memory comes from Arrow, whose alignment suits TensorFlow; it would copy NumPy's again.
    """
    if array.flags.writeable:
        return array
    owned = np.frombuffer(pa.allocate_buffer(array.nbytes), array.dtype).reshape(array.shape)
    np.copyto(owned, array)
    return owned
