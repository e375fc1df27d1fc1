from __future__ import annotations

import datetime
import subprocess
import sys
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_estimator._data.columns import ColumnSpec, RaggedValues, column_specs, select_columns, to_arrays


def convert(column: pa.Array | pa.ChunkedArray, fill_null: Any = None) -> np.ndarray | RaggedValues:
    table = pa.table({"x": column})
    return to_arrays(table, column_specs(table.schema, ["x"]), fill_null)["x"]


def spec_of(type_: pa.DataType) -> ColumnSpec:
    return column_specs(pa.schema([("x", type_)]), ["x"])["x"]


def rows_of(ragged: np.ndarray | RaggedValues) -> list[list[Any]]:
    assert isinstance(ragged, RaggedValues)
    assert ragged.row_splits.dtype == np.int64
    assert ragged.row_splits[0] == 0
    return (
        [part.tolist() for part in np.split(ragged.values, ragged.row_splits[1:-1])] if len(ragged.row_splits) else []
    )


NUMBERS = [
    pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
    pa.float16(), pa.float32(), pa.float64(),
]  # fmt: skip


@pytest.mark.parametrize("type_", NUMBERS, ids=str)
def test_numbers_keep_their_dtype_and_share_memory(type_: pa.DataType) -> None:
    dtype = type_.to_pandas_dtype()
    column = pa.array(np.array([1, 2, 3, 4], dtype)).slice(1)
    array = convert(column)
    assert spec_of(type_) == ColumnSpec("x", np.dtype(dtype).name, ())
    assert array.dtype == dtype
    assert array.tolist() == [2, 3, 4]
    assert np.shares_memory(array, column.to_numpy(zero_copy_only=True))


def test_bools_are_unpacked() -> None:
    column = pa.array([True, False, True, True, False] * 5).slice(3)
    array = convert(column)
    assert spec_of(pa.bool_()).dtype == "bool"
    assert array.dtype == np.bool_
    assert array.tolist() == column.to_pylist()


@pytest.mark.parametrize(
    "type_",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3)],
    ids=str,
)
def test_strings_become_bytes_in_utf8(type_: pa.DataType) -> None:
    array = convert(pa.array(["abc", "ä1", "€"], pa.string()).cast(pa.binary()).cast(type_).slice(1))
    assert spec_of(type_) == ColumnSpec("x", "string", ())
    assert array.dtype == object
    assert array.tolist() == ["ä1".encode(), "€".encode()]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1_000_001], pa.timestamp("us")), 1_000_001),
        (pa.array([datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC)], pa.timestamp("s", tz="UTC")), 86400),
        (pa.array([datetime.date(1970, 1, 11)], pa.date32()), 10),
        (pa.array([datetime.date(1970, 1, 2)], pa.date64()), 86_400_000),
        (pa.array([5], pa.duration("ms")), 5),
        (pa.array([7], pa.time32("s")), 7),
        (pa.array([7], pa.time64("ns")), 7),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_times_are_int64_in_their_unit(column: pa.Array, expected: int) -> None:
    array = convert(column)
    assert spec_of(column.type) == ColumnSpec("x", "int64", ())
    assert array.dtype == np.int64
    assert array.tolist() == [expected]


def test_dictionaries_are_decoded_though_each_chunk_has_its_own() -> None:
    chunks = [pa.array(["a", "b", "a"]).dictionary_encode(), pa.array(["c"]).dictionary_encode()]
    assert spec_of(chunks[0].type) == ColumnSpec("x", "string", ())
    assert convert(pa.chunked_array(chunks)).tolist() == [b"a", b"b", b"a", b"c"]
    many = [
        pa.array(range(start, start + 100)).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.int64()))
        for start in (0, 100)
    ]
    assert convert(pa.chunked_array(many)).tolist() == list(range(200))  # together too many for their indices
    numbers = pa.array([5, 6, 5], pa.int32()).dictionary_encode()
    assert convert(numbers).dtype == np.int32
    assert convert(numbers).tolist() == [5, 6, 5]


def test_fixed_size_lists_are_dense_and_share_memory() -> None:
    type_ = pa.list_(pa.list_(pa.float32(), 2), 3)
    values = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    leaf = pa.array(values.ravel())
    column = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(leaf, 2), 3)
    assert column.type == type_
    array = convert(column.slice(1, 2))
    assert spec_of(type_) == ColumnSpec("x", "float32", (3, 2))
    np.testing.assert_array_equal(array, values[1:3])
    assert np.shares_memory(array, leaf.to_numpy())


def test_fixed_size_lists_of_strings_and_bools_are_dense() -> None:
    assert convert(pa.array([["a", "b"]] * 2, pa.list_(pa.string(), 2))).tolist() == [[b"a", b"b"]] * 2
    assert convert(pa.array([[True, False]] * 2, pa.list_(pa.bool_(), 2))).tolist() == [[True, False]] * 2


def test_fixed_shape_tensors_keep_their_shape() -> None:
    values = np.arange(48, dtype=np.int32).reshape(2, 2, 3, 4)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    array = convert(column.slice(1))
    assert spec_of(column.type) == ColumnSpec("x", "int32", (2, 3, 4))
    np.testing.assert_array_equal(array, values[1:])
    assert np.shares_memory(array, values)


class TestRayTensors:
    @pytest.fixture(autouse=True)
    def _tensors(self) -> None:
        extensions = pytest.importorskip("ray.data.extensions")
        self.from_numpy = extensions.ArrowTensorArray.from_numpy
        self.plain_type = extensions.ArrowTensorType
        self.variable = extensions.ArrowVariableShapedTensorArray.from_numpy
        self.objects = extensions.ArrowPythonObjectArray.from_objects

    @pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "int64", "bool"])
    def test_tensors_keep_shape_and_dtype(self, dtype: str) -> None:
        values = (np.arange(48) % 3).astype(dtype).reshape(4, 2, 2, 3)
        column = self.from_numpy(values)
        array = convert(column.slice(1, 2))
        assert spec_of(column.type) == ColumnSpec("x", dtype, (2, 2, 3))
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, values[1:3])

    def test_tensors_share_memory(self) -> None:
        column = self.from_numpy(np.arange(24.0).reshape(4, 2, 3))
        assert np.shares_memory(convert(column), column.storage.flatten().to_numpy())

    def test_tensors_of_the_first_format_are_supported(self) -> None:
        type_ = self.plain_type((2, 2), pa.int32())
        storage = pa.array([[1, 2, 3, 4], [5, 6, 7, 8]], type_.storage_type)
        column = pa.ExtensionArray.from_storage(type_, storage)
        assert convert(column).tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]

    def test_tensors_without_values_keep_their_shape(self) -> None:
        assert convert(self.from_numpy(np.zeros((3, 0, 2)))).shape == (3, 0, 2)
        assert convert(self.from_numpy(np.zeros((3, 4))).slice(0, 0)).shape == (0, 4)

    def test_a_tensor_whose_extension_is_not_registered_fits_its_spec(self) -> None:
        column = self.from_numpy(np.arange(12).reshape(2, 2, 3))
        spec = spec_of(column.type)
        arrays = to_arrays(pa.table({"x": column.storage}), {"x": spec})
        np.testing.assert_array_equal(arrays["x"], np.arange(12).reshape(2, 2, 3))

    def test_null_tensors_become_nan_or_the_fill(self) -> None:
        type_ = self.from_numpy(np.zeros((1, 2), np.float32)).type
        column = pa.ExtensionArray.from_storage(type_, pa.array([[1, 2], None], type_.storage_type))
        np.testing.assert_array_equal(convert(column), [[1, 2], [np.nan, np.nan]])
        assert convert(column, fill_null=7).tolist() == [[1, 2], [7, 7]]

    def test_a_block_of_another_shape_is_an_error(self) -> None:
        spec = spec_of(self.from_numpy(np.zeros((1, 2, 3))).type)
        with pytest.raises(ValueError, match=r"'x' must have rows of shape \(2, 3\) float64"):
            to_arrays(pa.table({"x": self.from_numpy(np.zeros((1, 3, 2)))}), {"x": spec})

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda self: self.variable([np.zeros((1, 2)), np.zeros((2, 2))]), "Pad its tensors to one shape"),
            (lambda self: self.from_numpy(np.array([["a", "bc"]])), "list column"),
            (lambda self: self.objects([{1}, object]), "Convert its Python objects to numbers"),
        ],
    )
    def test_other_tensors_are_refused_with_a_hint(self, make: Any, message: str) -> None:
        with pytest.raises(ValueError, match=rf"Column 'x' has type .*{message}"):
            spec_of(make(self).type)


@pytest.mark.parametrize("type_", [pa.list_(pa.float32()), pa.large_list(pa.float32())], ids=str)
def test_lists_are_ragged_and_share_memory(type_: pa.DataType) -> None:
    column = pa.array([[9], [1, 2], [], [3]], type_).slice(1)
    ragged = convert(column)
    assert spec_of(type_) == ColumnSpec("x", "float32", (None,), ragged=True)
    assert rows_of(ragged) == [[1, 2], [], [3]]
    assert ragged.values.dtype == np.float32
    assert np.shares_memory(ragged.values, column.values.to_numpy())


def test_lists_of_strings_are_ragged_bytes() -> None:
    assert spec_of(pa.list_(pa.string())).dtype == "string"
    assert rows_of(convert(pa.array([["a", "bc"], []]))) == [[b"a", b"bc"], []]
    assert rows_of(convert(pa.array([[True], [False, True]]))) == [[True], [False, True]]
    assert rows_of(convert(pa.array([["a"], ["b", "a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))))) == [
        [b"a"],
        [b"b", b"a"],
    ]


def test_chunks_are_joined() -> None:
    assert convert(pa.chunked_array([[1, 2], [], [3]])).tolist() == [1, 2, 3]
    assert rows_of(convert(pa.chunked_array([[[1], [2, 3]], [[4], []]]))) == [[1], [2, 3], [4], []]
    assert convert(pa.chunked_array([["a"], ["b"]])).tolist() == [b"a", b"b"]


@pytest.mark.parametrize(
    "type_", [pa.int32(), pa.bool_(), pa.string(), pa.list_(pa.int16(), 3), pa.timestamp("s")], ids=str
)
def test_a_table_without_rows_gives_arrays_without_rows(type_: pa.DataType) -> None:
    array = convert(pa.chunked_array([], type_))
    assert array.shape == (0, *spec_of(type_).shape)
    ragged = convert(pa.chunked_array([], pa.list_(pa.int32())))
    assert (ragged.values.tolist(), ragged.row_splits.tolist()) == ([], [0])


@pytest.mark.parametrize("type_", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_nulls_in_floats_become_nan(type_: pa.DataType) -> None:
    array = convert(pa.array([1, None], pa.float64()).cast(type_))
    assert array.dtype == type_.to_pandas_dtype()
    np.testing.assert_array_equal(array, [1, np.nan])
    np.testing.assert_array_equal(rows_of(convert(pa.array([[1, None]], pa.list_(type_))))[0], [1, np.nan])
    np.testing.assert_array_equal(
        convert(pa.array([[1, None], None], pa.list_(type_, 2))), [[1, np.nan], [np.nan, np.nan]]
    )


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None, None]),
        pa.array(["a", None, None]),
        pa.array([True, None, None]),
        pa.array([1, None, None], pa.timestamp("s")),
        pa.array(["a", None, None]).dictionary_encode(),
        pa.array([[1], None, None]),
        pa.array([[None, None, 1]]),
        pa.array([[1, 2], None, None], pa.list_(pa.int8(), 2)),
    ],
    ids=lambda column: str(column.type),
)
def test_other_nulls_are_an_error_that_names_column_and_count(column: pa.Array) -> None:
    with pytest.raises(ValueError, match=r"Column 'x' has 2 null\(s\) in 3 .*fill_null"):
        convert(column)


@pytest.mark.parametrize(
    ("column", "fill", "expected"),
    [
        (pa.array([1, None], pa.uint8()), 7, [1, 7]),
        (pa.array([1.5, None]), -1, [1.5, -1.0]),
        (pa.array(["a", None]), "é", [b"a", "é".encode()]),
        (pa.array([b"a", None]), b"z", [b"a", b"z"]),
        (pa.array([True, None]), False, [True, False]),
        (pa.array([5, None], pa.date32()), 0, [5, 0]),
        (pa.array(["a", None]).dictionary_encode(), "?", [b"a", b"?"]),
        (pa.array([[1, None], None], pa.list_(pa.int8(), 2)), 3, [[1, 3], [3, 3]]),
        (pa.array([None, ["a", None]], pa.list_(pa.string(), 2)), "", [[b"", b""], [b"a", b""]]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_fill_null_replaces_nulls(column: pa.Array, fill: Any, expected: list[Any]) -> None:
    assert convert(column, fill_null=fill).tolist() == expected
    assert convert(column, fill_null={"x": fill, "y": object()}).tolist() == expected


def test_fill_null_makes_null_lists_empty_and_fills_null_items() -> None:
    hidden = pa.ListArray.from_arrays(
        pa.array([0, 2, 4, 5]), pa.array([1, None, 98, 99, 4]), mask=pa.array([False, True, False])
    )
    assert rows_of(convert(hidden, fill_null=0)) == [[1, 0], [], [4]]
    assert rows_of(convert(hidden.slice(1), fill_null=0)) == [[], [4]]


def test_a_mapping_without_the_column_fills_nothing() -> None:
    np.testing.assert_array_equal(convert(pa.array([None, 1.0]), fill_null={"y": 0}), [np.nan, 1])
    with pytest.raises(ValueError, match="has 1 null"):
        convert(pa.array([None, 1]), fill_null={"y": 0})


@pytest.mark.parametrize(
    ("column", "fill"),
    [
        (pa.array([1, None]), 0.5),
        (pa.array([1, None], pa.uint8()), -1),
        (pa.array(["a", None]), 1),
        (pa.array([[1, 2], None], pa.list_(pa.uint8(), 2)), 300),
        (pa.array([1, None]), object()),
        (pa.array([1, None]), "5"),
    ],
)
def test_a_fill_that_does_not_fit_is_an_error(column: pa.Array, fill: Any) -> None:
    with pytest.raises(ValueError, match=r"fill_null=.* does not fit column 'x'"):
        convert(column, fill_null=fill)


def test_blocks_of_a_narrower_type_are_cast_to_the_spec() -> None:
    specs = column_specs(
        pa.schema([("a", pa.float64()), ("b", pa.list_(pa.int64())), ("c", pa.float32())]), list("abc")
    )
    table = pa.table(
        {"a": pa.array([1, 2], pa.int32()), "b": pa.array([[1], [2, 3]], pa.list_(pa.int8())), "c": pa.nulls(2)}
    )
    arrays = to_arrays(table, specs)
    assert arrays["a"].dtype == np.float64
    assert arrays["a"].tolist() == [1, 2]
    assert arrays["b"].values.dtype == np.int64
    assert np.isnan(arrays["c"]).all()
    assert arrays["c"].dtype == np.float32


@pytest.mark.parametrize(
    ("type_", "fill", "expected"),
    [(pa.list_(pa.float32(), 2), None, [[np.nan] * 2] * 3), (pa.list_(pa.int8(), 2), 4, [[4, 4]] * 3)],
)
def test_a_block_of_nulls_only_fits_a_dense_spec(type_: pa.DataType, fill: Any, expected: Any) -> None:
    array = to_arrays(pa.table({"x": pa.nulls(3)}), {"x": spec_of(type_)}, fill)["x"]
    np.testing.assert_array_equal(array, expected)


def test_a_block_of_nulls_only_fits_a_ragged_spec_if_filled() -> None:
    table, specs = pa.table({"x": pa.nulls(2)}), {"x": spec_of(pa.list_(pa.int8()))}
    with pytest.raises(ValueError, match=r"has 2 null\(s\) in 2 lists"):
        to_arrays(table, specs)
    ragged = to_arrays(table, specs, fill_null=0)["x"]
    assert (ragged.values.tolist(), ragged.row_splits.tolist()) == ([], [0, 0, 0])
    assert ragged.values.dtype == np.int8


@pytest.mark.parametrize(
    ("spec_type", "column"),
    [
        (pa.int64(), pa.array([1.5])),
        (pa.int8(), pa.array([300])),
        (pa.int64(), pa.array(["5"])),
        (pa.string(), pa.array([5])),
        (pa.float32(), pa.array([[1.0]])),
        (pa.list_(pa.float32()), pa.array([1.0])),
        (pa.list_(pa.float32(), 2), pa.array([1.0, 2.0])),
        (pa.list_(pa.float32(), 2), pa.array([[], []], pa.list_(pa.float32()))),
        (pa.list_(pa.float32(), 2), pa.array([[1.0], [2.0]])),
        (pa.list_(pa.float32(), 2), pa.array([[1.0], [2.0, 3.0, 4.0]])),
        (pa.list_(pa.float32(), 2), pa.array([[1.0, 2.0, 3.0]], pa.list_(pa.float32(), 3))),
    ],
    ids=str,
)
def test_a_block_that_does_not_fit_the_spec_is_an_error(spec_type: pa.DataType, column: pa.Array) -> None:
    with pytest.raises(ValueError, match="Column 'x' must have"):
        to_arrays(pa.table({"x": column}), {"x": spec_of(spec_type)})


@pytest.mark.parametrize(
    ("type_", "hint"),
    [
        (pa.decimal128(10, 2), r"table\['x'\].cast\(\"float64\"\)"),
        (pa.struct([]), "no fields"),
        (pa.list_(pa.struct([("a", pa.int64())])), "Flatten its rows"),
        (pa.map_(pa.string(), pa.int64()), "map_lookup"),
        (pa.list_(pa.list_(pa.int64())), "Flatten its rows"),
        (pa.list_(pa.list_(pa.int64(), 2)), "Flatten its rows"),
        (pa.list_(pa.list_(pa.int64()), 2), "Flatten its rows"),
        (pa.list_(pa.decimal128(10, 2)), "Flatten its rows"),
        (pa.dense_union([pa.field("a", pa.int64())]), "alternatives"),
        (pa.list_view(pa.int64()), r"cast\(pyarrow.large_list\(int64\)\)"),
        (pa.run_end_encoded(pa.int32(), pa.int64()), "run_end_decode"),
        (pa.month_day_nano_interval(), "Cast it to numbers"),
        (pa.fixed_shape_tensor(pa.int32(), [2, 3], permutation=[1, 0]), "without a permutation"),
        (pa.uuid(), r"cast\(fixed_size_binary\[16\]\)"),
    ],
    ids=str,
)
def test_unsupported_types_are_refused_with_column_type_and_hint(type_: pa.DataType, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"^Column 'x' has type .*{hint}") as refused:
        spec_of(type_)
    assert str(type_) in str(refused.value)


def test_structs_become_dicts_of_their_fields() -> None:
    type_ = pa.struct(
        [("age", pa.int64()), ("name", pa.string()), ("seen", pa.struct([("at", pa.list_(pa.float32()))]))]
    )
    rows = [
        {"age": 3, "name": "a", "seen": {"at": [1.0, 2.0]}},
        {"age": 5, "name": "b", "seen": {"at": []}},
    ]
    table = pa.table({"user": pa.chunked_array([pa.array(rows[:1], type_), pa.array(rows[1:], type_)])})
    specs = column_specs(table.schema, ["user"])
    assert specs["user"].holds_ragged
    user: Any = to_arrays(table, specs)["user"]
    assert user["age"].tolist() == [3, 5]
    assert user["name"].tolist() == [b"a", b"b"]
    assert user["seen"]["at"].values.tolist() == [1.0, 2.0]
    assert user["seen"]["at"].row_splits.tolist() == [0, 2, 2]


def test_the_fields_of_a_null_struct_are_null() -> None:
    type_ = pa.struct([("age", pa.int64()), ("weight", pa.float64())])
    table = pa.table({"user": pa.array([{"age": 3, "weight": 1.5}, None], type_)})
    specs = column_specs(table.schema, ["user"])
    with pytest.raises(ValueError, match=r"Column 'user.age' has 1 null"):
        to_arrays(table, specs)
    user: Any = to_arrays(table, specs, {"user.age": -1})["user"]
    assert user["age"].tolist() == [3, -1]
    np.testing.assert_array_equal(user["weight"], [1.5, np.nan])


def test_errors_in_a_struct_name_the_field() -> None:
    with pytest.raises(ValueError, match=r"Column 'x.price' has type decimal"):
        spec_of(pa.struct([("price", pa.decimal128(10, 2))]))
    table = pa.table({"x": pa.array([{"a": 1}])})
    specs = column_specs(table.schema, ["x"])
    with pytest.raises(ValueError, match=r"structs with the fields \['a'\]"):
        to_arrays(pa.table({"x": pa.array([{"b": 1}])}), specs)


def test_the_hint_for_decimals_works() -> None:
    table = pa.table({"x": pa.array([Decimal("1.50")])})
    assert convert(table["x"].cast("float64")).tolist() == [1.5]


def test_a_column_of_nulls_only_is_refused() -> None:
    with pytest.raises(ValueError, match="Column 'x' has only nulls"):
        spec_of(pa.null())


def test_specs_and_arrays_follow_the_requested_names() -> None:
    table = pa.table({"a": [1], "b": ["s"], "c": [1.0]})
    specs = column_specs(table.schema, ["c", "a"])
    assert list(specs) == ["c", "a"]
    assert list(to_arrays(table, specs)) == ["c", "a"]


def test_an_unknown_column_is_an_error_that_lists_the_columns() -> None:
    table = pa.table({"a": [1], "b": [2]})
    with pytest.raises(ValueError, match=r"unknown columns \['z'\]\. The columns are \['a', 'b'\]"):
        column_specs(table.schema, ["a", "z"])
    with pytest.raises(ValueError, match=r"unknown columns \['a'\]\. The columns are \['b'\]"):
        to_arrays(table.select(["b"]), column_specs(table.schema, ["a"]))


@pytest.mark.parametrize(
    ("features", "labels", "expected"),
    [
        (None, None, (["a", "b", "y"], [])),
        (None, "y", (["a", "b"], ["y"])),
        (None, ["y", "a"], (["b"], ["y", "a"])),
        (["b", "a"], ["y"], (["b", "a"], ["y"])),
        ("b", None, (["b"], [])),
    ],
)
def test_features_default_to_all_columns_except_the_labels(features: Any, labels: Any, expected: Any) -> None:
    assert select_columns(["a", "b", "y"], features, labels) == expected


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (["a", "z"], None, r"feature_columns has unknown columns \['z'\]\. The columns are \['a', 'b', 'y'\]"),
        (None, "z", r"label_columns has unknown columns \['z'\]"),
        (["a", "y"], "y", r"both a label and a feature, got \['y'\]"),
        (["a", "a"], None, r"feature_columns must name each column once, but has \['a'\]"),
        (None, ["y", "y"], r"label_columns must name each column once, but has \['y'\]"),
    ],
)
def test_columns_that_cannot_be_selected_are_refused(features: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_columns(["a", "b", "y"], features, labels)


def test_an_ambiguous_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schema must name each column once, but has \['a'\]"):
        select_columns(["a", "a", "b"], ["a"], None)
    assert select_columns(["a", "a", "b"], ["b"], None) == (["b"], [])


def test_neither_ray_nor_tensorflow_is_imported() -> None:
    code = (
        "import sys, importlib.util as util\n"
        "for name in ('columns', 'sharding'):\n"
        "    spec = util.spec_from_file_location(name, f'{sys.argv[1]}/{name}.py')\n"
        "    sys.modules[name] = module = util.module_from_spec(spec)\n"
        "    spec.loader.exec_module(module)\n"
        "print(sorted({'ray', 'tensorflow'} & set(sys.modules)))"
    )
    folder = sys.modules[column_specs.__module__].__file__.rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
