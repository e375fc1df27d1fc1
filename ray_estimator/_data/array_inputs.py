"""`numpy_input_fn` and `pandas_input_fn`: arrays and data frames in memory as the input of an Estimator.

Importing this module imports neither TensorFlow nor pandas.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

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
    """Makes an input_fn that feeds NumPy arrays, as tf.estimator's does; it returns a `tf.data.Dataset`.

    The arrays travel to each worker with the input_fn. Every worker reads all rows: the input is not shared among
    them. For data that is large, or to be shared, use `dataset_input_fn(ray.data.from_numpy(...))`.

    Example:
        >>> input_fn = numpy_input_fn({"age": ages, "height": heights}, labels, batch_size=32, shuffle=True)
        >>> estimator.train(input_fn)

    Args:
        x: The features: an array of shape `[rows, ...]`, or a dict of them. Dtypes stay; text becomes tf.string.
        y: The labels: an array, or a dict of them. None for none.
        batch_size: Rows of a batch; the last one may have fewer. A batch may go from one epoch into the next.
        num_epochs: How often all rows are read. None: for ever.
        shuffle: Whether the rows come in random order, another one in each epoch. There is no default. The order
            follows `RunConfig.tf_random_seed`.
        queue_capacity: Accepted for tf.estimator's sake; there is no queue.
        num_threads: Accepted for tf.estimator's sake.

    Returns:
        The input_fn. Its dataset has `(x, y)`, or `x` alone if `y` is None.

    Raises:
        ValueError: `shuffle` is not given as a bool, arrays differ in length, a dict is empty, or `x` and `y` have
            keys in common.
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
    """Makes an input_fn that feeds a pandas DataFrame, as tf.estimator's does; it returns a `tf.data.Dataset`.

    Each column is a feature of shape `[batch]`. For the rest see `numpy_input_fn`.

    Args:
        x: The features, a feature for each column.
        y: The labels: a Series gives a Tensor, a DataFrame a dict. Its index must be that of `x`. None for none.
        batch_size: Rows of a batch.
        num_epochs: How often all rows are read. None: for ever.
        shuffle: Whether the rows come in random order. There is no default.
        queue_capacity: Accepted for tf.estimator's sake; there is no queue.
        num_threads: Accepted for tf.estimator's sake.
        target_column: Accepted for tf.estimator's sake; labels need no name.

    Returns:
        The input_fn. Its dataset has `(x, y)`, or `x` alone if `y` is None.

    Raises:
        ValueError: `shuffle` is not given as a bool, `x` has no columns or two of one name, or the indexes of `x` and
            `y` differ.
        TypeError: `x` is no DataFrame, `y` neither Series nor DataFrame, or `target_column` no str.
    """
    import pandas as pd

    if not isinstance(x, pd.DataFrame):
        raise TypeError(f"x must be a pandas.DataFrame, given: {_described(x)}.")
    if y is not None and not isinstance(y, pd.Series | pd.DataFrame):
        raise TypeError(f"y must be a pandas.Series, a pandas.DataFrame or None, given: {_described(y)}.")
    if not isinstance(target_column, str):
        raise TypeError(f"target_column must be a string, given: {target_column!r}.")
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
            f"shuffle must be provided and explicitly set as boolean, given: {shuffle!r}. True is recommended for "
            "training, False for evaluate and predict."
        )
    numbers_by_name = {"batch_size": batch_size, "queue_capacity": queue_capacity, "num_threads": num_threads}
    if num_epochs is not None:
        numbers_by_name["num_epochs"] = num_epochs
    for name, value in numbers_by_name.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, given: {value!r}.")
        if value <= 0:
            raise ValueError(f"{name} should be > 0, given: {value!r}.")


def _arrays(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _array(name, value)
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict or array, given: {_described(value)}.")
    if not value:
        raise ValueError(f"{name} cannot be an empty dict{', use None instead' if name == 'y' else ''}.")
    return {key: _array(f"{name}[{key!r}]", array) for key, array in value.items()}


def _columns(name: str, frame: pd.DataFrame) -> dict[str, Any]:
    if not len(frame.columns):
        raise ValueError(f"{name} must have at least one column, given: a DataFrame without any.")
    if not frame.columns.is_unique:
        twice = sorted({str(column) for column in frame.columns[frame.columns.duplicated()]})
        raise ValueError(f"{name} must name each column once, but there are duplicate columns: {twice}.")
    return {str(column): _array(f"{name}[{column!r}]", frame[column].to_numpy()) for column in frame.columns}


def _array(name: str, value: Any) -> np.ndarray[Any, Any]:
    """`value` as an array that TensorFlow has a dtype for: text becomes bytes."""
    array = np.asarray(value)
    if array.ndim == 0:
        raise ValueError(f"{name} must have a dimension of rows, given: the scalar {value!r}.")
    if array.dtype.kind in "OUS":
        return _bytes(name, array)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name} must hold numbers, bools or text, given: dtype {array.dtype}. Convert it with astype.")
    return array


def _bytes(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    encoded = np.empty(array.shape, object)
    for position, value in np.ndenumerate(array):
        if not isinstance(value, str | bytes):
            raise TypeError(
                f"{name} must hold numbers, bools or text, but has {value!r} in row {position[0]}. Fill what is "
                "missing, and convert the rest with astype."
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
        # Large arrays are no constants of the graph, which has a limit of 2 GB and is written with each checkpoint.
        return rows.map(lambda batch: _taken(elements, batch)).prefetch(tf.data.AUTOTUNE)

    return input_fn


def _num_rows(features: Any, labels: Any) -> int:
    lengths = {
        f"{name}[{key!r}]" if key is not None else name: len(array)
        for name, arrays in (("x", features), ("y", labels))
        for key, array in (arrays.items() if isinstance(arrays, dict) else [(None, arrays)])
        if array is not None
    }
    if len(set(lengths.values())) > 1:
        given = ", ".join(f"{length} in {name}" for name, length in lengths.items())
        raise ValueError(
            f"Length of tensors in x and y is mismatched. All must have the same number of rows, given: {given}."
        )
    return next(iter(lengths.values()))


def _taken(elements: Any, batch: tf.Tensor) -> Any:
    """The rows of `batch` of every array, in the graph."""
    import tensorflow as tf

    arrays = tf.nest.flatten(elements)
    taken = tf.numpy_function(
        lambda rows: [array[rows] for array in arrays], [batch], [tf.as_dtype(array.dtype) for array in arrays]
    )
    for tensor, array in zip(taken, arrays, strict=True):
        tensor.set_shape([None, *array.shape[1:]])
    return tf.nest.pack_sequence_as(elements, taken)


def _described(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"
