"""Argument checks of dataset_input_fn, on the driver."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import ray.data

from ray_estimator.inputs import DatasetInput, dataset_input_fn


class UnreadDataset(ray.data.Dataset):  # type: ignore[misc]
    """A Dataset without a plan. No test reads it, so Ray does not start."""

    def __init__(self) -> None:
        self._current_executor = None  # read by __del__

    __repr__ = object.__repr__


def a_dataset() -> ray.data.Dataset:
    return UnreadDataset()


def an_input(**fields: Any) -> DatasetInput:
    return dataset_input_fn(**{"dataset": a_dataset, "batch_size": 4, **fields})


def test_defaults() -> None:
    made = an_input()

    assert made == DatasetInput(dataset=a_dataset, batch_size=4)
    assert (made.label_columns, made.feature_columns, made.num_epochs) == ((), None, None)
    assert (made.shuffle, made.shuffle_buffer_rows, made.drop_remainder) == (False, None, False)


def test_every_argument_is_kept() -> None:
    given: dict[str, Any] = {
        "batch_size": 3,
        "label_columns": ["y", "z"],
        "feature_columns": ["a"],
        "num_epochs": 2,
        "shuffle": True,
        "shuffle_buffer_rows": 7,
        "seed": 0,
        "drop_remainder": True,
        "map_fn": zip,
        "fill_null": {"a": 0},
    }

    made = an_input(**given)

    assert {name: getattr(made, name) for name in given} == {
        **given,
        "label_columns": ("y", "z"),
        "feature_columns": ("a",),
    }


def test_fields_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        an_input().batch_size = 5  # type: ignore[misc]


@pytest.mark.parametrize(("labels", "single"), [(None, False), ("y", True), (["y"], True), (["y", "z"], False)])
def test_one_label_column_is_a_single_label(labels: Any, single: bool) -> None:
    assert an_input(label_columns=labels).single_label is single


def test_shuffle_has_a_buffer_of_ten_thousand_rows() -> None:
    assert an_input(shuffle=True).shuffle_buffer_rows == 10_000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 2.0),
        ("batch_size", True),
        ("num_epochs", "1"),
        ("label_columns", 3),
        ("label_columns", [3]),
        ("label_columns", {"y"}),
        ("feature_columns", b"a"),
        ("feature_columns", ["a", None]),
        ("shuffle", 1),
        ("drop_remainder", None),
        ("seed", 0.5),
        ("map_fn", "parse"),
        ("fill_null", [0]),
        ("fill_null", {"a": None}),
        ("fill_null", {0: 0}),
        ("dataset", [1, 2]),
        ("dataset", None),
    ],
)
def test_a_wrong_type_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{field}.* must .*got "):
        an_input(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 0), ("batch_size", -1), ("num_epochs", 0), ("label_columns", []), ("feature_columns", ["a", "a"])],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}.*got "):
        an_input(**{field: value})


def test_a_buffer_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="shuffle_buffer_rows should be > 0"):
        an_input(shuffle=True, shuffle_buffer_rows=0)


def test_a_buffer_without_shuffle_is_refused() -> None:
    with pytest.raises(ValueError, match="shuffle_buffer_rows=7 needs shuffle=True"):
        an_input(shuffle_buffer_rows=7)


def test_a_single_name_as_features_is_refused_with_a_hint() -> None:
    with pytest.raises(TypeError, match=r"Use \['a'\]: features are always a dict"):
        an_input(feature_columns="a")


def test_a_column_cannot_be_label_and_feature() -> None:
    with pytest.raises(ValueError, match=r"both a label and a feature, got \['y'\]"):
        an_input(label_columns="y", feature_columns=["a", "y"])


class TestDataset:
    def test_resolves_to_itself(self) -> None:
        dataset = a_dataset()

        assert an_input(dataset=dataset).resolve() is dataset

    @pytest.mark.parametrize(
        "dataset",
        [lambda: a_dataset(), functools.partial(lambda kind: kind(), a_dataset), lambda split="x": a_dataset()],
    )
    def test_of_a_callable_is_created_when_resolved(self, dataset: Callable[[], Any]) -> None:
        assert isinstance(an_input(dataset=dataset).resolve(), ray.data.Dataset)

    def test_callable_is_not_called_before(self) -> None:
        calls = []

        made = an_input(dataset=lambda: calls.append(1) or a_dataset())  # type: ignore[func-returns-value]

        assert not calls
        made.resolve()
        assert calls == [1]

    def test_callable_with_arguments_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"must be callable without arguments.*split"):
            an_input(dataset=lambda split: a_dataset())

    def test_callable_that_returns_something_else_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"must return a ray.data.Dataset, got a builtins.list"):
            an_input(dataset=lambda: [1]).resolve()
