"""What an Estimator reads: a Ray Dataset (`dataset_input_fn`), or arrays and data frames in memory.

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

__all__ = ["DatasetInput", "dataset_input_fn", "is_ray_dataset", "numpy_input_fn", "pandas_input_fn"]

if TYPE_CHECKING:
    from ray.data import Dataset

_DEFAULT_SHUFFLE_BUFFER_ROWS = 10_000

MapFn = Callable[[Any, Any], Any]
FillNull = bool | int | float | str | bytes


@dataclass(frozen=True)
class DatasetInput:
    """An input that Ray Data reads; `dataset_input_fn` makes it and describes the fields.

    Attributes:
        dataset: A `ray.data.Dataset`, or a zero-argument callable that returns one.
        batch_size: Rows of a batch; in train, of each replica.
        label_columns: The names of the label columns, none if the input has no labels.
        feature_columns: The names of the feature columns, or None for all that are no labels.
        num_epochs: How often the rows are read, or None for the default of the verb.
        shuffle: Whether train reads the rows in random order.
        shuffle_buffer_rows: Rows among which the order is random; None without `shuffle`.
        seed: The seed of the random order.
        drop_remainder: Whether a last batch of fewer rows is left out.
        map_fn: What to make of `(features, labels)`, in the graph.
        fill_null: What stands for nulls: one value, or one for each column.
        resume: Where train begins to read when it goes on from a checkpoint.
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
        """Check every field."""
        _check_dataset(self.dataset)
        _check_columns(self.label_columns, self.feature_columns)
        _check_positive("batch_size", self.batch_size)
        if self.num_epochs is not None:
            _check_positive("num_epochs", self.num_epochs)
        for name in ("shuffle", "drop_remainder"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, given: {getattr(self, name)!r}.")
        _check_shuffle(self.shuffle, self.shuffle_buffer_rows, self.seed)
        if self.map_fn is not None and not callable(self.map_fn):
            raise TypeError(f"map_fn must be a function of (features, labels) or None, given: {self.map_fn!r}.")
        _check_fill_null(self.fill_null)
        if self.resume not in WAYS_TO_RESUME:
            raise ValueError(f"resume must be one of {', '.join(map(repr, WAYS_TO_RESUME))}, given: {self.resume!r}.")

    @property
    def single_label(self) -> bool:
        """Whether the labels are one Tensor rather than a dict of Tensors."""
        return len(self.label_columns) == 1

    def resolve(self) -> Dataset:
        """Return the Ray Dataset, calling `dataset` if it is a callable. Runs on the driver.

        Raises:
            TypeError: The callable returned something else.
        """
        if is_ray_dataset(self.dataset):
            return self.dataset
        made = self.dataset()
        if not is_ray_dataset(made):
            raise TypeError(
                f"The callable given to dataset_input_fn must return a ray.data.Dataset, returned: {_described(made)}."
            )
        return made


InputFn = Callable[..., Any] | DatasetInput
"""What a verb reads: an input_fn as tf.estimator takes it, or what `dataset_input_fn` made."""


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
    """Describe a Ray Dataset as an input of `train`, `evaluate` or `predict`. Nothing is read yet.

    Example:
        >>> ds = ray.data.read_parquet("s3://bucket/train")
        >>> estimator.train(dataset_input_fn(ds, batch_size=128, label_columns="y", shuffle=True), steps=1000)

    Features are always a dict from column name to Tensor of shape `[batch, ...]`. Labels are a Tensor if there
    is one label column, a dict if there are several, and None if there are none. Dtypes follow the Arrow types
    of the columns: `int64` stays int64, `double` becomes float64, `string` and `binary` become tf.string.

    The workers of a training run share the rows of each epoch, and all make the same number of steps. In
    evaluate and predict the rows are shared by tasks; batches and results are those of a single pass in order.

    For TFRecords, read the serialized examples as a binary column and parse them in `map_fn`:

        >>> def parse(features, labels):
        ...     parsed = tf.io.parse_example(features["bytes"], FEATURE_SPEC)
        ...     return parsed, parsed.pop("label")

    Args:
        dataset: A `ray.data.Dataset`, or a zero-argument callable that returns one, called on the driver when
            a verb starts.
        batch_size: Rows of a batch. In train this is per replica, as in tf.estimator: one step of the whole
            run takes `batch_size * num_workers` rows. In evaluate and predict it is the whole batch, whatever
            the number of tasks.
        label_columns: One column name, or several. PREDICT drops these columns and does not miss them.
        feature_columns: Which columns are features. None: all that are no labels.
        num_epochs: How often all rows are read. None: for ever in train, once in evaluate and predict.
        shuffle: Whether train reads the rows in random order, another one each epoch. Evaluate and predict
            keep the order of the Dataset.
        shuffle_buffer_rows: Rows held in memory, on each worker, to choose the next one from; 10,000 if
            `shuffle` is True. More of them mix better.
        seed: The seed of the random order, the same for every worker. None: `RunConfig.tf_random_seed`, or without
            one another order in each call of train.
        drop_remainder: Whether train leaves out a last batch that is not full; its batch dimension is then static.
            Evaluate and predict see every row.
        map_fn: Called once in each graph with batches of Tensors, `(features, labels)`, labels None if there
            are none. Returns `(features, labels)`, or features alone. Runs in tf.data, on every worker and
            task.
        fill_null: What stands for nulls: one value for every column, or a dict from column name to value.
            None: nulls are an error, except in float columns, where they become NaN.
        resume: Where train begins to read when it goes on from a checkpoint. ``"exact"``: after a run that was cut
            off, with the row behind the checkpoint's last one; after a run that came to its end, an endless input
            goes on, too, and one of `num_epochs` is read anew, as by tf.estimator. ``"restart"``: always from the
            first row. ``"rows"``: behind as many rows as the earlier run had consumed, whatever it had read. The same
            row is next if the transforms of the Dataset are deterministic and, with `shuffle`, its blocks are the
            same. The rows before it are read by Ray Data again, of this epoch only, and fetched by nobody.

    Returns:
        The input, to be given as `input_fn`.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A number is out of range, a column is named twice, or `shuffle_buffer_rows` comes without
            `shuffle`.
    """
    if isinstance(feature_columns, str):
        raise TypeError(
            f"feature_columns must be a sequence of column names, given: {feature_columns!r}. "
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
    """Whether the value is a `ray.data.Dataset`; asking imports nothing, for who has one has imported Ray Data."""
    ray_data = sys.modules.get("ray.data")
    return ray_data is not None and isinstance(value, ray_data.Dataset)


def _check_dataset(dataset: Any) -> None:
    if is_ray_dataset(dataset):
        return
    if not callable(dataset):
        raise TypeError(
            "dataset must be a ray.data.Dataset or a zero-argument callable that returns one, given: "
            f"{_described(dataset)}. Make one with ray.data.read_parquet(...), ray.data.from_pandas(...) or the like; "
            "an input_fn that returns a tf.data.Dataset goes to the Estimator as it is."
        )
    try:
        inspect.signature(dataset).bind()
    except TypeError as error:
        raise TypeError(
            f"dataset must be callable without arguments, given: {dataset!r} ({error}). "
            "Bind them with a lambda or functools.partial."
        ) from None
    except ValueError:  # a builtin that does not show its signature
        return


def _as_names(argument: str, columns: Any) -> tuple[str, ...] | None:
    if columns is None:
        return None
    if isinstance(columns, str):
        return (columns,)
    if not isinstance(columns, Sequence) or isinstance(columns, bytes):
        raise TypeError(f"{argument} must be a sequence of column names, given: {columns!r}.")
    if not columns:
        raise ValueError(f"{argument} must name at least one column, given: {columns!r}. For the default, pass None.")
    return tuple(columns)


def _check_columns(labels: tuple[str, ...], features: tuple[str, ...] | None) -> None:
    for argument, columns in (("label_columns", labels), ("feature_columns", features or ())):
        for column in columns:
            if not isinstance(column, str):
                raise TypeError(f"{argument} must hold names of columns, given: {column!r}.")
        if len(set(columns)) < len(columns):
            raise ValueError(f"{argument} must name each column once, given: {list(columns)}.")
    both = sorted(set(labels) & set(features or ()))
    if both:
        raise ValueError(
            f"A column is a label or a feature, not both, given in label_columns and feature_columns: {both}. "
            "To use a label as a feature, copy it in map_fn."
        )


def _check_positive(argument: str, value: Any) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{argument} must be an int, given: {value!r}.")
    if value <= 0:
        raise ValueError(f"{argument} should be > 0, given: {value!r}.")


def _check_shuffle(shuffle: bool, buffer_rows: int | None, seed: int | None) -> None:
    if buffer_rows is not None:
        if not shuffle:
            raise ValueError(f"shuffle_buffer_rows={buffer_rows!r} needs shuffle=True. Set it, or leave both out.")
        _check_positive("shuffle_buffer_rows", buffer_rows)
    if seed is not None and (not isinstance(seed, numbers.Integral) or isinstance(seed, bool)):
        raise TypeError(f"seed must be an int or None, given: {seed!r}.")


def _check_fill_null(fill_null: Any) -> None:
    if fill_null is None:
        return
    by_column = fill_null if isinstance(fill_null, Mapping) else {"": fill_null}
    for column, value in by_column.items():
        if not isinstance(column, str):
            raise TypeError(f"fill_null must have names of columns as keys, given: {column!r}.")
        if not isinstance(value, str | bytes | numbers.Real):
            raise TypeError(
                f"fill_null must be a number, str or bytes, or a dict of them by column, given: {fill_null!r}."
            )


def _described(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"
