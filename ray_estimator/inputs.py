"""Inputs of an Estimator: Ray Datasets (`dataset_input_fn`), and arrays and data frames in memory.

Importing this module imports neither TensorFlow nor Ray.
"""

from __future__ import annotations

import inspect
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_estimator._data.array_inputs import numpy_input_fn, pandas_input_fn
from ray_estimator._data.position import EXACT, WAYS_TO_RESUME
from ray_estimator._numbers import check_number

__all__ = ["DatasetInput", "dataset_input_fn", "is_ray_dataset", "numpy_input_fn", "pandas_input_fn"]

if TYPE_CHECKING:
    from ray.data import Dataset

_DEFAULT_SHUFFLE_BUFFER_ROWS = 10_000

MapFn = Callable[[Any, Any], Any]
FillNull = bool | int | float | str | bytes


@dataclass(frozen=True)
class DatasetInput:
    """An input read by Ray Data. Create it with `dataset_input_fn`, which describes the fields.

    Attributes:
        dataset: A `ray.data.Dataset`, or a zero-argument callable that returns one.
        batch_size: Rows in a batch; in train, per replica.
        label_columns: The names of the label columns. Empty: no labels.
        feature_columns: The names of the feature columns. None: all columns except the labels.
        num_epochs: Number of passes over the rows. None: the default of train, evaluate or predict.
        shuffle: Whether train reads the rows in random order.
        shuffle_buffer_rows: Rows in the shuffle buffer. None: no shuffle.
        seed: The seed of the shuffle.
        drop_remainder: Whether train drops a last batch that is not full.
        map_fn: Maps `(features, labels)` in the graph.
        fill_null: The value that replaces nulls: one for all columns, or one per column.
        resume: Where train starts to read when it resumes from a checkpoint.
    """

    dataset: Dataset | Callable[[], Dataset]
    batch_size: int
    label_columns: tuple[str, ...] = ()
    feature_columns: tuple[str, ...] | None = None
    num_epochs: int | None = None
    shuffle: bool = False
    shuffle_buffer_rows: int | None = None
    seed: int | None = None
    drop_remainder: bool = False
    map_fn: MapFn | None = None
    fill_null: FillNull | Mapping[str, FillNull] | None = None
    resume: str = EXACT

    def __post_init__(self) -> None:
        """Validate every field."""
        _check_dataset(self.dataset)
        _check_columns(self.label_columns, self.feature_columns)
        check_number("batch_size", self.batch_size, integer=True)
        check_number("num_epochs", self.num_epochs, integer=True, or_none=" or None")
        for name in ("shuffle", "drop_remainder"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        _check_shuffle(self.shuffle, self.shuffle_buffer_rows, self.seed)
        if self.map_fn is not None and not callable(self.map_fn):
            raise TypeError(f"map_fn must be a function of (features, labels) or None, got {self.map_fn!r}.")
        _check_fill_null(self.fill_null)
        if self.resume not in WAYS_TO_RESUME:
            raise ValueError(f"resume must be one of {', '.join(map(repr, WAYS_TO_RESUME))}, got {self.resume!r}.")

    @property
    def single_label(self) -> bool:
        """Whether the labels are one Tensor rather than a dict of Tensors."""
        return len(self.label_columns) == 1

    def resolve(self) -> Dataset:
        """Return the Ray Dataset, calling `dataset` if it is a callable. Runs on the driver.

        Raises:
            TypeError: The callable returned another type.
        """
        if is_ray_dataset(self.dataset):
            return self.dataset
        returned = self.dataset()
        if not is_ray_dataset(returned):
            raise TypeError(
                f"The callable given to dataset_input_fn must return a ray.data.Dataset, got {_type_name(returned)}."
            )
        return returned


InputFn = Callable[..., Any] | DatasetInput
"""An input_fn as in tf.estimator, or the result of `dataset_input_fn`."""


def dataset_input_fn(
    dataset: Dataset | Callable[[], Dataset],
    *,
    batch_size: int,
    label_columns: str | Sequence[str] | None = None,
    feature_columns: Sequence[str] | None = None,
    num_epochs: int | None = None,
    shuffle: bool = False,
    shuffle_buffer_rows: int | None = None,
    seed: int | None = None,
    drop_remainder: bool = False,
    map_fn: MapFn | None = None,
    fill_null: FillNull | Mapping[str, FillNull] | None = None,
    resume: str = EXACT,
) -> DatasetInput:
    """Describe a Ray Dataset as the input of `train`, `evaluate` or `predict`, without reading it.

    Example:
        >>> ds = ray.data.read_parquet("s3://bucket/train")
        >>> estimator.train(dataset_input_fn(ds, batch_size=128, label_columns="y", shuffle=True), steps=1000)

    Features are always a dict from column name to Tensor of shape `[batch, ...]`. Labels are a Tensor if there
    is one label column, a dict if there are several, and None if there are none. Dtypes follow the Arrow types
    of the columns: `int64` stays int64, `double` becomes float64, `string` and `binary` become tf.string.

    In train, the rows of each epoch are split between the workers, which all run the same number of steps. In evaluate
    and predict, the rows are split between tasks, with the same batches and results as in a single ordered pass.

    For TFRecords, read the serialized examples as a binary column and parse them in `map_fn`:

        >>> def parse(features, labels):
        ...     parsed = tf.io.parse_example(features["bytes"], FEATURE_SPEC)
        ...     return parsed, parsed.pop("label")

    Args:
        dataset: A `ray.data.Dataset`, or a zero-argument callable that returns one. The callable runs on the driver
            when train, evaluate or predict is called.
        batch_size: Rows in a batch. In train per replica, as in tf.estimator: a step of all workers consumes
            `batch_size * num_workers` rows. In evaluate and predict the whole batch, for any number of tasks.
        label_columns: One column name, or several. PREDICT ignores these columns; they may be missing.
        feature_columns: The feature columns. None: all columns except the labels.
        num_epochs: Number of passes over the rows. None: endless in train, one in evaluate and predict.
        shuffle: Whether train reads the rows in random order, different in each epoch. Evaluate and predict keep the
            order of the Dataset.
        shuffle_buffer_rows: Rows in the shuffle buffer of each worker; 10,000 if `shuffle` is True. A larger buffer
            mixes better.
        seed: The seed of the shuffle, the same for every worker. None: `RunConfig.tf_random_seed`; without that,
            a different order in each call of train.
        drop_remainder: Whether train drops a last batch that is not full, which makes the batch dimension static.
            Evaluate and predict read every row.
        map_fn: Called once per graph with a batch of Tensors, `(features, labels)`; labels is None without labels.
            Returns `(features, labels)`, or features only. Runs in tf.data, on every worker and task.
        fill_null: The value that replaces nulls: one for all columns, or a dict from column name to value. None: nulls
            raise an error, except in float columns, where they become NaN.
        resume: Where train starts to read when it resumes from a checkpoint. ``"exact"``: after an interrupted run, at
            the row after the checkpoint's last row; after a run that ended, an endless input continues there too, and
            an input with `num_epochs` starts at its first row, as in tf.estimator. ``"restart"``: always at the first
            row. ``"rows"``: after as many rows as the earlier run consumed, even if the input has changed. Resuming is
            exact if the transforms of the Dataset are deterministic and, with `shuffle`, its blocks are the same. Ray
            Data reads the skipped rows of the current epoch again, but no worker fetches them.

    Returns:
        The input, to pass as `input_fn`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of range, a column is named twice, or `shuffle_buffer_rows` is set without
            `shuffle`.
    """
    if isinstance(feature_columns, str):
        raise TypeError(
            f"feature_columns must be a sequence of column names, got {feature_columns!r}. "
            f"Use [{feature_columns!r}]: features are always a dict."
        )
    if shuffle is True and shuffle_buffer_rows is None:
        shuffle_buffer_rows = _DEFAULT_SHUFFLE_BUFFER_ROWS
    return DatasetInput(
        dataset=dataset,
        batch_size=batch_size,
        label_columns=_as_names("label_columns", label_columns) or (),
        feature_columns=_as_names("feature_columns", feature_columns),
        num_epochs=num_epochs,
        shuffle=shuffle,
        shuffle_buffer_rows=shuffle_buffer_rows,
        seed=seed,
        drop_remainder=drop_remainder,
        map_fn=map_fn,
        fill_null=fill_null,
        resume=resume,
    )


def is_ray_dataset(value: Any) -> bool:
    """Return whether the value is a `ray.data.Dataset`, without importing Ray."""
    ray_data = sys.modules.get("ray.data")
    return ray_data is not None and isinstance(value, ray_data.Dataset)


def _check_dataset(dataset: Any) -> None:
    if is_ray_dataset(dataset):
        return
    if not callable(dataset):
        raise TypeError(
            "dataset must be a ray.data.Dataset or a zero-argument callable that returns one, got "
            f"{_type_name(dataset)}. Create one with ray.data.read_parquet(...) or ray.data.from_pandas(...); "
            "pass an input_fn that returns a tf.data.Dataset to the Estimator directly."
        )
    try:
        inspect.signature(dataset).bind()
    except TypeError as error:
        raise TypeError(
            f"dataset must be callable without arguments, got {dataset!r} ({error}). "
            "Bind them with a lambda or functools.partial."
        ) from None
    except ValueError:  # builtins may have no signature
        return


def _as_names(argument: str, columns: Any) -> tuple[str, ...] | None:
    if columns is None:
        return None
    if isinstance(columns, str):
        return (columns,)
    if not isinstance(columns, Sequence) or isinstance(columns, bytes):
        raise TypeError(f"{argument} must be a sequence of column names, got {columns!r}.")
    if not columns:
        raise ValueError(f"{argument} must name at least one column, got {columns!r}. Pass None for the default.")
    return tuple(columns)


def _check_columns(labels: tuple[str, ...], features: tuple[str, ...] | None) -> None:
    for argument, columns in (("label_columns", labels), ("feature_columns", features or ())):
        for column in columns:
            if not isinstance(column, str):
                raise TypeError(f"{argument} must be names of columns, got {column!r}.")
        if len(set(columns)) < len(columns):
            raise ValueError(f"{argument} must name each column once, got {list(columns)}.")
    both = sorted(set(labels) & set(features or ()))
    if both:
        raise ValueError(
            f"A column cannot be both a label and a feature, got {both} in label_columns and feature_columns. "
            "To use a label as a feature, copy it in map_fn."
        )


def _check_shuffle(shuffle: bool, buffer_rows: int | None, seed: int | None) -> None:
    if buffer_rows is not None:
        if not shuffle:
            raise ValueError(f"shuffle_buffer_rows={buffer_rows!r} needs shuffle=True. Set it, or remove both.")
        check_number("shuffle_buffer_rows", buffer_rows, integer=True)
    if seed is not None and (not isinstance(seed, numbers.Integral) or isinstance(seed, bool)):
        raise TypeError(f"seed must be an int or None, got {seed!r}.")


def _check_fill_null(fill_null: Any) -> None:
    if fill_null is None:
        return
    by_column = fill_null if isinstance(fill_null, Mapping) else {"": fill_null}
    for column, value in by_column.items():
        if not isinstance(column, str):
            raise TypeError(f"fill_null must have column names as keys, got {column!r}.")
        if not isinstance(value, str | bytes | numbers.Real):
            raise TypeError(
                f"fill_null must be a number, str or bytes, or a dict of them by column, got {fill_null!r}."
            )


def _type_name(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"
