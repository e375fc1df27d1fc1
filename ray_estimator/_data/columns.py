"""Converts Arrow columns to arrays for TensorFlow, without importing TensorFlow.

Arrow type                                     array
integers, floats, half, bool                   [n], same type
string, binary                                 [n] of bytes (strings in UTF-8), dtype "string"
timestamp, duration, date, time                [n] int64 in the column's unit (dates of 32 bits: days)
dictionary                                     same as its values
fixed-size list, possibly nested               [n, sizes ...], dense
Ray's tensors, Arrow's fixed-shape tensors     [n, shape ...], dense
list of scalars                                ragged, one level
struct                                         dict of the arrays of its fields, possibly nested
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Values = NDArray[Any]


@dataclass(frozen=True)
class ColumnSpec:
    """The array that a column is converted to.

    Attributes:
        name: The column's name.
        dtype: TensorFlow's name of the dtype. It equals NumPy's, except for "string": arrays of bytes objects.
        shape: The shape of one row: () for scalars, (None,) for ragged rows.
        ragged: Whether rows have a variable length; they are converted to `RaggedValues`.
        fields: The specs of a struct's fields, each named ``column.field``; a struct has no dtype and no shape.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    ragged: bool = False
    fields: Mapping[str, ColumnSpec] = field(default_factory=dict)

    @property
    def holds_ragged(self) -> bool:
        """Whether the column or one of its fields is ragged."""
        return self.ragged or any(each.holds_ragged for each in self.fields.values())


class RaggedValues(NamedTuple):
    """Rows of variable length: row i is values[row_splits[i] : row_splits[i + 1]].

    Attributes:
        values: The concatenated values of all rows; `[num_values]`.
        row_splits: `[num_rows + 1] int64`, starting at 0.
    """

    values: Values
    row_splits: NDArray[np.int64]


Arrays = Values | RaggedValues | dict[str, Any]
"""A struct is a dict of arrays."""


def select_columns(
    schema_names: Sequence[str],
    feature_columns: str | Sequence[str] | None,
    label_columns: str | Sequence[str] | None,
) -> tuple[list[str], list[str]]:
    """Return the names of the feature columns and of the label columns. Runs on the driver.

    Args:
        schema_names: The columns of the dataset.
        feature_columns: The features. None: all columns except the labels.
        label_columns: The labels. None: no labels.

    Raises:
        ValueError: A column does not exist, is named twice, or is both a feature and a label.
    """
    labels = _names(label_columns)
    if feature_columns is None:
        features = [name for name in schema_names if name not in labels]
    else:
        features = _names(feature_columns)
    _require_existing("label_columns", labels, schema_names)
    _require_existing("feature_columns", features, schema_names)
    _require_distinct("label_columns", labels)
    _require_distinct("feature_columns", features)
    both = [name for name in features if name in labels]
    if both:
        raise ValueError(
            f"A column cannot be both a label and a feature, got {both}. Remove it from one of feature_columns and "
            "label_columns."
        )
    selected = {*features, *labels}
    _require_distinct("The dataset's schema", [name for name in schema_names if name in selected])
    return features, labels


def column_specs(schema: pa.Schema, names: Sequence[str]) -> dict[str, ColumnSpec]:
    """Return the spec of each named column, in the order of `names`. Runs on the driver.

    Raises:
        ValueError: A column does not exist, or its type cannot be converted to a tensor. The message names the column,
            its type, and the cast to write.
    """
    _require_existing("names", names, schema.names)
    return {name: _column_spec(name, schema.field(name).type) for name in names}


def to_arrays(
    table: pa.Table, specs: Mapping[str, ColumnSpec], fill_null: Any | Mapping[str, Any] | None = None
) -> dict[str, Arrays]:
    """Convert a table's columns to arrays, rows first. Runs on every worker and task.

    The array of a column in a single chunk, without nulls, and with the same type in NumPy, shares the table's memory
    and is read-only. A column whose type differs from its spec is cast if the cast is lossless.

    Nulls in float columns become NaN, unless `fill_null` has a value for the column. With such a value, a null list of
    variable length becomes an empty list, and a null tensor a tensor filled with the value. The fields of a null struct
    are null.

    Args:
        table: The rows.
        specs: The columns to convert.
        fill_null: The value that replaces nulls: one for all columns, or a mapping from columns (``column.field`` in a
            struct) to values.

    Returns:
        For each column of `specs`, an array `[num_rows, *shape]`, `RaggedValues` if ragged, or a dict for a struct.

    Raises:
        ValueError: A column is missing, has nulls without a fill value, or does not match its spec.
    """
    _require_existing("specs", list(specs), table.column_names)
    return {name: _converted(_one_array(table.column(name)), spec, fill_null) for name, spec in specs.items()}


def _converted(array: pa.Array, spec: ColumnSpec, fill_null: Any) -> Arrays:
    if spec.fields:
        return _fields(array, spec, fill_null)
    nulls = _Nulls(spec.name, _fill_value(fill_null, spec.name))
    return _ragged(array, spec, nulls) if spec.ragged else _dense(array, spec, nulls)


def _fields(array: pa.Array, spec: ColumnSpec, fill_null: Any) -> dict[str, Arrays]:
    if not pa.types.is_struct(array.type) or any(array.type.get_field_index(name) < 0 for name in spec.fields):
        raise _mismatch(array, spec)
    children = array.flatten()  # null where the struct is null
    return {
        name: _converted(children[array.type.get_field_index(name)], child, fill_null)
        for name, child in spec.fields.items()
    }


def _column_spec(name: str, type_: pa.DataType) -> ColumnSpec:
    dtype = _dtype(type_)
    if dtype is not None:
        return ColumnSpec(name, dtype, ())
    if pa.types.is_struct(type_) and type_.num_fields:
        _require_distinct(f"The struct {name!r}", [each.name for each in type_])
        fields = {each.name: _column_spec(f"{name}.{each.name}", each.type) for each in type_}
        return ColumnSpec(name, "", (), fields=fields)
    if _is_list(type_):
        dtype = _dtype(type_.value_type)
        if dtype is None:
            raise _unsupported(name, type_)
        return ColumnSpec(name, dtype, (None,), ragged=True)
    shape, leaf = _dense_shape(type_)
    dtype = _dtype(leaf)
    if not shape or dtype is None or (dtype == "string" and _is_ray_tensor(type_)):  # stored as NumPy's UTF-32
        raise _unsupported(name, type_)
    return ColumnSpec(name, dtype, shape)


def _dtype(type_: pa.DataType) -> str | None:
    """Return the dtype of a scalar type; None for other types."""
    if pa.types.is_dictionary(type_):
        return _dtype(type_.value_type)
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_):
        return str(np.dtype(type_.to_pandas_dtype()))
    if _is_text(type_) or _is_bytes(type_):
        return "string"
    if pa.types.is_temporal(type_) and not pa.types.is_interval(type_):
        return "int64"
    return None


def _dense_shape(type_: pa.DataType) -> tuple[tuple[int, ...], pa.DataType]:
    """Return the shape of one row, and the type of its values."""
    if _is_ray_tensor(type_):
        return tuple(type_.shape), type_.storage_type.value_type
    if isinstance(type_, pa.FixedShapeTensorType) and not _is_permuted(type_):
        return tuple(type_.shape), type_.value_type
    if pa.types.is_fixed_size_list(type_):
        shape, leaf = _dense_shape(type_.value_type)
        return (type_.list_size, *shape), leaf
    return (), type_


def _is_ray_tensor(type_: pa.DataType) -> bool:
    # By its registered name, to avoid importing Ray. Tensors of variable shape have another name.
    return isinstance(type_, pa.BaseExtensionType) and str(type_.extension_name).startswith("ray.data.arrow_tensor")


def _is_permuted(type_: pa.FixedShapeTensorType) -> bool:
    # pyarrow reads permuted tensors of three or more axes with wrong strides (seen in 26.0), so the intended order is
    # unknown.
    return list(type_.permutation or []) not in ([], list(range(len(type_.shape))))


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_))


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _is_bytes(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(type_)
        or pa.types.is_large_binary(type_)
        or pa.types.is_binary_view(type_)
        or pa.types.is_fixed_size_binary(type_)
    )


def _unsupported(name: str, type_: pa.DataType) -> ValueError:
    if pa.types.is_null(type_):
        return ValueError(
            f"Column {name!r} has only nulls, so its type is unknown. Cast it in the dataset, for example "
            f'table.set_column(i, {name!r}, table[{name!r}].cast("float32")), or remove it from feature_columns.'
        )
    return ValueError(
        f"Column {name!r} has type {type_}, which cannot be converted to a tensor. {_conversion_hint(name, type_)} "
        'Use dataset.map_batches(fn, batch_format="pyarrow"), or remove the column from feature_columns.'
    )


def _conversion_hint(name: str, type_: pa.DataType) -> str:
    column = f"table[{name!r}]"
    if pa.types.is_decimal(type_):
        return f'Cast it: {column}.cast("float64").'
    if pa.types.is_struct(type_):
        return "It has no fields."
    if pa.types.is_map(type_):
        return f"Take its values by key: pyarrow.compute.map_lookup({column}, key, 'first')."
    if pa.types.is_union(type_):
        return "Make each of its alternatives a separate column."
    if pa.types.is_run_end_encoded(type_):
        return f"Decode it: pyarrow.compute.run_end_decode({column})."
    if isinstance(type_, pa.BaseExtensionType):
        if "variable_shaped_tensor" in type_.extension_name:
            return "Pad its tensors to one shape, or flatten each to a list."
        if isinstance(type_, pa.FixedShapeTensorType):
            return "Write its tensors without a permutation of axes."
        if _is_ray_tensor(type_):
            return "Convert its strings to a list column: tensor.tolist() for each row."
        if "pickled_object" in type_.extension_name:
            return "Convert its Python objects to numbers, strings, or lists of either."
        return f"Cast it to a plain type, for example {column}.cast({type_.storage_type})."
    if _is_list(type_) or pa.types.is_fixed_size_list(type_):
        return "Flatten its rows to lists of numbers or strings, or pad them to tensors of one shape."
    if pa.types.is_list_view(type_) or pa.types.is_large_list_view(type_):
        return f"Cast it to a list: {column}.cast(pyarrow.large_list({type_.value_type}))."
    return "Cast it to numbers or strings."


@dataclass(frozen=True)
class _Nulls:
    """The replacement for the nulls of one column. None: NaN in float columns, an error in others."""

    column: str
    fill: Any

    def scalar(self, array: pa.Array, type_: pa.DataType) -> pa.Scalar:
        """Return the replacement for the nulls of `array`, as `type_`."""
        if self.fill is None and not pa.types.is_floating(type_):
            raise ValueError(
                f"Column {self.column!r} has {array.null_count} null(s) in {len(array)} values of type {array.type}. "
                f"Pass a replacement, fill_null={{{self.column!r}: ...}}, or filter those rows out."
            )
        fill = math.nan if self.fill is None else self.fill
        try:
            if isinstance(fill, str | bytes) != _is_bytes(type_):
                raise TypeError("only one of them is text or bytes")
            return pa.scalar(fill).cast(type_)
        except (pa.ArrowException, TypeError) as error:
            raise ValueError(
                f"fill_null={fill!r} does not fit column {self.column!r}, which is converted to {type_}: {error}. "
                "Pass one value per column: fill_null={column: value}."
            ) from error


def _fill_value(fill_null: Any | Mapping[str, Any] | None, name: str) -> Any:
    return fill_null.get(name) if isinstance(fill_null, Mapping) else fill_null


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)  # chunk by chunk, since their dictionaries may differ
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _ragged(array: pa.Array, spec: ColumnSpec, nulls: _Nulls) -> RaggedValues:
    if pa.types.is_null(array.type):
        array = array.cast(pa.list_(array.type))
    if not _is_list(array.type):
        raise _mismatch(array, spec)
    if array.null_count and nulls.fill is None:
        raise ValueError(
            f"Column {spec.name!r} has {array.null_count} null(s) in {len(array)} lists. Pass fill_null= to make "
            "them empty lists, or filter those rows out."
        )
    offsets = array.offsets.to_numpy()
    row_splits = (offsets - offsets[0]).astype(np.int64, copy=False)
    if array.null_count:  # a null may cover values, which flatten() omits
        lengths = np.diff(offsets) * _is_valid(array)
        row_splits = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return RaggedValues(_scalars(array.flatten(), spec, nulls), row_splits)


def _dense(array: pa.Array, spec: ColumnSpec, nulls: _Nulls) -> Values:
    known_shape, _ = _dense_shape(array.type)
    if known_shape and known_shape != spec.shape:
        raise _mismatch(array, spec)
    shape = tuple(size or 0 for size in spec.shape)
    if not shape:
        return _scalars(array, spec, nulls)
    return _flat_values(array, math.prod(shape), spec, nulls).reshape(len(array), *shape)


def _flat_values(array: pa.Array, width: int, spec: ColumnSpec, nulls: _Nulls) -> Values:
    """Return the values of rows with `width` values each, at any nesting of lists; `[len(array) * width]`."""
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_null(array.type):
        return np.repeat(_scalars(array, spec, nulls), width)
    if not _is_list(array.type) and not pa.types.is_fixed_size_list(array.type):
        if width != 1:
            raise _mismatch(array, spec)
        return _scalars(array, spec, nulls)
    items = array.flatten()  # omits those of null rows
    num_rows = len(array) - array.null_count
    if not _has_equal_rows(array, len(items), num_rows):
        raise _mismatch(array, spec)
    item_width, uneven = divmod(num_rows * width, len(items)) if len(items) else (1, num_rows * width)
    if uneven:
        raise _mismatch(array, spec)
    values = _flat_values(items, item_width, spec, nulls)
    return _with_null_rows(array, values.reshape(num_rows, width), spec, nulls) if array.null_count else values


def _has_equal_rows(array: pa.Array, num_items: int, num_rows: int) -> bool:
    """Return whether all non-null rows have the same number of items."""
    if pa.types.is_fixed_size_list(array.type):
        return True
    lengths = np.diff(array.offsets.to_numpy())
    if array.null_count:
        lengths = lengths[_is_valid(array)]
    return bool((lengths * num_rows == num_items).all())


def _with_null_rows(array: pa.Array, values: Values, spec: ColumnSpec, nulls: _Nulls) -> Values:
    """Return the values of all rows, flat, with null rows filled by their replacement."""
    rows = np.empty((len(array), values.shape[1]), values.dtype)
    valid = _is_valid(array)
    rows[valid] = values
    rows[~valid] = nulls.scalar(array, _arrow_type(spec)).as_py()
    return rows.ravel()


def _scalars(array: pa.Array, spec: ColumnSpec, nulls: _Nulls) -> Values:
    type_ = _arrow_type(spec)
    plain = _plain(array)
    if _is_bytes(plain.type) != _is_bytes(type_) and not pa.types.is_null(
        plain.type
    ):  # Arrow would parse text as numbers
        raise _mismatch(array, spec)
    try:
        plain = plain.cast(type_)
    except pa.ArrowException as error:
        raise _mismatch(array, spec) from error
    if plain.null_count:
        plain = plain.fill_null(nulls.scalar(array, type_))
    if pa.types.is_boolean(type_):
        return np.asarray(plain.cast(pa.uint8())).view(np.bool_)
    return np.asarray(plain)


def _plain(array: pa.Array) -> pa.Array:
    """Return the array as numbers or bytes, without a copy where possible."""
    if pa.types.is_dictionary(array.type):
        return _plain(array.dictionary_decode())
    if pa.types.is_temporal(array.type):
        return array.view(pa.int32() if array.type.bit_width == 32 else pa.int64())
    if _is_text(array.type):
        return array.cast(pa.binary() if pa.types.is_string(array.type) else pa.large_binary())
    return array


def _arrow_type(spec: ColumnSpec) -> pa.DataType:
    return pa.large_binary() if spec.dtype == "string" else pa.from_numpy_dtype(np.dtype(spec.dtype))


def _is_valid(array: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(array.is_valid())


def _mismatch(array: pa.Array, spec: ColumnSpec) -> ValueError:
    expected = f"rows of shape {spec.shape} {spec.dtype}" if spec.shape else f"{spec.dtype} values"
    if spec.fields:
        expected = f"structs with the fields {list(spec.fields)}"
    return ValueError(
        f"Column {spec.name!r} must have {expected}, but some rows have type {array.type} and do not fit. "
        "Cast or pad them in the dataset, so that all rows have the same type and shape."
    )


def _names(columns: str | Sequence[str] | None) -> list[str]:
    if columns is None:
        return []
    return [columns] if isinstance(columns, str) else list(columns)


def _require_existing(what: str, names: Iterable[str], existing: Sequence[str]) -> None:
    known = set(existing)
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"{what} has unknown columns {missing}. The columns are {list(existing)}.")


def _require_distinct(what: str, names: Iterable[str]) -> None:
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{what} must name each column once, but has {repeated} more than once.")
