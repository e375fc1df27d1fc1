"""`numpy_input_fn` and `pandas_input_fn`: arrays and data frames in memory as the input of an Estimator.

Importing this module imports neither TensorFlow nor pandas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_estimator._numbers import check_number

if TYPE_CHECKING:
    import pandas as pd
    import tensorflow as tf

    Arrays = np.ndarray[Any, Any] | Mapping[str, np.ndarray[Any, Any]]


def numpy_input_fn(
    x: Arrays,
    y: Arrays | None = None,
    batch_size: int = 128,
    num_epochs: int | None = 1,
    shuffle: bool | None = None,
    queue_capacity: int = 1000,
    num_threads: int = 1,
) -> Callable[[], tf.data.Dataset]:
    """Return an input_fn that reads NumPy arrays, as in tf.estimator, and returns a `tf.data.Dataset`.

    The arrays are serialized with the input_fn. Every worker reads all rows; they are not split between workers. For
    large or sharded data use `dataset_input_fn(ray.data.from_numpy(...))`.

    Example:
        >>> input_fn = numpy_input_fn({"age": ages, "height": heights}, labels, batch_size=32, shuffle=True)
        >>> estimator.train(input_fn)

    Args:
        x: The features: an array of shape `[rows, ...]`, or a dict of arrays. Dtypes are kept; text becomes tf.string.
        y: The labels: an array, or a dict of arrays. None: no labels.
        batch_size: Rows in a batch; the last may have fewer. A batch may span two epochs.
        num_epochs: Number of passes over the rows. None: endless.
        shuffle: Whether to shuffle the rows in each epoch. Required. `RunConfig.tf_random_seed` determines the order.
        queue_capacity: Ignored; for compatibility with tf.estimator.
        num_threads: Ignored; for compatibility with tf.estimator.

    Returns:
        The input_fn. Its dataset yields `(x, y)`, or `x` if `y` is None.

    Raises:
        ValueError: `shuffle` is not a bool, arrays differ in length, a dict is empty, or `x` and `y` share keys.
        TypeError: `x` or `y` is neither an array nor a dict of arrays.
    """
    _check_numbers(batch_size, num_epochs, shuffle, queue_capacity, num_threads)
    features = _arrays("x", x)
    labels = None if y is None else _arrays("y", y)
    if isinstance(features, dict) and isinstance(labels, dict):
        both = sorted(set(features) & set(labels))
        if both:
            raise ValueError(f"x and y must not share keys, but there are duplicate keys: {both}. Rename them.")
    return _input_fn(features, labels, batch_size, num_epochs, bool(shuffle))


def pandas_input_fn(
    x: pd.DataFrame,
    y: pd.Series | pd.DataFrame | None = None,
    batch_size: int = 128,
    num_epochs: int | None = 1,
    shuffle: bool | None = None,
    queue_capacity: int = 1000,
    num_threads: int = 1,
    target_column: str = "target",
) -> Callable[[], tf.data.Dataset]:
    """Return an input_fn that reads a pandas DataFrame, as in tf.estimator, and returns a `tf.data.Dataset`.

    Each column is a feature of shape `[batch]`. See also `numpy_input_fn`.

    Args:
        x: The features, one per column.
        y: The labels: a Series for a Tensor, a DataFrame for a dict. Its index must equal that of `x`. None: no labels.
        batch_size: Rows in a batch.
        num_epochs: Number of passes over the rows. None: endless.
        shuffle: Whether to shuffle the rows in each epoch. Required.
        queue_capacity: Ignored; for compatibility with tf.estimator.
        num_threads: Ignored; for compatibility with tf.estimator.
        target_column: Ignored; for compatibility with tf.estimator.

    Returns:
        The input_fn. Its dataset yields `(x, y)`, or `x` if `y` is None.

    Raises:
        ValueError: `shuffle` is not a bool, `x` has no columns or duplicate columns, or the indexes of `x` and `y`
            differ.
        TypeError: `x` is not a DataFrame, `y` is neither a Series nor a DataFrame, or `target_column` is not a str.
    """
    import pandas as pd

    if not isinstance(x, pd.DataFrame):
        raise TypeError(f"x must be a pandas.DataFrame, got {_type_name(x)}.")
    if y is not None and not isinstance(y, pd.Series | pd.DataFrame):
        raise TypeError(f"y must be a pandas.Series, a pandas.DataFrame or None, got {_type_name(y)}.")
    if not isinstance(target_column, str):
        raise TypeError(f"target_column must be a string, got {target_column!r}.")
    _check_numbers(batch_size, num_epochs, shuffle, queue_capacity, num_threads)
    if y is not None and not x.index.equals(y.index):
        raise ValueError(
            f"Index for x and y are mismatched. Index for x: {x.index}. Index for y: {y.index}. Align them first, for "
            "example with reset_index(drop=True)."
        )
    features = _columns("x", x)
    labels = _columns("y", y) if isinstance(y, pd.DataFrame) else None if y is None else _array("y", y.to_numpy())
    return _input_fn(features, labels, batch_size, num_epochs, bool(shuffle))


def _check_numbers(batch_size: Any, num_epochs: Any, shuffle: Any, queue_capacity: Any, num_threads: Any) -> None:
    if not isinstance(shuffle, bool):
        raise ValueError(
            f"shuffle must be provided and explicitly set as boolean, got {shuffle!r}. True is recommended for "
            "training, False for evaluate and predict."
        )
    sizes = {"batch_size": batch_size, "queue_capacity": queue_capacity, "num_threads": num_threads}
    for name, value in sizes.items():
        check_number(name, value, integer=True)
    check_number("num_epochs", num_epochs, integer=True, or_none=" or None")


def _arrays(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _array(name, value)
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict or array, got {_type_name(value)}.")
    if not value:
        raise ValueError(f"{name} cannot be an empty dict{', use None instead' if name == 'y' else ''}.")
    return {key: _array(f"{name}[{key!r}]", array) for key, array in value.items()}


def _columns(name: str, frame: pd.DataFrame) -> dict[str, Any]:
    if not len(frame.columns):
        raise ValueError(f"{name} must have at least one column, got a DataFrame without columns.")
    if not frame.columns.is_unique:
        twice = sorted({str(column) for column in frame.columns[frame.columns.duplicated()]})
        raise ValueError(f"{name} must name each column once, but there are duplicate columns: {twice}.")
    return {str(column): _array(f"{name}[{column!r}]", frame[column].to_numpy()) for column in frame.columns}


def _array(name: str, value: Any) -> np.ndarray[Any, Any]:
    """Return `value` as an array with a TensorFlow dtype: text becomes bytes."""
    array = np.asarray(value)
    if array.ndim == 0:
        raise ValueError(f"{name} must have a dimension of rows, got the scalar {value!r}.")
    if array.dtype.kind in "OUS":
        return _bytes(name, array)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name} must hold numbers, bools or text, got dtype {array.dtype}. Convert it with astype.")
    return array


def _bytes(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    encoded = np.empty(array.shape, object)
    for position, value in np.ndenumerate(array):
        if not isinstance(value, str | bytes):
            raise TypeError(
                f"{name} must hold numbers, bools or text, got {value!r} in row {position[0]}. Fill missing "
                "values, and convert others with astype."
            )
        encoded[position] = value.encode() if isinstance(value, str) else bytes(value)
    return encoded


def _input_fn(
    features: Any, labels: Any, batch_size: int, num_epochs: int | None, shuffle: bool
) -> Callable[[], tf.data.Dataset]:
    elements = features if labels is None else (features, labels)
    num_rows = _num_rows(features, labels)

    def input_fn() -> tf.data.Dataset:
        import tensorflow as tf

        rows = tf.data.Dataset.range(num_rows)
        if shuffle:
            rows = rows.shuffle(max(num_rows, 1))
        rows = rows.repeat(num_epochs).batch(batch_size)
        # As constants, large arrays would exceed the graph's limit of 2 GB, and be written with each checkpoint.
        return rows.map(lambda batch: _rows_of(elements, batch)).prefetch(tf.data.AUTOTUNE)

    return input_fn


def _num_rows(features: Any, labels: Any) -> int:
    lengths = {
        f"{name}[{key!r}]" if key is not None else name: len(array)
        for name, arrays in (("x", features), ("y", labels))
        for key, array in (arrays.items() if isinstance(arrays, dict) else [(None, arrays)])
        if array is not None
    }
    if len(set(lengths.values())) > 1:
        lengths_by_name = ", ".join(f"{length} in {name}" for name, length in lengths.items())
        raise ValueError(
            f"Length of tensors in x and y is mismatched. All must have the same number of rows, got {lengths_by_name}."
        )
    return next(iter(lengths.values()))


def _rows_of(elements: Any, batch: tf.Tensor) -> Any:
    """Return the rows `batch` of every array, as tensors of the graph."""
    import tensorflow as tf

    arrays = tf.nest.flatten(elements)
    rows_by_array = tf.numpy_function(
        lambda rows: [array[rows] for array in arrays], [batch], [tf.as_dtype(array.dtype) for array in arrays]
    )
    for tensor, array in zip(rows_by_array, arrays, strict=True):
        tensor.set_shape([None, *array.shape[1:]])
    return tf.nest.pack_sequence_as(elements, rows_by_array)


def _type_name(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"
